"""The inputs of a search (documents and their rows) and its results."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int

from qrag_jax.retrieve.chunks import Chunk
from qrag_jax.retrieve.embed import ChunkEmbedder
from qrag_jax.retrieve.metadata import Metadata
from qrag_jax.retrieve.records import SourceRecord
from qrag_jax.retrieve.words import WordIndex

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

    @property
    def sources(self) -> Sequence[SourceRecord]:
        """The documents, in the order of their chunks; empty if they are not known."""

    @property
    def restarts(self) -> Sequence[int]:
        """The chunks at which positions begin again, the first of which is 0."""

    def chunk(self, i: int) -> Chunk:
        """Text, characters, source and metadata of chunk ``i``."""

    def equals(self, i: int) -> Sequence[int]:
        """The chunks of other documents that have the text of chunk ``i``."""

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
    the source, if that was a text; the step at which it was picked, counted from 0; the metadata of its document; and in ``also`` the
    same text in other documents, which is not picked again."""

    chunk: int
    text: str
    q: float
    position: float
    start: int | None = None
    end: int | None = None
    source: str | None = None
    step: int = 0
    metadata: Metadata = field(default_factory=dict, hash=False)
    also: tuple[Chunk, ...] = ()


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
    sources: tuple[SourceRecord, ...] = ()
    restarts: tuple[int, ...] = (0,)

    def __len__(self) -> int:
        return len(self.chunks)

    def chunk(self, i: int) -> Chunk:
        return self.chunks[i]

    def equals(self, i: int) -> tuple[int, ...]:
        same = np.flatnonzero(self.rows.index == self.rows.index[i]).tolist() if len(self.sources) > 1 else []
        return tuple(others(self.sources, tuple(accumulate((one.chunks for one in self.sources), initial=0)), i, same))

    def words(self) -> WordIndex:
        return self._words

    @cached_property
    def _words(self) -> WordIndex:
        return WordIndex.build(chunk.text for chunk in self.chunks)

    def check(self, retriever: ChunkEmbedder) -> None:
        if retriever is not self.owner:
            raise ValueError("this document was embedded by another retriever; make it with the retriever that searches it")


def others(sources: Sequence[SourceRecord], starts: Sequence[int], i: int, chunks: Sequence[int]) -> list[int]:
    """Those of ``chunks`` that are in another document than chunk ``i``. ``starts``: the first chunk of each record."""
    at = lambda chunk: bisect_right(starts, chunk) - 1
    own = at(i)
    name = sources[own].name if sources else None
    return [j for j in chunks if at(j) != own and (name is None or sources[at(j)].name != name)]
