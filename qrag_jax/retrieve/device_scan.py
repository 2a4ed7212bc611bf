"""The scan on accelerators: each device finds the best of its own rows, and the best of all devices are merged on all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, Int

from qrag_jax.config import QHeadConfig
from qrag_jax.retrieve.device_rows import AXIS, DeviceRows, on_each, padded
from qrag_jax.retrieve.scan import Hidden, runs, stretches
from qrag_jax.retrieve.types import Look
from qrag_jax.rl.qhead import q_halves, rotate


class DeviceScorer:
    """Scores the document whose rows are ``placed`` on devices. If these belong to several processes, all make the same calls, and each
    gets the same result: collectives carry the best chunks, never rows.

    ``restarts``: see :func:`~qrag_jax.retrieve.scan.runs`.
    """

    def __init__(self, placed: DeviceRows, config: QHeadConfig, hidden: Hidden | None = None, restarts: Sequence[int] = (0,)) -> None:
        self._placed, self._config, self._hidden, self._restarts = placed, config, hidden or Hidden(), restarts
        self._allowed = placed.masks(self._hidden.allowed)
        self._step, self._merge = _make_step(placed.mesh, config), _make_merge(placed.mesh)

    def __call__(self, states: Float[np.ndarray, "B D"], picked: Sequence[Sequence[int]], top: int, bins: int = 0) -> list[Look]:
        """As :class:`~qrag_jax.retrieve.scan.HostScorer`."""
        placed, length, asked = self._placed, len(self._placed.rows), len(picked)
        more = padded(asked, 1) - asked  # few sizes here, too
        states, picked = np.concatenate([states, states[-1:].repeat(more, 0)]), [*picked, *[picked[-1]] * more]
        top = min(top, length - max(len(picks) for picks in picked))
        cut = [runs(picks, length, self._config, self._restarts) for picks in picked]
        # Runs of several documents share positions: the state is rotated once for each of them.
        at, columns = zip(*(np.unique(found.first, return_inverse=True) for found in cut), strict=True)
        starts = _table([found.start for found in cut], length).astype(np.int32)
        grows = _table([found.step for found in cut], 0).astype(np.float32)
        columns, at = _table(columns, 0).astype(np.int32), _table(at, 0).astype(np.float32)
        gone = [self._hidden.of(picks) for picks in picked]
        taken = np.full((len(picked), padded(max(len(hidden) for hidden in gone), 8)), length, np.int32)
        for row, picks in enumerate(gone):
            taken[row, : len(picks)] = picks
        edges = (stretches(length, bins) if bins else np.zeros(1)).astype(np.int32)
        nothing, where = partial(on_each, placed.mesh, float("-inf"), dtype=np.float32), (len(picked), top)
        best = nothing(where), on_each(placed.mesh, length, where, np.int32), nothing((len(picked), len(edges)))
        whole = np.array([placed.share, length], np.int32)
        for begin, block, allowed in zip(placed.begins, placed.blocks(), self._allowed, strict=True):
            best = self._step(block, allowed, np.int32(begin), whole, states, starts, columns, at, grows, taken, edges, best)
        q, chunks, curve = jax.device_get(self._merge(best))
        curve = np.where(np.isneginf(curve), np.nan, curve)
        found = []
        for chunk, value, row in zip(chunks[:asked], q, curve, strict=False):
            left = ~np.isneginf(value)
            found.append(Look(tuple(chunk[left].tolist()), tuple(value[left].tolist()), row if bins else None))
        return found


def _table(parts: Sequence[np.ndarray], empty: int) -> np.ndarray:
    """Rows of different lengths in one array, filled up to one of few widths."""
    size = padded(max(map(len, parts)), 64)
    return np.stack([np.pad(part, (0, size - len(part)), constant_values=empty) for part in parts])


@lru_cache(maxsize=16)
def _make_step(mesh: Mesh, config: QHeadConfig) -> Callable[..., Any]:
    """One block of each device for B states, compiled once for all documents. Nothing passes between devices.

    (block, its rows that may be picked, its place in the rows of a device, rows of a device and of all, states, S runs, the P positions at
    which they begin and the one of each, picks, edges of the curve, best so far of each device) -> best so far of each device.
    """
    constant = config.positions == "none" or (config.positions == "relative" and config.position_resolution == "integer")

    @jax.jit
    @partial(jax.shard_map, mesh=mesh, in_specs=(P(AXIS), P(AXIS), *[P()] * 9, P(AXIS)), out_specs=P(AXIS), check_vma=False)
    def step(
        block: Float[Array, "R D"],
        allowed: Bool[Array, " R"],
        begin: Int[Array, ""],
        whole: Int[Array, " 2"],
        states: Float[Array, "B D"],
        starts: Int[Array, "B S"],
        columns: Int[Array, "B S"],
        at: Float[Array, "B P"],
        grows: Float[Array, "B S"],
        taken: Int[Array, "B T"],
        edges: Int[Array, " bins"],
        best: tuple[Array, Array, Array],
    ) -> tuple[Array, Array, Array]:
        count, (share, length) = block.shape[0], whole
        place = begin + jnp.arange(count)
        row = jax.lax.axis_index(AXIS) * share + place
        own = allowed & (place < share) & (row < length)
        stretch = jnp.searchsorted(edges, row, side="right") - 1
        top = best[0].shape[2]

        def one(question: tuple[Array, ...]) -> tuple[Array, Array, Array]:
            state, start, column, at, grow, picks = question
            run = jnp.searchsorted(start, row, side="right") - 1
            if constant:
                turned = rotate(jnp.broadcast_to(state, (len(at), len(state))), -at, config)
                every = jnp.matmul(block, turned.T, precision=jax.lax.Precision.HIGHEST)
                q = jnp.take_along_axis(every, column[run][:, None], axis=1)[:, 0]
            else:
                q = q_halves(state, block, at[column[run]] + grow[run] * (row - start[run]), config).sum(-1)
            q = jnp.where(own & (row[:, None] != picks).all(1), q, -jnp.inf)
            value, found = jax.lax.top_k(q, min(top, count))
            return value, row[found], jnp.full(edges.shape, -jnp.inf).at[stretch].max(q)

        q, chunk, curve = jax.lax.map(one, (states, starts, columns, at, grows, taken))
        # Equal ones keep their order, and what was found before has the lower numbers.
        q, chunk = jnp.concatenate([best[0][0], q], axis=1), jnp.concatenate([best[1][0], chunk], axis=1)
        q, found = jax.lax.top_k(q, top)
        return q[None], jnp.take_along_axis(chunk, found, axis=1)[None], jnp.maximum(best[2][0], curve)[None]

    return step


@lru_cache(maxsize=16)
def _make_merge(mesh: Mesh) -> Callable[..., Any]:
    """The best of each device -> the best of all, on every device. Of equal ones, those of the first device have the lower numbers."""

    @jax.jit
    @partial(jax.shard_map, mesh=mesh, in_specs=P(AXIS), out_specs=P(), check_vma=False)
    def merge(best: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        q, chunk, curve = (part[0] for part in best)
        gather = lambda part: jax.lax.all_gather(part, AXIS, axis=1, tiled=True)
        value, found = jax.lax.top_k(gather(q), q.shape[1])
        return value, jnp.take_along_axis(gather(chunk), found, axis=1), jax.lax.pmax(curve, AXIS)

    return merge
