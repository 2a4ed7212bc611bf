"""The rotated-state scan: <s, R(p) e> = <R(-p) s, e>, so the state is rotated to each position in use and the index is read once.

Positions are constant, or grow evenly, over long runs of chunks: at most span + 1 runs per interval with integer positions, one run per
interval with continuous ones. A run of constant position is one matrix product with a rotated state.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np
from jaxtyping import Bool, Complex64, Float, Int

from qrag_jax.config import QHeadConfig
from qrag_jax.retrieve.types import Look, Rows

TURNED = 256  # rows at a time, if a state is rotated for each row
NOT_FINITE = "Q is not finite: the model or the index gives NaN; its weights or vectors are unusable"
SHORT = 64  # rows of a run below which a product for each run costs more than a rotation for each row


@dataclass(frozen=True)
class Runs:
    """A document, cut into runs of evenly growing positions: run i begins at chunk ``start[i]`` with position ``first[i]``, which grows by
    ``step[i]`` per chunk."""

    start: Int[np.ndarray, " S"]
    first: Float[np.ndarray, " S"]
    step: Float[np.ndarray, " S"]

    def position(self, chunk: int) -> float:
        return float(self.positions(chunk, chunk + 1)[0])

    def positions(self, begin: int, end: int) -> Float[np.ndarray, " R"]:
        """The positions of chunks ``begin`` to ``end``."""
        chunk = np.arange(begin, end)
        i = np.searchsorted(self.start, chunk, side="right") - 1
        return self.first[i] + self.step[i] * (chunk - self.start[i])


def runs(picked: Sequence[int], length: int, config: QHeadConfig, restarts: Sequence[int] = (0,)) -> Runs:
    """The positions of :func:`qrag_jax.rl.positions.chunk_positions` for ``length`` chunks, ``picked`` ones taken, as runs.

    ``restarts``: the first chunk of each document, in order and beginning with 0. Each document has the positions that it would have alone:
    a pick begins an interval in its own document and changes nothing in the others. "random" positions are the index in the document: an
    offset is drawn only in training.
    """
    borders = np.asarray(restarts, np.int64)
    if config.positions == "none":
        return Runs(np.zeros(1, np.int64), np.zeros(1), np.zeros(1))
    if config.positions != "relative":
        return Runs(borders, np.zeros(len(borders)), np.ones(len(borders)))
    begin = np.concatenate([borders, np.sort(np.asarray(picked, np.int64))])
    order = np.argsort(begin, kind="stable")  # a document that begins with a pick has an empty interval 0
    begin, picks = begin[order], np.cumsum(order >= len(borders))
    interval: np.ndarray = picks - np.maximum.accumulate(np.where(order < len(borders), picks, 0))
    count = np.append(begin[1:], length) - begin
    begin, interval, count = begin[count > 0], interval[count > 0], count[count > 0]
    if config.position_resolution == "continuous":
        return Runs(begin, np.asarray(interval * config.delta), config.span / count)
    span = int(config.span)
    # floor(span * k / (count - 1)) reaches v at k = ceil(v * (count - 1) / span); in short intervals it skips some v.
    values = np.minimum(count, span + 1)
    of = np.repeat(np.arange(len(count)), values)
    v = np.arange(len(of)) - np.repeat(np.cumsum(values) - values, values)
    k = np.where(count[of] <= span, v, -(-v * (count[of] - 1) // span))
    first = interval[of] * config.delta + span * k // np.maximum(count[of] - 1, 1)
    return Runs(begin[of] + k, first.astype(float), np.zeros(len(k)))


def rotations(positions: Float[np.ndarray, " P"], width: int, config: QHeadConfig) -> Complex64[np.ndarray, "P W"]:
    """exp(-i p w) of every coordinate pair, for vectors of ``width`` seen as width / 2 complex numbers."""
    half = width // config.halves
    frequency = config.theta ** (-np.arange(0, half, 2) / half)
    return np.exp(-1j * np.outer(positions, np.tile(frequency, config.halves))).astype(np.complex64)


def rotate_state(state: Float[np.ndarray, " D"], positions: Float[np.ndarray, " P"], config: QHeadConfig) -> Float[np.ndarray, "P D"]:
    """R(-p) s for every p."""
    pairs = np.ascontiguousarray(state, np.float32).view(np.complex64)
    return (pairs * rotations(positions, len(state), config)).view(np.float32)


def scan(
    rows: Rows, states: Float[np.ndarray, "B D"], picked: Sequence[Sequence[int]], config: QHeadConfig, restarts: Sequence[int] = (0,)
) -> Float[np.ndarray, "B N"]:
    """Q of every chunk (also of picked ones) in each of B states, in one pass over ``rows``, part by part.

    ``restarts``: see :func:`runs`.
    """
    q = np.empty((len(states), len(rows)), np.float32)
    cut = [runs(picks, len(rows), config, restarts) for picks in picked]
    if len(restarts) > 1 and max(len(found.start) for found in cut) * SHORT > len(rows):
        return _scan_rows(rows, states, cut, config, q)
    turned = [rotate_state(state, found.first, config) for state, found in zip(states, cut, strict=True)]
    even = not any(found.step.any() for found in cut)
    # The chunks where any question's position changes, and which of its rotated states each question uses from there on.
    starts = np.unique(np.concatenate([found.start for found in cut]))
    at = np.stack([np.searchsorted(found.start, starts, side="right") - 1 for found in cut], axis=1)
    columns, offsets = np.concatenate(turned), np.cumsum([0, *(len(vectors) for vectors in turned[:-1])])
    tables: dict[float, np.ndarray] = {}
    for begin, end in rows.parts():
        block = rows.block(begin, end)
        first, last = (int(np.searchsorted(starts, x, side=side)) for x, side in ((begin, "right"), (end, "left")))  # type: ignore[call-overload]
        edges = [begin, *starts[first:last].tolist(), end]
        for i, (a, b) in enumerate(pairwise(edges), first - 1):
            part = block[a - begin : b - begin]
            if not even:
                for row, (found, vectors, k) in enumerate(zip(cut, turned, at[i], strict=True)):
                    _graded(part, vectors[k], a - int(found.start[k]), float(found.step[k]), tables, config, q[row, a:b])
            elif len(states) == 1:
                np.dot(part, columns[i], out=q[0, a:b])
            else:
                q[:, a:b] = (part @ columns[at[i] + offsets].T).T
    return q


def _scan_rows(
    rows: Rows, states: Float[np.ndarray, "B D"], cut: Sequence[Runs], config: QHeadConfig, out: Float[np.ndarray, "B N"]
) -> Float[np.ndarray, "B N"]:
    """:func:`scan` of many short runs, as of an index of short documents: one rotated state per row, computed once per position."""
    for begin, end in rows.parts():
        block = rows.block(begin, end)
        for a in range(begin, end, TURNED):
            part = block[a - begin : a - begin + TURNED]
            for state, found, q in zip(states, cut, out, strict=True):
                position, at = np.unique(found.positions(a, a + len(part)), return_inverse=True)
                np.einsum("rd,rd->r", part, rotate_state(state, position, config)[at], out=q[a : a + len(part)])
    return out


def _graded(
    part: Float[np.ndarray, "R D"],
    vector: Float[np.ndarray, " D"],
    offset: int,
    step: float,
    tables: dict[float, np.ndarray],
    config: QHeadConfig,
    out: Float[np.ndarray, " R"],
) -> None:
    """Scores rows whose positions grow by ``step``: the state is rotated for each row. ``vector`` is the state rotated to the run's first
    position, which is ``offset`` rows before ``part``."""
    if step not in tables:
        tables.clear()
        tables[step] = rotations(step * np.arange(TURNED), part.shape[1], config)
    for a in range(0, len(part), TURNED):
        rows = part[a : a + TURNED]
        begin = rotate_state(vector, np.array([step * (offset + a)]), config)[0].view(np.complex64)
        np.einsum("rd,rd->r", rows, (begin * tables[step][: len(rows)]).view(np.float32), out=out[a : a + TURNED])


class Hidden:
    """What a search may not pick: chunks outside ``allowed`` (None: all are allowed), picked chunks, and their ``equals``."""

    def __init__(self, allowed: Bool[np.ndarray, " N"] | None = None, equals: Callable[[int], Sequence[int]] | None = None) -> None:
        self.allowed = allowed
        self._equals = lru_cache(maxsize=4096)(equals) if equals else lambda chunk: ()

    def of(self, picks: Sequence[int]) -> list[int]:
        """The picks and the chunks that are equal to one of them, each once."""
        return list(dict.fromkeys([*picks, *(same for pick in picks for same in self._equals(pick))]))


class HostScorer:
    """Scores a document on the CPU and reads its rows in place. ``restarts``: see :func:`runs`."""

    def __init__(self, rows: Rows, config: QHeadConfig, hidden: Hidden | None = None, restarts: Sequence[int] = (0,)) -> None:
        self._rows, self._config, self._hidden, self._restarts = rows, config, hidden or Hidden(), restarts

    def __call__(self, states: Float[np.ndarray, "B D"], picked: Sequence[Sequence[int]], top: int, bins: int = 0) -> list[Look]:
        """The ``top`` best chunks for each of B states with the given picks; fewer if fewer are left."""
        q = scan(self._rows, states, picked, self._config, self._restarts)
        allowed, found = self._hidden.allowed, []
        for row, picks in zip(q, picked, strict=True):
            if allowed is not None:
                row[~allowed] = -np.inf
            found.append(look(row, self._hidden.of(picks), top, bins))
        return found


def look(q: Float[np.ndarray, " N"], hidden: Sequence[int], top: int, bins: int) -> Look:
    """The best chunks that are neither hidden nor of Q minus infinity; of equal ones, the first. Overwrites Q of the hidden ones.
    Raises ValueError on NaN."""
    if np.isnan(q.min(initial=np.inf)):  # NaN is never among the best, so it would hide
        raise ValueError(NOT_FINITE)
    q[list(hidden)] = -np.inf
    top = min(top, len(q) - len(hidden))
    if top == 0:
        best = np.zeros(0, int)
    elif top == 1:
        best = np.array([np.argmax(q)])
    else:
        least = np.partition(q, -top)[-top]
        best = np.flatnonzero((q >= least) & ~np.isneginf(q))
        best = best[np.lexsort((best, -q[best]))[:top]]
    best = best[~np.isneginf(q[best])]
    curve = None
    if bins:
        curve = np.maximum.reduceat(q, stretches(len(q), bins))
        curve[np.isneginf(curve)] = np.nan
    return Look(tuple(best.tolist()), tuple(q[best].tolist()), curve)


def stretches(length: int, bins: int) -> Int[np.ndarray, " bins"]:
    """The first chunk of each of ``bins`` equal stretches of a document; there are at most as many as chunks."""
    bins = min(bins, length)
    return np.arange(bins) * length // bins
