"""The batches of a run, stage by stage."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np

from qrag_jax import data
from qrag_jax.config import DataConfig, RunConfig, Stage
from qrag_jax.data.pooled import check_pooled, in_one_haystack
from qrag_jax.models.tokenizer import TextTokenizer
from qrag_jax.types import PAD, WHOLE, QAExample, Share, TaskBatch

# Padded sizes (rows of a pool, chunks of a document): close enough to waste little, and so few that a run compiles only a few shapes.
PADDED_SIZES = (*range(16, 65, 16), *range(128, 513, 64), *range(640, 2049, 128))
POOL_SAMPLE = 16  # number of batches from which a stage's pool size is estimated


def stage_examples(config: RunConfig, stage: Stage) -> Sequence[QAExample]:
    """The training examples of a stage. Raises ValueError on missing or broken data, and on a haystack that the benchmark cannot have."""
    if config.data.haystack == "batch":
        check_pooled(config.data.benchmark, config.qhead.positions)
    settings = replace(config.data, task=stage.task, chunks=stage.chunks)
    return data.load(settings, "train", seed=config.train.seed, group=config.optim.batch)


class Batches:
    """The batches of a run, of ``size`` episodes; ``batches[step]`` is a pure function of the step.

    With several processes, each makes its ``share`` of a batch's episodes and pool rows; all shares together are a single process's batch.
    """

    def __init__(
        self,
        config: DataConfig,
        size: int,
        tokenizer: TextTokenizer,
        stages: Sequence[tuple[Stage, Sequence[QAExample]]],
        share: Share = WHOLE,
    ) -> None:
        self._config, self.size, self._tokenizer, self._stages, self._share = config, size, tokenizer, stages, share
        self._rows = [self._pool_rows(i) for i in range(len(stages))]

    def pools(self) -> list[tuple[Stage, int]]:
        """The stages, each with the usual number of rows of its pools."""
        return [(stage, rows) for (stage, _), rows in zip(self._stages, self._rows, strict=True)]

    def stage(self, step: int) -> Stage:
        return self._stages[self._number(step)][0]

    def examples(self, step: int) -> list[QAExample]:
        """The examples of batch ``step``, in their haystack."""
        examples = self._examples(self._number(step), step)
        return in_one_haystack(examples) if self._config.haystack == "batch" else examples

    def _number(self, step: int) -> int:
        return next((i for i, (stage, _) in enumerate(self._stages) if step < stage.until), len(self._stages) - 1)

    def _examples(self, stage: int, step: int) -> list[QAExample]:
        return [self._stages[stage][1][i] for i in range(step * self.size, (step + 1) * self.size)]

    def _pool_rows(self, stage: int) -> int:
        """A number of rows that holds the pool of nearly every batch of a stage, so that the update compiles once."""
        return pool_rows(max(len({text for e in self._examples(stage, step) for text in e.chunks}) for step in range(POOL_SAMPLE)))

    def __getitem__(self, step: int) -> TaskBatch:
        stage, examples = self._number(step), self.examples(step)
        # All processes order the pool by the texts of the whole batch, so the order is the same everywhere.
        pool = Pool.build(examples, self._tokenizer, self._config.chunk_tokens, at_least=self._rows[stage], share=self._share)
        part = self._share.of(len(examples))
        first = step * self.size + part.start
        return make_batch(examples[part], first, self._tokenizer, self._config, chunks=self._chunks(stage, len(pool.rows)), pool=pool)

    def _chunks(self, stage: int, texts: int) -> int:
        """To how many chunks documents are padded, in a batch of ``texts`` distinct texts."""
        if self._config.haystack == "batch":
            return padded_size(max(texts, self._rows[stage]))
        return self._stages[stage][0].chunks

    def ahead(self, start: int, stop: int) -> Iterator[TaskBatch]:
        """Batches ``start`` to ``stop - 1``; a thread makes the next batch while the device works on the current one."""
        with ThreadPoolExecutor(1) as worker:
            coming = worker.submit(self.__getitem__, start)
            for step in range(start, stop):
                batch = coming.result()
                if step + 1 < stop:
                    coming = worker.submit(self.__getitem__, step + 1)
                yield batch


def pool_rows(texts: int) -> int:
    """The rows of a stage's pools, when the largest of some of its batches has this many distinct texts."""
    return padded_size(round(1.1 * texts))


def padded_size(size: int) -> int:
    """The smallest padded size that holds ``size``; above the last of ``PADDED_SIZES``, the next multiple of that one."""
    return next((candidate for candidate in PADDED_SIZES if size <= candidate), -(-size // PADDED_SIZES[-1]) * PADDED_SIZES[-1])


@dataclass(frozen=True)
class Pool:
    """The distinct chunk texts of some documents: ``rows`` maps each text to its row in the pool [U, Lc].

    Texts are dealt to the devices in turn, in order of first use, so that each device embeds about the same number. ``ids`` are the token
    rows of the requested share; the whole pool consists of the shares of all processes, one after another.
    """

    rows: dict[str, int]
    ids: np.ndarray

    @classmethod
    def build(
        cls, examples: Iterable[QAExample], tokenizer: TextTokenizer, chunk_tokens: int, *, at_least: int = 0, share: Share = WHOLE
    ) -> Pool:
        """Rounds U up to a padded size of ``at_least`` rows or more that can be divided evenly over the share's devices."""
        texts = dict.fromkeys(text for example in examples for text in example.chunks)
        each = -(-padded_size(max(len(texts), at_least)) // share.devices)
        rows = {text: i % share.devices * each + i // share.devices for i, text in enumerate(texts)}
        part = share.of(each * share.devices)
        mine = {text: row - part.start for text, row in rows.items() if part.start <= row < part.stop}
        ids = np.full((part.stop - part.start, chunk_tokens), PAD, np.int32)
        ids[np.fromiter(mine.values(), int)] = tokenizer.rows(list(mine), chunk_tokens)
        return cls(rows, ids)


def make_batch(
    examples: Sequence[QAExample],
    first_id: int,
    tokenizer: TextTokenizer,
    config: DataConfig,
    *,
    chunks: int | None = None,
    pool: Pool | None = None,
) -> TaskBatch:
    """The arrays of one batch of examples. Episodes are numbered from ``first_id``.

    Documents are padded to ``chunks`` (default ``config.chunks``). ``pool`` (default: built here) must hold every text. Raises ValueError
    on a document with more chunks.
    """
    size, count = len(examples), chunks or config.chunks
    pool = pool or Pool.build(examples, tokenizer, config.chunk_tokens)
    index = np.zeros((size, count), np.int32)
    mask = np.zeros((size, count), bool)
    support = np.zeros((size, count), bool)
    hop = np.zeros((size, count), np.int32)
    for row, example in enumerate(examples):
        length = len(example.chunks)
        if length > count:
            raise ValueError(f"example {example.id!r} has {length} chunks, this batch holds {count}; raise data.chunks or cut the document")
        index[row, :length] = [pool.rows[text] for text in example.chunks]
        mask[row, :length] = True
        support[row, list(example.support)] = True
        hop[row, list(example.path)] = np.arange(len(example.path))
    return TaskBatch(
        question_ids=tokenizer.rows([example.question for example in examples], config.question_tokens),
        chunk_pool_ids=pool.ids,
        chunk_index=index,
        chunk_mask=mask,
        support=support,
        episode_id=np.arange(first_id, first_id + size, dtype=np.int32),
        hop=hop,
    )
