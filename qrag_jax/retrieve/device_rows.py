"""The rows of a document on the devices that scan them: each device has consecutive rows, and no process reads those of another one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Bool

from qrag_jax.retrieve.types import Rows

BLOCK = 2**16  # rows a device reads at once
SMALLEST = 2**10  # rows of the block of a small document
RESIDENT = 0.6  # share of the devices' free memory that a document may occupy; a larger one is streamed at every step
AXIS = "rows"


class DeviceRows:
    """``rows`` on ``devices`` (default: all of this process), which may belong to several processes.

    Of n devices, device d has the rows from ``d * share`` on, in blocks of ``block`` rows; the last ones are padded with zeros. If
    they fit, they stay on the devices; else they are streamed. With devices of several processes, each makes the same object and reads
    only its own rows.
    """

    def __init__(
        self, rows: Rows, devices: Sequence[jax.Device] | None = None, *, block: int = BLOCK, resident: bool | None = None
    ) -> None:
        self.rows = rows
        self.mesh = Mesh(np.array(devices or jax.local_devices()), (AXIS,))
        self.share = -(-len(rows) // self.mesh.size)
        self.block = min(block, padded(self.share, SMALLEST))
        self.begins = range(0, self.share, self.block)
        if resident is None:
            own = self.mesh.local_devices
            resident = self.share * rows.width * 4 * len(own) <= RESIDENT * sum(map(_free, own))
        self.kept = list(self._read()) if resident else None

    def blocks(self) -> Iterator[jax.Array]:
        """For each of ``begins``, the block of every device from there on in its rows: [n * block, D], split over the devices."""
        return iter(self.kept) if self.kept is not None else self._read()

    def _read(self) -> Iterator[jax.Array]:
        """A block is sent while the devices work on the one before it."""
        return (self._placed(begin, (self.rows.width,), np.dtype(np.float32), self.rows.block) for begin in self.begins)

    def masks(self, allowed: Bool[np.ndarray, " N"] | None) -> list[jax.Array]:
        """Which rows of each block are ``allowed`` (None: all), placed as the blocks are."""
        if allowed is None:
            every = self._placed(0, (), np.dtype(bool), lambda start, end: np.ones(end - start, bool))
            return [every] * len(self.begins)
        return [self._placed(begin, (), np.dtype(bool), lambda start, end: allowed[start:end]) for begin in self.begins]

    def _placed(self, begin: int, shape: tuple[int, ...], dtype: np.dtype, read: Callable[[int, int], np.ndarray]) -> jax.Array:
        def part(index: tuple[slice, ...] | None) -> np.ndarray:
            assert index is not None
            first = (index[0].start or 0) // self.block * self.share
            start, end = (min(first + at, first + self.share, len(self.rows)) for at in (begin, begin + self.block))
            if end - start == self.block:
                return read(start, end)
            out = np.zeros((self.block, *shape), dtype)
            if end > start:
                out[: end - start] = read(start, end)
            return out

        sharding = NamedSharding(self.mesh, P(AXIS))
        return jax.make_array_from_callback((self.mesh.size * self.block, *shape), sharding, part)


@lru_cache(maxsize=64)
def on_each(mesh: Mesh, value: Any, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """[n, *shape], filled with ``value``: one array of ``shape`` on each of n devices."""
    filled = np.full((1, *shape), value, dtype)
    return jax.make_array_from_callback((mesh.size, *shape), NamedSharding(mesh, P(AXIS)), lambda index: filled)


def padded(count: int, least: int) -> int:
    """Few sizes, so that the steps of a search share one program. The ``least`` are those of three picks."""
    return max(least, 1 << (count - 1).bit_length())


def _free(device: jax.Device) -> float:
    """Bytes of a device's memory that are free; infinity if it does not tell."""
    memory = device.memory_stats() or {}
    return memory.get("bytes_limit", float("inf")) - memory.get("bytes_in_use", 0)
