"""The inputs of a search (documents and their rows) and its results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int

from qrag_jax.retrieve.chunks import Chunk
from qrag_jax.retrieve.embed import ChunkEmbedder

GATHERED = 2048  # rows gathered from a pool at once: they fit a core's cache


@runtime_checkable
class Rows(Protocol):
    """Un-rotated chunk embeddings, read in blocks: in memory, on disk, or gathered from a pool."""

    @property
    def width(self) -> int:
        """D."""

    def __len__(self) -> int:
        """N."""

    def parts(self) -> Sequence[tuple[int, int]]:
        """Consecutive ranges that cover all rows; each is best read at once."""

    def block(self, start: int, end: int) -> Float[np.ndarray, "R D"]:
        """Rows ``start`` to ``end``, float32: a view where the storage allows it."""


@runtime_checkable
class Document(Protocol):
    """Chunks in document order with their embeddings: an :class:`~qrag_jax.retrieve.index.Index`, or a text held in memory."""

    @property
    def rows(self) -> Rows: ...

    def __len__(self) -> int: ...

    def chunk(self, i: int) -> Chunk:
        """Text, characters and source of chunk ``i``."""

    def check(self, retriever: ChunkEmbedder) -> None:
        """Raises ValueError when the rows come from another model."""


@dataclass(frozen=True)
class Candidate:
    """A chunk that was scored but not picked at a step. Its fields have the same meaning as those of :class:`Pick`."""

    chunk: int
    text: str
    q: float
    start: int | None = None
    end: int | None = None
    source: str | None = None


@dataclass(frozen=True)
class Pick:
    """One retrieved chunk: its index in the document and its text; its Q and its position (eq. 6) when it was picked; its characters in
    the source, if that was a text; and the step at which it was picked, counted from 0."""

    chunk: int
    text: str
    q: float
    position: float
    start: int | None = None
    end: int | None = None
    source: str | None = None
    step: int = 0


@dataclass(frozen=True)
class Step:
    """One step of a search.

    ``runners_up``: the next best chunks, best first. ``stop``: whether the pick's Q is below the stop threshold (never at step 0); a search
    that stops leaves out this pick and all later ones. ``seconds``: time for embedding the state and reading the index, without compiling;
    the steps of a beam get equal shares. ``curve``: the highest Q in each of several equal stretches of the document (NaN if nothing is
    left to pick there), or None if it was not requested.
    """

    number: int
    pick: Pick
    runners_up: tuple[Candidate, ...]
    stop: bool
    seconds: float
    curve: Float[np.ndarray, " bins"] | None = None


@dataclass(frozen=True)
class Trajectory:
    """The picks of one question, in the order they were made, their Q values, and their positions (eq. 6) when picked."""

    picked: tuple[int, ...]
    q: tuple[float, ...]
    positions: tuple[float, ...]


@dataclass(frozen=True)
class Look:
    """The view of one state on its document: the best available chunks, best first, and (if requested) the highest Q in each of several
    equal stretches of the document, NaN where nothing is available."""

    chunks: tuple[int, ...]
    q: tuple[float, ...]
    curve: Float[np.ndarray, " bins"] | None = None


@dataclass(frozen=True)
class PoolRows:
    """The rows of a document, gathered in its order from a pool of embeddings of distinct texts."""

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
    """A :class:`Document` in memory that ``owner`` embedded."""

    chunks: Sequence[Chunk]
    rows: PoolRows
    owner: ChunkEmbedder

    def __len__(self) -> int:
        return len(self.chunks)

    def chunk(self, i: int) -> Chunk:
        return self.chunks[i]

    def check(self, retriever: ChunkEmbedder) -> None:
        if retriever is not self.owner:
            raise ValueError("this document was embedded by another retriever; make it with the retriever that searches it")
