"""The batches of a run, stage by stage."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from qrag_jax import data
from qrag_jax.config import RunConfig, Stage
from qrag_jax.tokens import Pool, TextTokenizer, bucket, make_batch
from qrag_jax.types import WHOLE, QAExample, Share, TaskBatch

POOL_SAMPLE = 16  # batches that a stage's pool size is estimated from


def stage_examples(config: RunConfig, stage: Stage) -> Sequence[QAExample]:
    settings = replace(config.data, task=stage.task, chunks=stage.chunks)
    return data.load(settings, "train", seed=config.train.seed, group=config.optim.batch)


class Batches:
    """Batch ``step`` of a run, a pure function of the step; the next one is made on a thread while the device works.

    Of several processes each makes its ``share`` of the rows, episodes and pool, which stand where those of one process would.
    """

    def __init__(
        self,
        config: RunConfig,
        tokenizer: TextTokenizer,
        stages: Sequence[tuple[Stage, Sequence[QAExample]]],
        share: Share = WHOLE,
    ) -> None:
        self._config, self._tokenizer, self._stages, self._share = config, tokenizer, stages, share
        self._rows = [self._pool_rows(i) for i in range(len(stages))]

    def stage(self, step: int) -> Stage:
        return self._stages[self._number(step)][0]

    def examples(self, step: int) -> list[QAExample]:
        """What batch ``step`` is made from."""
        return self._examples(self._number(step), step)

    def _number(self, step: int) -> int:
        return next((i for i, (stage, _) in enumerate(self._stages) if step < stage.until), len(self._stages) - 1)

    def _examples(self, stage: int, step: int) -> list[QAExample]:
        size = self._config.optim.batch
        return [self._stages[stage][1][i] for i in range(step * size, (step + 1) * size)]

    def _pool_rows(self, stage: int) -> int:
        """Room for the pool of nearly every batch of a stage, so that it compiles once."""
        sizes = [len({text for e in self._examples(stage, step) for text in e.chunks}) for step in range(POOL_SAMPLE)]
        return bucket(round(1.1 * max(sizes)))

    def __getitem__(self, step: int) -> TaskBatch:
        stage, examples = self._number(step), self.examples(step)
        # The pool's order is that of the whole batch's texts, the same everywhere.
        pool = Pool.build(examples, self._tokenizer, self._config.data.chunk_tokens, at_least=self._rows[stage], share=self._share)
        part = self._share.of(len(examples))
        first = step * self._config.optim.batch + part.start
        return make_batch(examples[part], first, self._tokenizer, self._config.data, chunks=self._stages[stage][0].chunks, pool=pool)

    def ahead(self, start: int, stop: int) -> Iterator[TaskBatch]:
        with ThreadPoolExecutor(1) as worker:
            coming = worker.submit(self.__getitem__, start)
            for step in range(start, stop):
                batch = coming.result()
                if step + 1 < stop:
                    coming = worker.submit(self.__getitem__, step + 1)
                yield batch
