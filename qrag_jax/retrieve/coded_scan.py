"""The scan of an index that has int8 codes and float32 rows: exact picks, while a step reads little more than a quarter of the bytes.

The codes of all rows are read. They bound the Q of each row from both sides (:mod:`qrag_jax.retrieve.codes`). A row whose upper bound is
below the lower bounds of the best rows cannot be one of them. The others, usually tens to hundreds, are read in float32.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32, Int, Int8

from qrag_jax.config import QHeadConfig
from qrag_jax.retrieve.coded_rows import CodedRows
from qrag_jax.retrieve.codes import CodedQueries
from qrag_jax.retrieve.scan import NOT_FINITE, SHORT, Hidden, HostScorer, Runs, look, rotate_state, runs, stretches
from qrag_jax.retrieve.types import Look

BLOCK = 4096  # rows read at once: their codes fit a core's cache
GROUPS = 4  # parts of the index for each core, so that no core waits long for another
EXACT = 4096  # rows read in float32 at once
LOWEST = np.finfo(np.float32).min


@dataclass(frozen=True)
class _Question:
    """A state, rotated into each of P positions, and which of them each run of chunks has."""

    runs: Runs
    turned: Float32[np.ndarray, "P D"]
    column: Int[np.ndarray, " S"]
    coded: CodedQueries

    @classmethod
    def of(cls, state: Float[np.ndarray, " D"], found: Runs, config: QHeadConfig) -> _Question:
        positions, column = np.unique(found.first, return_inverse=True)
        turned = rotate_state(state, positions, config)
        return cls(found, turned, column, CodedQueries(turned))

    def products(self, codes: Int8[np.ndarray, "R D"], begin: int, out: Float32[np.ndarray, " R"]) -> None:
        """Products of the codes of rows from ``begin`` on with the state, rotated for each."""
        end = begin + len(codes)
        first, last = np.searchsorted(self.runs.start, begin, "right") - 1, np.searchsorted(self.runs.start, end, "left")
        edges = np.append(np.maximum(self.runs.start[first:last], begin), end) - begin
        columns = self.column[first:last]
        if len(columns) * SHORT > len(codes):
            queries, at = np.unique(columns, return_inverse=True)
            every = self.coded.products(codes, queries.tolist())
            out[:] = every[np.arange(len(codes)), np.repeat(at, np.diff(edges))]
            return
        for i, column in enumerate(columns.tolist()):
            out[edges[i] : edges[i + 1]] = self.coded.product(codes[edges[i] : edges[i + 1]], column)

    def exact(self, rows: CodedRows, chunks: Int[np.ndarray, " C"]) -> Float32[np.ndarray, " C"]:
        """Q of ``chunks``, from their float32 rows."""
        q = np.empty(len(chunks), np.float32)
        for start in range(0, len(chunks), EXACT):
            part = chunks[start : start + EXACT]
            turned = self.turned[self.column[np.searchsorted(self.runs.start, part, "right") - 1]]
            with np.errstate(over="ignore"):  # an infinite Q is refused later
                q[start : start + EXACT] = np.einsum("cd,cd->c", rows.take(part), turned, dtype=float)
        return q


class CodedScorer:
    """Scores an index on the CPU, with the result of :class:`~qrag_jax.retrieve.scan.HostScorer`; Q is computed in float64 and rounded to
    float32.

    Where the position changes with every chunk (absolute, random, continuous), all float32 rows are read. ``restarts``: see
    :func:`~qrag_jax.retrieve.scan.runs`.
    """

    def __init__(self, rows: CodedRows, config: QHeadConfig, hidden: Hidden | None = None, restarts: Sequence[int] = (0,)) -> None:
        self._rows, self._config, self._hidden, self._restarts = rows, config, hidden or Hidden(), restarts

    def __call__(self, states: Float[np.ndarray, "B D"], picked: Sequence[Sequence[int]], top: int, bins: int = 0) -> list[Look]:
        if not np.isfinite(states).all():
            raise ValueError(NOT_FINITE)
        cut = [runs(picks, len(self._rows), self._config, self._restarts) for picks in picked]
        if any(found.step.any() for found in cut):
            return HostScorer(self._rows, self._config, self._hidden, self._restarts)(states, picked, top, bins)
        asked = [_Question.of(state, found, self._config) for state, found in zip(states, cut, strict=True)]
        q = np.empty((len(asked), len(self._rows)), np.float32)
        blocks = [(a, min(a + BLOCK, end)) for start, end in self._rows.parts() for a in range(start, end, BLOCK)]
        workers = _cores()
        size = -(-len(blocks) // (GROUPS * workers))
        groups = [blocks[i : i + size] for i in range(0, len(blocks), size)]
        with ThreadPoolExecutor(workers) as pool:
            list(pool.map(lambda group: self._estimate(asked, group, q), groups))
            return list(pool.map(lambda one, row, picks: self._look(one, row, picks, top, bins), asked, q, picked))

    def _estimate(self, asked: Sequence[_Question], blocks: Sequence[tuple[int, int]], q: Float32[np.ndarray, "B N"]) -> None:
        """Fills in Q of the rows of ``blocks``, computed from their codes."""
        for begin, end in blocks:
            part = self._rows.codes(begin, end)
            for question, row in zip(asked, q, strict=True):
                question.products(part.codes, begin, row[begin:end])
                row[begin:end] *= part.scales

    def _look(self, question: _Question, q: Float32[np.ndarray, " N"], picks: Sequence[int], top: int, bins: int) -> Look:
        """The best chunks, from their float32 rows. Overwrites ``q`` with its upper bound."""
        margins = question.coded.margins(*self._rows.bounds)
        q += margins
        q[self._hidden.of(picks)] = -np.inf
        if self._hidden.allowed is not None:
            q[~self._hidden.allowed] = -np.inf
        least = q - 2 * margins
        if np.isnan(least.max()):
            raise ValueError(NOT_FINITE)
        near = q >= max(_reached(least, top), LOWEST)
        edges = stretches(len(q), bins) if bins else np.zeros(1, int)
        if bins:
            best = np.maximum(np.maximum.reduceat(least, edges), LOWEST)
            near |= q >= np.repeat(best, np.diff(edges, append=len(q)))
        chunks = np.flatnonzero(near)
        found = question.exact(self._rows, chunks)
        if bins:
            q[:] = -np.inf
            q[chunks] = found
            return look(q, (), top, bins)
        seen = look(found, (), top, 0)
        return Look(tuple(chunks[list(seen.chunks)].tolist()), seen.q)


def _reached(least: Float32[np.ndarray, " N"], top: int) -> float:
    """A number that at least ``top`` of ``least`` reach, and not many more; minus infinity if there are fewer."""
    if len(least) < top:
        return -np.inf
    size = max(1, len(least) // (16 * top))  # the best ones of so many stretches are different rows
    best = np.maximum.reduceat(least, np.arange(0, len(least), size))
    return float(np.partition(best, -top)[-top])


def _cores() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
