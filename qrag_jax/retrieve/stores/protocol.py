"""What a vector database must do to hold the vectors of an index."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int

Span = tuple[int, int]
"""Rows from the first number up to, and without, the second."""


@dataclass(frozen=True)
class Query:
    """A vector, and the rows among which its largest inner products are wanted: ``ranges`` are disjoint and ascend; each is a first row and
    the row after the last one."""

    vector: Float[np.ndarray, " D"]
    ranges: Int[np.ndarray, "R 2"]

    @property
    def span(self) -> Span:
        """The smallest range that holds all of them."""
        return int(self.ranges[0, 0]), int(self.ranges[-1, 1])


class Best(NamedTuple):
    """Rows with their inner products, largest first; of equal ones, the row with the smaller number first."""

    rows: Int[np.ndarray, " K"]
    scores: Float[np.ndarray, " K"]


@runtime_checkable
class VectorStore(Protocol):
    """The vectors of one index: float32 rows, each with a number of its own, and a record in which the index notes what is whole.

    Row numbers lie in 0..2**62 and may have gaps. One thread at a time calls these methods. They raise ValueError on what the user must
    mend, :class:`~qrag_jax.rundir.log.Unreachable` when the database is not there or ends, or another
    process has it.
    """

    @property
    def shown(self) -> str:
        """Where the vectors are, for messages: the name of the table and its database, without any secret."""

    def read_record(self) -> str | None:
        """The latest record; None: there is none."""

    def write_record(self, record: str) -> None:
        """Replaces the record, completely or not at all. Makes what is missing for an index that is new."""

    def put(self, start: int, end: int, vectors: Float[np.ndarray, "R D"]) -> None:
        """Stores rows ``start``, ``start + 1``, ... and removes all other rows before ``end``. After a crash, some may be there."""

    def keep(self, ranges: Sequence[Span]) -> None:
        """Removes all rows outside ``ranges``, which are disjoint and ascend."""

    def read(self, start: int, end: int) -> Float[np.ndarray, "R D"]:
        """Those of the rows ``start`` to ``end`` that are there, in order."""

    def best(self, queries: Sequence[Query], count: int) -> list[Best]:
        """For each query, the ``count`` rows with the largest inner products; fewer if there are fewer. Exact: no approximate index is
        used."""

    def close(self) -> None: ...
