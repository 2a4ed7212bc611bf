"""Scores a document whose vectors lie in a vector database: the state is rotated into each position in use, as in
:mod:`~qrag_jax.retrieve.scan`, and each rotated state is one query over the chunks that have this position."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

from qrag_jax.config import QHeadConfig
from qrag_jax.retrieve.scan import Hidden, Runs, rotate_state, runs, stretches
from qrag_jax.retrieve.stored_rows import StoredRows
from qrag_jax.retrieve.stores.held import HeldVectors
from qrag_jax.retrieve.stores.protocol import Best, Query
from qrag_jax.retrieve.types import Look


def check_constant(config: QHeadConfig) -> None:
    """Raises ValueError when positions differ from chunk to chunk: each chunk would be a query of its own."""
    continuous = config.positions == "relative" and config.position_resolution == "continuous"
    if continuous or config.positions in ("absolute", "random"):
        kind = "continuous" if continuous else config.positions
        raise ValueError(
            f"this retriever has {kind} positions, a different one for every chunk; a vector database can only search with relative "
            "positions in whole numbers, or without positions: build an index without a store"
        )


class StoreScorer:
    """A :class:`~qrag_jax.retrieve.search.Scorer` of ``rows`` that lie in a store. ``restarts``: see :func:`~qrag_jax.retrieve.scan.runs`.
    Raises ValueError as :func:`check_constant` does."""

    def __init__(
        self, held: HeldVectors, rows: StoredRows, config: QHeadConfig, hidden: Hidden | None = None, restarts: Sequence[int] = (0,)
    ) -> None:
        check_constant(config)
        self._held, self._config, self._hidden, self._restarts = held, config, hidden or Hidden(), restarts
        self._length = len(rows)
        self._shards = [shard.held for shard in rows.shards if shard.held is not None]
        self._starts = np.array([0, *rows.ends[:-1]], np.int64)
        self._first = np.array([shard.number for shard in self._shards], np.int64) * held.shard_chunks
        self._free = _edges(self._hidden.allowed)

    def __call__(self, states: Float[np.ndarray, "B D"], picked: Sequence[Sequence[int]], top: int, bins: int = 0) -> list[Look]:
        """As :class:`~qrag_jax.retrieve.scan.HostScorer`. Raises ValueError when the vectors are no longer there."""
        queries: list[Query] = []
        asked: list[slice] = []
        curves: list[tuple[list[Query], list[int]]] = []
        for state, picks in zip(states, picked, strict=True):
            cut = runs(picks, self._length, self._config, self._restarts)
            hidden = np.sort(np.array(self._hidden.of(picks), np.int64))
            begin = len(queries)
            queries += self._queries(state, cut, hidden)
            asked.append(slice(begin, len(queries)))
            curves.append(self._by_bin(state, cut, hidden, bins) if bins else ([], []))
        found = self._held.best(queries, top) if queries else []
        highest = iter(self._held.best([query for one, _ in curves for query in one], 1)) if bins else iter(())
        self._held.check(self._shards)  # rows are never overwritten, so what is here now was here when they were read
        looks = []
        for place, (own, at) in zip(asked, curves, strict=True):
            curve = None
            if bins:
                curve = np.full(min(bins, self._length), np.nan, np.float32)
                for number, best in zip(at, [next(highest) for _ in own], strict=True):
                    curve[number] = np.fmax(curve[number], best.scores.max(initial=-np.inf))
            looks.append(self._look(found[place], top, curve))
        return looks

    def _queries(self, state: Float[np.ndarray, " D"], cut: Runs, hidden: Int[np.ndarray, " H"]) -> list[Query]:
        """One query for each position."""
        begin, end = self._pieces(cut, hidden)
        position, at = np.unique(cut.first[_at(cut.start, begin)], return_inverse=True)
        rotated = rotate_state(state, position, self._config)
        return [Query(vector, self._ranges(begin[at == i], end[at == i])) for i, vector in enumerate(rotated)]

    def _by_bin(self, state: Float[np.ndarray, " D"], cut: Runs, hidden: Int[np.ndarray, " H"], bins: int) -> tuple[list[Query], list[int]]:
        """One query for each position in each of ``bins`` stretches, and the number of the stretch."""
        edges = stretches(self._length, bins)
        begin, end = self._pieces(cut, hidden, edges)
        keys = np.stack([_at(edges, begin), cut.first[_at(cut.start, begin)]], axis=1)
        distinct, at = np.unique(keys, axis=0, return_inverse=True)
        order, borders = np.argsort(at, kind="stable"), np.cumsum(np.bincount(at))[:-1]
        rotated = rotate_state(state, distinct[:, 1], self._config)
        pieces = np.split(order, borders) if len(order) else []
        queries = [Query(vector, self._ranges(begin[part], end[part])) for vector, part in zip(rotated, pieces, strict=True)]
        return queries, distinct[:, 0].astype(int).tolist()

    def _pieces(
        self, cut: Runs, hidden: Int[np.ndarray, " H"], edges: Int[np.ndarray, " E"] | None = None
    ) -> tuple[Int[np.ndarray, " P"], Int[np.ndarray, " P"]]:
        """The chunks that may be picked, as pieces of one position, one shard and one stretch each."""
        borders = [cut.start, self._starts, hidden, hidden + 1, np.array([0, self._length])]
        borders += [] if edges is None else [edges]
        borders += [] if self._free is None else [self._free]
        all_edges = np.unique(np.concatenate(borders))
        begin, end = all_edges[:-1], all_edges[1:]
        open_ = ~np.isin(begin, hidden)
        if self._free is not None:
            open_ &= np.searchsorted(self._free, begin, side="right") % 2 == 1
        return begin[open_], end[open_]

    def _ranges(self, begin: Int[np.ndarray, " P"], end: Int[np.ndarray, " P"]) -> Int[np.ndarray, "R 2"]:
        """The rows of pieces in the store, as few ranges as they make."""
        shard = _at(self._starts, begin)
        first = self._first[shard] + begin - self._starts[shard]
        order = np.argsort(first, kind="stable")
        first, last = first[order], (first + end - begin)[order]
        new = np.append(True, first[1:] != last[:-1])
        return np.stack([first[new], last[np.append(new[1:], True)]], axis=1)

    def _look(self, found: Sequence[Best], top: int, curve: Float[np.ndarray, " bins"] | None) -> Look:
        """The best of all queries of a state; of equal ones, the first in the document."""
        if not found:
            return Look((), (), curve)
        rows, q = np.concatenate([best.rows for best in found]), np.concatenate([best.scores for best in found])
        by_row = np.argsort(self._first)
        shard = by_row[_at(self._first[by_row], rows)]
        chunks = self._starts[shard] + rows - self._first[shard]
        order = np.lexsort((chunks, -q))[:top]
        return Look(tuple(chunks[order].tolist()), tuple(q[order].tolist()), curve)


def _at(starts: Int[np.ndarray, " S"], values: Int[np.ndarray, " V"]) -> Int[np.ndarray, " V"]:
    """The number of the last start that is not above each value."""
    return np.searchsorted(starts, values, side="right") - 1


def _edges(allowed: Bool[np.ndarray, " N"] | None) -> Int[np.ndarray, " E"] | None:
    """Where allowed chunks begin and end, in turn; None: all are allowed."""
    if allowed is None:
        return None
    return np.flatnonzero(np.diff(np.concatenate([[False], allowed, [False]]))).astype(np.int64)
