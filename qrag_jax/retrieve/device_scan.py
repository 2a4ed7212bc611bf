"""The scan on accelerators: rows are split over the local devices, and the best chunks of each device are merged on all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, Int

from qrag_jax.config import QHeadConfig
from qrag_jax.retrieve.scan import Hidden, runs, stretches
from qrag_jax.retrieve.types import Look, Rows
from qrag_jax.rl.qhead import q_halves, rotate

BLOCK = 2**16  # rows a device reads at once
SMALLEST = 2**10  # rows of the block of a small document
RESIDENT = 0.6  # share of the devices' free memory that a document may occupy; a larger one is streamed at every step
AXIS = "rows"


class DeviceScorer:
    """Scores a document on ``devices`` (default: all local ones). If its rows fit, they stay there; else they are streamed in blocks.

    ``restarts``: see :func:`~qrag_jax.retrieve.scan.runs`.
    """

    def __init__(
        self,
        rows: Rows,
        config: QHeadConfig,
        devices: Sequence[jax.Device] | None = None,
        *,
        block: int = BLOCK,
        resident: bool | None = None,
        hidden: Hidden | None = None,
        restarts: Sequence[int] = (0,),
    ) -> None:
        self._hidden = hidden or Hidden()
        self._rows, self._config, self._restarts = rows, config, restarts
        self._mesh = Mesh(np.array(devices or jax.local_devices()), (AXIS,))
        self._block = min(block, _padded(-(-len(rows) // self._mesh.size), SMALLEST)) * self._mesh.size
        self._step = _make_step(self._mesh, config)
        if resident is None:
            resident = len(rows) * rows.width * 4 <= RESIDENT * sum(map(_free, self._mesh.devices.flat))
        self._kept = list(self._blocks()) if resident else None

    def _blocks(self) -> Iterator[jax.Array]:
        """Blocks of one shape, the last padded with zeros. A block is sent while the devices work on the one before it."""
        sharding = NamedSharding(self._mesh, P(AXIS))
        for start in range(0, len(self._rows), self._block):
            block = self._rows.block(start, min(start + self._block, len(self._rows)))
            yield jax.device_put(np.pad(block, ((0, self._block - len(block)), (0, 0))), sharding)

    def __call__(self, states: Float[np.ndarray, "B D"], picked: Sequence[Sequence[int]], top: int, bins: int = 0) -> list[Look]:
        """As :class:`~qrag_jax.retrieve.scan.HostScorer`."""
        length, asked = len(self._rows), len(picked)
        more = _padded(asked, 1) - asked  # few sizes here, too
        states, picked = np.concatenate([states, states[-1:].repeat(more, 0)]), [*picked, *[picked[-1]] * more]
        top = min(top, length - max(len(picks) for picks in picked))
        cut = [runs(picks, length, self._config, self._restarts) for picks in picked]
        # Runs of several documents share positions: the state is rotated once for each of them.
        at, columns = zip(*(np.unique(found.first, return_inverse=True) for found in cut), strict=True)
        starts = _table([found.start for found in cut], length).astype(np.int32)
        grows = _table([found.step for found in cut], 0).astype(np.float32)
        columns, at = _table(columns, 0).astype(np.int32), _table(at, 0).astype(np.float32)
        gone = [self._hidden.of(picks) for picks in picked]
        taken = np.full((len(picked), _padded(max(len(hidden) for hidden in gone), 8)), length, np.int32)
        for row, picks in enumerate(gone):
            taken[row, : len(picks)] = picks
        edges = jnp.asarray(stretches(length, bins) if bins else np.zeros(1), jnp.int32)
        best = (
            jnp.full((len(picked), top), -jnp.inf),
            jnp.full((len(picked), top), length, jnp.int32),
            jnp.full((len(picked), len(edges)), -jnp.inf),
        )
        for number, block in enumerate(self._kept or self._blocks()):
            allowed = self._allowed(number * self._block)
            best = self._step(
                block, allowed, number * self._block, length, jnp.asarray(states), starts, columns, at, grows, taken, edges, best
            )
        q, chunks, curve = jax.device_get(best)
        curve = np.where(np.isneginf(curve), np.nan, curve)
        found = []
        for chunk, value, row in zip(chunks[:asked], q, curve, strict=False):
            left = ~np.isneginf(value)
            found.append(Look(tuple(chunk[left].tolist()), tuple(value[left].tolist()), row if bins else None))
        return found

    def _allowed(self, start: int) -> np.ndarray:
        """Which rows of the block from ``start`` on may be picked."""
        allowed = self._hidden.allowed
        part = np.ones(self._block, bool) if allowed is None else allowed[start : start + self._block]
        return np.pad(part, (0, self._block - len(part)))


def _table(parts: Sequence[np.ndarray], empty: int) -> np.ndarray:
    """Rows of different lengths in one array, filled up to one of few widths."""
    size = _padded(max(map(len, parts)), 64)
    return np.stack([np.pad(part, (0, size - len(part)), constant_values=empty) for part in parts])


def _padded(count: int, least: int) -> int:
    """Few sizes, so that the steps of a search share one program. The ``least`` are those of three picks."""
    return max(least, 1 << (count - 1).bit_length())


def _free(device: jax.Device) -> float:
    """Bytes of a device's memory that are free; infinity if it does not tell."""
    memory = device.memory_stats() or {}
    return memory.get("bytes_limit", float("inf")) - memory.get("bytes_in_use", 0)


