"""Documents held in memory: a text, given chunks, or chunks whose texts lie in a pool that other documents share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int

from qrag_jax.retrieve.chunking import Chunk

if TYPE_CHECKING:
    from qrag_jax.retrieve.retriever import Retriever

GATHERED = 2048  # rows gathered from a pool at once: they fit a core's cache


@dataclass(frozen=True)
class PoolRows:
    """Rows of a pool of distinct texts' embeddings, in a document's order."""

    pool: Float[np.ndarray, "U D"]
    index: Int[np.ndarray, " N"]

    @property
    def width(self) -> int:
        return self.pool.shape[1]

    def __len__(self) -> int:
        return len(self.index)

    def parts(self) -> Sequence[tuple[int, int]]:
        return [(start, min(start + GATHERED, len(self))) for start in range(0, len(self), GATHERED)]

    def block(self, start: int, end: int) -> Float[np.ndarray, "R D"]:
        return self.pool[self.index[start:end]]


@dataclass(frozen=True)
class MemoryDocument:
    """A :class:`~qrag_jax.retrieve.results.Document` that ``owner`` embedded."""

    chunks: Sequence[Chunk]
    rows: PoolRows
    owner: Retriever

    def __len__(self) -> int:
        return len(self.chunks)

    def chunk(self, i: int) -> Chunk:
        return self.chunks[i]

    def check(self, retriever: Retriever) -> None:
        if retriever is not self.owner:
            raise ValueError("this document was embedded by another retriever; make it with the one that searches it")
