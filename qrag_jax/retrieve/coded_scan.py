"""The scan of an index that has int8 codes and float32 rows: exact picks, while a step reads little more than a quarter of the bytes.

The codes of all rows are read. They bound the Q of each row from both sides (:mod:`qrag_jax.retrieve.codes`). A row whose upper bound is
below the lower bounds of the best rows cannot be one of them. The others, usually a few, are read in float32.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32, Int, Int8

from qrag_jax.config import QHeadConfig
from qrag_jax.retrieve.codes import CodedQueries
from qrag_jax.retrieve.scan import NOT_FINITE, SHORT, Hidden, HostScorer, Runs, look, rotate_state, runs, stretches
from qrag_jax.retrieve.stored_rows import CodedRows
from qrag_jax.retrieve.types import Look

BLOCK = 8192  # rows read at once
FEW = 4  # blocks that one thread reads sooner than another one starts
GROUPS = 4  # parts of the index for each core, so that no core waits long for another
STRETCH = 256  # rows of which the best one counts for the lower bound of the best rows, at most
EXACT = 4096  # rows read in float32 at once
LOWEST = np.finfo(np.float32).min


@dataclass(frozen=True)
class _Question:
    """A state, rotated into each of P positions; which of them each run of chunks has; and the chunks that it may not pick."""

    runs: Runs
    turned: Float32[np.ndarray, "P D"]
    column: Int[np.ndarray, " S"]
    coded: CodedQueries
    hidden: Int[np.ndarray, " H"]

    @classmethod
    def of(cls, state: Float[np.ndarray, " D"], found: Runs, hidden: Sequence[int], config: QHeadConfig) -> _Question:
        positions, column = np.unique(found.first, return_inverse=True)
        turned = rotate_state(state, positions, config)
        return cls(found, turned, column, CodedQueries(turned), np.array(hidden, int))

    def products(self, codes: Int8[np.ndarray, "R D"], begin: int) -> Float32[np.ndarray, " R"]:
        """Products of the codes of rows from ``begin`` on with the state, rotated for each."""
        end = begin + len(codes)
        first, last = np.searchsorted(self.runs.start, begin, "right") - 1, np.searchsorted(self.runs.start, end, "left")
        edges = np.append(np.maximum(self.runs.start[first:last], begin), end) - begin
        columns = self.column[first:last]
        if len(columns) * SHORT > len(codes):
            queries, at = np.unique(columns, return_inverse=True)
            every = self.coded.products(codes, queries.tolist())
            return every[np.arange(len(codes)), np.repeat(at, np.diff(edges))].astype(np.float32)
        out = np.empty(len(codes), np.float32)
        for i, column in enumerate(columns.tolist()):
            out[edges[i] : edges[i + 1]] = self.coded.product(codes[edges[i] : edges[i + 1]], column)
        return out

    def exact(self, rows: CodedRows, chunks: Int[np.ndarray, " C"]) -> Float32[np.ndarray, " C"]:
        """Q of ``chunks``, from their float32 rows."""
        q = np.empty(len(chunks), np.float32)
        for start in range(0, len(chunks), EXACT):
            part = chunks[start : start + EXACT]
            turned = self.turned[self.column[np.searchsorted(self.runs.start, part, "right") - 1]]
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
        asked = [
            _Question.of(state, found, self._hidden.of(picks), self._config)
            for state, found, picks in zip(states, cut, picked, strict=True)
        ]
        blocks = [(a, min(a + BLOCK, end)) for start, end in self._rows.parts() for a in range(start, end, BLOCK)]
        workers = min(_cores(), -(-len(blocks) * len(asked) // FEW))
        size = -(-len(blocks) // (GROUPS * workers))
        stretch = max(1, min(STRETCH, len(self._rows) // (16 * top)))
        q = np.empty((len(asked), len(self._rows)), np.float32)
        bound = lambda start: self._bound(asked, blocks[start : start + size], stretch, q)
        with ThreadPoolExecutor(workers) as pool:
            each = pool.map if workers > 1 else map
            reached = np.concatenate(list(each(bound, range(0, len(blocks), size))), axis=1)
            return list(each(lambda i: self._look(asked[i], q[i], reached[i], top, bins), range(len(asked))))

    @np.errstate(over="ignore", invalid="ignore")  # what overflows is refused afterwards
    def _bound(
        self, asked: Sequence[_Question], blocks: Sequence[tuple[int, int]], stretch: int, most: Float32[np.ndarray, "B N"]
    ) -> Float32[np.ndarray, "B S"]:
        """Fills in the upper bound of Q for the rows of ``blocks``, and returns the best lower bound in each stretch of so many rows."""
        reached: list[list[np.ndarray]] = [[] for _ in asked]
        for begin, end in blocks:
            part = self._rows.codes(begin, end)
            edges = np.arange(0, end - begin, stretch)
            for question, row, found in zip(asked, most, reached, strict=True):
                q = question.products(part.codes, begin) * part.scales
                margins = question.coded.margins(part.scales, part.errors)
                least, q = q - margins, q + margins
                for bound in (least, q):
                    bound[question.hidden[(question.hidden >= begin) & (question.hidden < end)] - begin] = -np.inf
                    if self._hidden.allowed is not None:
                        bound[~self._hidden.allowed[begin:end]] = -np.inf
                row[begin:end] = q
                found.append(np.maximum.reduceat(least, edges))
        return np.stack([np.concatenate(found) for found in reached])

    @np.errstate(over="ignore", invalid="ignore")
    def _look(self, question: _Question, most: Float32[np.ndarray, " N"], reached: Float32[np.ndarray, " S"], top: int, bins: int) -> Look:
        """The best chunks, from their float32 rows. Overwrites ``most``, the upper bounds of Q; ``reached`` are lower bounds of different
        rows."""
        if np.isnan(reached).any():
            raise ValueError(NOT_FINITE)
        least = np.partition(reached, -top)[-top] if len(reached) >= top else -np.inf
        near = most >= max(least, LOWEST)
        if bins:
            edges = stretches(len(most), bins)
            best = np.maximum.reduceat(most - 2 * question.coded.margins(*self._rows.bounds), edges)
            near |= most >= np.repeat(np.maximum(best, LOWEST), np.diff(edges, append=len(most)))
        chunks = np.flatnonzero(near)
        q = question.exact(self._rows, chunks)
        if bins:
            most[:] = -np.inf
            most[chunks] = q
            return look(most, (), top, bins)
        seen = look(q, (), top, 0)
        return Look(tuple(chunks[list(seen.chunks)].tolist()), seen.q)


def _cores() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