@lru_cache(maxsize=16)
def _make_step(mesh: Mesh, config: QHeadConfig) -> Callable[..., Any]:
    """One block for B states, compiled once for all documents.

    (block, its rows that may be picked, its first row, N, states, S runs, the P positions at which they begin and the one of each, picks,
    edges of the curve, best so far) -> best so far.
    """
    constant = config.positions == "none" or (config.positions == "relative" and config.position_resolution == "integer")

    @jax.jit
    @partial(jax.shard_map, mesh=mesh, in_specs=(P(AXIS), P(AXIS), *[P()] * 10), out_specs=P(), check_vma=False)
    def step(
        block: Float[Array, "R D"],
        allowed: Bool[Array, " R"],
        begin: Int[Array, ""],
        length: Int[Array, ""],
        states: Float[Array, "B D"],
        starts: Int[Array, "B S"],
        columns: Int[Array, "B S"],
        at: Float[Array, "B P"],
        grows: Float[Array, "B S"],
        taken: Int[Array, "B T"],
        edges: Int[Array, " bins"],
        best: tuple[Array, Array, Array],
    ) -> tuple[Array, Array, Array]:
        count = block.shape[0]
        row = begin + jax.lax.axis_index(AXIS) * count + jnp.arange(count)
        stretch = jnp.searchsorted(edges, row, side="right") - 1
        top = best[0].shape[1]

        def one(question: tuple[Array, ...]) -> tuple[Array, Array, Array]:
            state, start, column, at, grow, picks = question
            run = jnp.searchsorted(start, row, side="right") - 1
            if constant:
                turned = rotate(jnp.broadcast_to(state, (len(at), len(state))), -at, config)
                every = jnp.matmul(block, turned.T, precision=jax.lax.Precision.HIGHEST)
                q = jnp.take_along_axis(every, column[run][:, None], axis=1)[:, 0]
            else:
                q = q_halves(state, block, at[column[run]] + grow[run] * (row - start[run]), config).sum(-1)
            q = jnp.where(allowed & (row < length) & (row[:, None] != picks).all(1), q, -jnp.inf)
            value, place = jax.lax.top_k(q, min(top, count))
            return value, row[place], jnp.full(edges.shape, -jnp.inf).at[stretch].max(q)

        q, chunk, curve = jax.lax.map(one, (states, starts, columns, at, grows, taken))
        gather = lambda x: jax.lax.all_gather(x, AXIS, axis=1, tiled=True)
        q, chunk = jnp.concatenate([best[0], gather(q)], axis=1), jnp.concatenate([best[1], gather(chunk)], axis=1)
        q, place = jax.lax.top_k(q, top)
        return q, jnp.take_along_axis(chunk, place, axis=1), jnp.maximum(best[2], jax.lax.pmax(curve, AXIS))

    return step
