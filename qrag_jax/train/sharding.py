"""Where each array of a train state lies when the state is split over the devices (``train.shard_state`` = full).

The rule stands in one place, :func:`specs`. It needs only shapes, so it serves arrays, plans and checkpoints alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from qrag_jax.config import TrainConfig
from qrag_jax.rl.learner import TrainState
from qrag_jax.rl.shards import Shard, is_shard
from qrag_jax.rundir.hosts import is_leader

AXIS = "episodes"
SHARE = 0.5  # "auto" splits the state if a copy of it would take more than this share of a device's memory
ShardState = Literal["none", "full"]


def split_axis(shape: tuple[int, ...], count: int) -> int | None:
    """The longest axis that ``count`` devices can share evenly; None: every device holds the whole array.

    Only arrays of two or more axes are split, which are nearly all bytes of a state. An encoder uses those in its compute dtype, but
    scales of norms in float32 (:func:`qrag_jax.rl.shards.gather`).
    """
    fitting = [axis for axis, size in enumerate(shape) if size % count == 0 and size > 0]
    return max(fitting, key=lambda axis: shape[axis]) if len(shape) >= 2 and count > 1 and fitting else None


def specs(tree: Any, count: int) -> Any:
    """The PartitionSpec of each leaf (array or shape) of a state over ``count`` devices."""

    def one(leaf: Any) -> PartitionSpec:
        axis = split_axis(leaf.shape, count)
        return PartitionSpec() if axis is None else PartitionSpec(*[None] * axis, AXIS)

    return jax.tree.map(one, tree)


def shardings(tree: Any, mesh: Mesh) -> Any:
    return jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs(tree, mesh.size))


def placed_shapes(mesh: Mesh, tree: Any) -> Any:
    """Shapes of a state, with where its arrays lie."""
    put = lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
    return jax.tree.map(put, tree, shardings(tree, mesh))


def on_shards(function: Callable[..., Any], where: Any, returns_state: bool) -> Callable[..., Any]:
    """``function(state, ...)`` on a tree with shards, for a device's plain parts of a state; ``where``: the state's :func:`specs`.

    With ``returns_state`` the result is (state, metrics).
    """

    def call(state: Any, *rows: Any) -> Any:
        found = function(jax.tree.map(lambda x, spec: Shard(x, len(spec) - 1, AXIS) if len(spec) else x, state, where), *rows)
        if not returns_state:
            return found
        return jax.tree.map(lambda x: x.part if is_shard(x) else x, found[0], is_leaf=is_shard), *found[1:]

    return call


def place(mesh: Mesh, state: TrainState) -> TrainState:
    """A host state on the devices of ``mesh``, each of which receives its part only. With several processes, process 0's state.

    Arrays are placed one after the other, so that processes, which exchange whole arrays, never hold more than one of them on a device.
    Those that lie in their place already, read from a checkpoint, stay there.
    """

    def one(leaf: Any, sharding: NamedSharding) -> jax.Array:
        if isinstance(leaf, jax.Array) and leaf.sharding == sharding:
            return leaf
        # On a CPU, an array on a device may be a view of the host's, which the next update would overwrite: so copy.
        whole = np.array(multihost_utils.broadcast_one_to_all(leaf) if jax.process_count() > 1 else leaf)
        return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index].copy())

    plain = replace(state, key=jax.random.key_data(state.key))
    placed = jax.tree.map(one, plain, replace(shardings(state, mesh), key=NamedSharding(mesh, PartitionSpec())))
    return replace(placed, key=jax.random.wrap_key_data(placed.key))


def fetch(tree: Any) -> Any:
    """A copy on the host of process 0, put together from the parts, so that no device holds the whole. All processes call it together.

    The others get None for each array. With several processes, one whole array after the other is on each device for a moment.
    """

    def one(leaf: Any) -> Any:
        if leaf.is_fully_replicated:
            return jax.device_get(leaf.addressable_data(0)) if is_leader() else None
        if jax.process_count() == 1:
            return jax.device_get(leaf)
        whole = multihost_utils.process_allgather(leaf, tiled=True)
        return whole if is_leader() else None

    return jax.tree.map(one, tree)


def state_bytes(state: Any, count: int = 1) -> int:
    """Bytes of a state (arrays or shapes) on one device, if it is split over ``count`` devices. 1: of a whole copy."""
    size = lambda leaf: math.prod(leaf.shape) * getattr(leaf.dtype, "itemsize", 8)
    split = lambda leaf: 1 if split_axis(leaf.shape, count) is None else count
    return sum(size(leaf) // split(leaf) for leaf in jax.tree.leaves(state))


def choose_shard_state(config: TrainConfig, state: Any, devices: tuple[jax.Device, ...]) -> tuple[ShardState, str]:
    """What ``train.shard_state`` means for this state on these devices, and a line that says so; "" if there is nothing to say.

    "auto" splits the state over the devices if a copy of it takes more than SHARE of a device's memory.
    """
    if config.shard_state == "none":
        return "none", ""
    whole, parts = state_bytes(state), state_bytes(state, len(devices))
    label = f"train.shard_state = {config.shard_state}"
    if len(devices) == 1:
        return "none", f"{label}: nothing is split, because there is one device; it holds the whole state, {_size(whole)}"
    if config.shard_state == "full":
        return "full", f"{label}: {_size(parts)} of the state's {_size(whole)} on each of {len(devices)} devices"
    if config.parallel == "pmap":
        return "none", f"{label}: every device holds the whole state, {_size(whole)}, because of train.parallel = pmap"
    limits = [limit for device in devices if (limit := device_memory(device)) is not None]
    if not limits:
        return "none", f"{label}: every device holds the whole state, {_size(whole)}, because the memory of a device is not known here"
    limit = min(limits)
    if whole > SHARE * limit:
        found = f"a copy of the state, {_size(whole)}, takes more than {SHARE:.0%} of a device's {_size(limit)}"
        return "full", f"{label}: {found}; each of {len(devices)} devices holds {_size(parts)}"
    return "none", f"{label}: every device holds the whole state, {_size(whole)}, at most {SHARE:.0%} of its {_size(limit)}"


def device_memory(device: jax.Device) -> int | None:
    """Bytes that JAX may use on a device of this process; None if unknown, as on a CPU."""
    if device.process_index != jax.process_index():
        return None
    return (device.memory_stats() or {}).get("bytes_limit")


def _size(count: int) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 / 10 else f"{count / 2**20:.2f} MiB"
