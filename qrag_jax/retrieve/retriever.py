"""The product: a trained retriever over any chunks or text, in any number of steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from qrag_jax.config import QHeadConfig, RunConfig
from qrag_jax.metrics import stopped
from qrag_jax.models.embedder import Embedder, embed_actions, embed_states
from qrag_jax.retrieve.chunking import chunk_text
from qrag_jax.retrieve.embed import embed_texts
from qrag_jax.rl import policy
from qrag_jax.rl.env import StateLayout
from qrag_jax.rl.rollout import rollout
from qrag_jax.tokens import Pool, TextTokenizer, bucket, make_batch
from qrag_jax.types import Episode, QAExample, TaskBatch

GATHER_FLOATS = 2**26  # chunk embeddings gathered for the episodes searched at once: 256 MB


@dataclass(frozen=True)
class Pick:
    """One retrieved chunk: its index in the document and its text; its Q and its position (eq. 6) when it was picked; and its characters
    in the source if that was a text."""

    chunk: int
    text: str
    q: float
    position: float
    start: int | None = None
    end: int | None = None


@dataclass(frozen=True)
class Trajectory:
    """The greedy picks of one question, in the order they were made, their Q values, and their positions (eq. 6) when picked."""

    picked: tuple[int, ...]
    q: tuple[float, ...]
    positions: tuple[float, ...]


@partial(jax.jit, static_argnames="embedder")
def _embed_actions(params: Any, ids: Int[Array, "R L"], *, embedder: Embedder) -> Float[Array, "R D"]:
    return embed_actions(embedder, params, ids)


@partial(jax.jit, static_argnames=("embedder", "budget", "layout", "qhead"))
def _greedy(
    params: Any, pool: Float[Array, "U D"], batch: TaskBatch, *, embedder: Embedder, budget: int, layout: StateLayout, qhead: QHeadConfig
) -> Episode:
    keys = jax.random.split(jax.random.key(0), batch.chunk_index.shape[0])
    act = lambda key, q, available: policy.greedy(q, available)  # noqa: E731
    return rollout(partial(embed_states, embedder, params), pool, batch, keys, act, budget=budget, layout=layout, qhead=qhead)


class Retriever:
    """A trained pair of encoders with its tokenizer.

    ``threshold``: stop when the best Q is below it (None: not calibrated). ``step``: updates behind the parameters.
    """

    def __init__(
        self, config: RunConfig, embedder: Embedder, params: Any, tokenizer: TextTokenizer, threshold: float | None = None, step: int = 0
    ) -> None:
        self.config = config
        self.embedder = embedder
        self.params = params
        self.tokenizer = tokenizer
        self.threshold = threshold
        self.step = step

    @classmethod
    def from_pretrained(cls, path: str | Path) -> Retriever:
        """From a run directory or an export folder. Raises ValueError when it is neither."""
        from qrag_jax.export import read_export

        path = Path(path)
        export = read_export(path / "export" if (path / "export").is_dir() else path)
        return cls(export.config, export.embedder(), export.params, export.tokenizer, export.threshold, export.step)

    def search(self, question: str, source: str | Sequence[str], budget: int = 4, *, stop: bool = False) -> list[Pick]:
        """The ``budget`` chunks picked for a question, in document order.

        Args:
            question: the question.
            source: a text, cut into chunks of whole sentences here, or the chunks of a document in order.
            budget: how many chunks to pick.
            stop: pick fewer when the best Q falls below the calibrated threshold.

        Raises ValueError when the question or the source is empty, there are fewer chunks than ``budget``, or ``stop`` is asked of a
        retriever without a threshold.
        """
        if not question.strip():
            raise ValueError("question is empty")
        spans: list[tuple[int, int]] | None = None
        if isinstance(source, str):
            chunks = chunk_text(source, self.tokenizer, self.config.data.chunk_tokens)
            spans = [(chunk.start, chunk.end) for chunk in chunks]
            texts = tuple(chunk.text for chunk in chunks)
        else:
            texts = tuple(source)
        if stop and self.threshold is None:
            raise ValueError("stop = True: this retriever has no calibrated threshold; evaluate it with a budget of 2 or more first")
        found = self.run([QAExample("question", question, texts, "", ())], budget)[0]
        kept = len(stopped(found.picked, found.q, self.threshold)) if stop and self.threshold is not None else budget
        picks = [
            Pick(chunk, texts[chunk], found.q[t], found.positions[t], *(spans[chunk] if spans else (None, None)))
            for t, chunk in enumerate(found.picked[:kept])
        ]
        return sorted(picks, key=lambda pick: pick.chunk)

    def run(self, examples: Sequence[QAExample], budget: int, *, label: str | None = None) -> list[Trajectory]:
        """Greedy episodes for questions whose documents may share texts: each distinct text is embedded once.

        ``label`` shows progress of the embedding. Raises ValueError when a document has fewer chunks than ``budget``.
        """
        if not examples:
            raise ValueError("examples is empty: nothing to search")
        for example in examples:
            if not 1 <= budget <= len(example.chunks):
                raise ValueError(f"budget = {budget}: must be in 1..{len(example.chunks)}, the chunks of {example.id!r}")
        data = self.config.data
        layout = StateLayout.make(data, budget, self.tokenizer.prefix, self.tokenizer.suffix)
        if layout.tokens > self.embedder.config.max_tokens:
            raise ValueError(
                f"budget = {budget}: a state of {layout.tokens} tokens is longer than the encoder's {self.embedder.config.max_tokens}; "
                "lower the budget, data.state_chunk_tokens, or set data.state_tokens"
            )
        pool = Pool.build(examples, self.tokenizer, data.chunk_tokens)
        vectors = self.embed_chunks(list(pool.rows), label=label)
        padded = jnp.asarray(np.pad(vectors, ((0, len(pool.ids) - len(vectors)), (0, 0))))
        count = bucket(max(len(example.chunks) for example in examples))
        size = max(1, min(32, len(examples), GATHER_FLOATS // (count * vectors.shape[1])))
        device_ids = jnp.asarray(pool.ids)
        found: list[Trajectory] = []
        for start in range(0, len(examples), size):
            part = list(examples[start : start + size])
            full = part + part[-1:] * (size - len(part))  # one shape, so one compile; the repeats are dropped
            batch = replace(make_batch(full, 0, self.tokenizer, data, chunks=count, pool=pool), chunk_pool_ids=device_ids)
            episode = jax.device_get(
                _greedy(self.params, padded, batch, embedder=self.embedder, budget=budget, layout=layout, qhead=self.config.qhead)
            )
            found += [
                Trajectory(tuple(map(int, p)), tuple(map(float, q)), tuple(map(float, at)))
                for p, q, at in zip(episode.picked, episode.q, episode.positions, strict=True)
            ][: len(part)]
        return found

    def embed_chunks(self, texts: Sequence[str], *, label: str | None = None) -> Float[np.ndarray, "U D"]:
        """Un-rotated action embeddings, one a text."""
        embed = lambda rows: _embed_actions(self.params, rows, embedder=self.embedder)  # noqa: E731
        return embed_texts(embed, self.tokenizer, texts, self.config.data.chunk_tokens, label=label)
