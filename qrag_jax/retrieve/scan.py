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


@dataclass(frozen=True)
class Runs:
    """A document, cut into runs of evenly growing positions: run i begins at chunk ``start[i]`` with position ``first[i]``, which grows by
    ``step[i]`` per chunk."""

    start: Int[np.ndarray, " S"]
    first: Float[np.ndarray, " S"]
    step: Float[np.ndarray, " S"]

    def position(self, chunk: int) -> float:
        i = int(np.searchsorted(self.start, chunk, side="right")) - 1
        return float(self.first[i] + self.step[i] * (chunk - self.start[i]))


def runs(picked: Sequence[int], length: int, config: QHeadConfig) -> Runs:
    """The positions of :func:`qrag_jax.rl.positions.chunk_positions` for a document of ``length`` chunks, ``picked`` ones taken, as runs.

    "random" positions are the index itself here: an offset is drawn only in training.
    """
    if config.positions != "relative":
        grows = 0.0 if config.positions == "none" else 1.0
        return Runs(np.zeros(1, np.int64), np.zeros(1), np.full(1, grows))
    cuts = sorted(picked)
    start, first, step = [], [], []
    for j, (begin, end) in enumerate(zip([0, *cuts], [*cuts, length], strict=True)):
        count = end - begin
        if not count:
            continue
        if config.position_resolution == "continuous":
            start.append(np.array([begin]))
            first.append(np.array([j * config.delta]))
            step.append(np.array([config.span / count]))
            continue
        span = int(config.span)
        # floor(span * k / (count - 1)) reaches v at k = ceil(v * (count - 1) / span); in short intervals it skips some v.
        k = np.arange(count) if count <= span else -(-np.arange(span + 1) * (count - 1) // span)
        start.append(begin + k)
        first.append(j * config.delta + span * k // max(count - 1, 1))
        step.append(np.zeros(len(k)))
    return Runs(np.concatenate(start), np.concatenate(first).astype(float), np.concatenate(step))


def rotations(positions: Float[np.ndarray, " P"], width: int, config: QHeadConfig) -> Complex64[np.ndarray, "P W"]:
    """exp(-i p w) of every coordinate pair, for vectors of ``width`` seen as width / 2 complex numbers."""
    half = width // config.halves
    frequency = config.theta ** (-np.arange(0, half, 2) / half)
    return np.exp(-1j * np.outer(positions, np.tile(frequency, config.halves))).astype(np.complex64)


def rotate_state(state: Float[np.ndarray, " D"], positions: Float[np.ndarray, " P"], config: QHeadConfig) -> Float[np.ndarray, "P D"]:
    """R(-p) s for every p."""
    pairs = np.ascontiguousarray(state, np.float32).view(np.complex64)
    return (pairs * rotations(positions, len(state), config)).view(np.float32)


def scan(rows: Rows, states: Float[np.ndarray, "B D"], picked: Sequence[Sequence[int]], config: QHeadConfig) -> Float[np.ndarray, "B N"]:
    """Q of every chunk of one document (also of picked ones) in each of B states, in one pass over ``rows``, part by part."""
    q = np.empty((len(states), len(rows)), np.float32)
    cut = [runs(picks, len(rows), config) for picks in picked]
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
    """Scores a document on the CPU and reads its rows in place."""

    def __init__(self, rows: Rows, config: QHeadConfig, hidden: Hidden | None = None) -> None:
        self._rows, self._config, self._hidden = rows, config, hidden or Hidden()

    def __call__(self, states: Float[np.ndarray, "B D"], picked: Sequence[Sequence[int]], top: int, bins: int = 0) -> list[Look]:
        """The ``top`` best chunks for each of B states with the given picks; fewer if fewer are left."""
        q = scan(self._rows, states, picked, self._config)
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
        raise ValueError("Q is not finite: the model or the index gives NaN; its weights or vectors are unusable")
    q[list(hidden)] = -np.inf
    top = min(top, len(q) - len(hidden))
    if top == 0:
        best = np.zeros(0, int)
    elif top == 1:
        best = np.array([np.argmax(q)])
    else:
        best = np.argpartition(-q, top - 1)[:top]
        best = best[np.lexsort((best, -q[best]))]
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
