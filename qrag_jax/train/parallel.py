"""The only file that names a device: how ``learner.update`` is spread over the devices of a run.

jit on one device; ``jax.pmap`` over the local devices of one host; jit + ``jax.shard_map`` over a mesh (on several hosts, or if chosen).
Each device holds the whole state or, in shard_map and if asked, its part of it (qrag_jax/train/sharding.py). A batch's episodes and pool
rows are split over the devices; each device then gathers the token rows of the whole pool. The state's buffers are donated.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

from qrag_jax.config import TrainConfig
from qrag_jax.rl.learner import Metrics, TrainState
from qrag_jax.rundir.hosts import barrier
from qrag_jax.train import sharding
from qrag_jax.train.sharding import AXIS, ShardState
from qrag_jax.types import WHOLE, Episode, Share, TaskBatch

Update = Callable[..., tuple[Any, Metrics]]


@dataclass(frozen=True)
class Parallel:
    """How a run uses its devices. ``place`` puts a host state on them, ``update`` updates it, ``fetch`` copies it back to the host.

    With several processes, all call these functions together. Each passes its own ``share`` of the batch to ``update``, and ``place`` gives
    all of them process 0's state. ``fetch`` copies a split state to process 0 only.
    """

    kind: str
    devices: tuple[jax.Device, ...]
    share: Share
    place: Callable[[TrainState], TrainState]
    update: Update
    fetch: Callable[[Any], Any]
    whole: Callable[[Any], Any]
    """A tree of a state, such as its parameters, whole on process 0's first device, until the next update: the copy there, if it holds one.
    If the state is split, the other processes get None for each array."""
    lower: Callable[[Any, Any], jax.stages.Lowered]
    """The update for a state and a whole batch of these shapes (``jax.eval_shape``), ready to compile. Nothing is allocated, and with jit
    or shard_map the devices need not be attached: those of ``jax.experimental.topologies`` will do. (pmap lowers for attached ones.)
    On attached devices, a later ``update`` of these shapes uses what was compiled; with pmap, if JAX's cache of compiled ones kept it."""
    parts: int = 1
    """Into how many parts the state is split over the devices; 1: every device holds all of it."""
    shapes: Callable[[Any], Any] = lambda tree: tree
    """Shapes of a tree of a state; with where its arrays lie, if the state is split."""


def on_host() -> AbstractContextManager[Any]:
    """Inside it JAX computes on this machine's CPU, unless JAX_PLATFORMS leaves it out."""
    try:
        host = jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        host = None
    return jax.default_device(host)


def choose_devices(config: TrainConfig, batch: int) -> tuple[jax.Device, ...]:
    """The devices of a run: the first ``config.devices`` (0: all), but one with "jit"; on several hosts all devices, host by host.

    Raises ValueError when there are fewer, when ``batch`` episodes cannot be divided evenly over them, or when the settings do not work
    on several hosts.
    """
    devices = jax.devices()
    if config.devices > len(devices):
        raise ValueError(f"train.devices = {config.devices}: only {len(devices)} {devices[0].platform} device(s) here; use 0 for all")
    if jax.process_count() > 1:
        _check_hosts(config, devices)
        chosen = tuple(sorted(devices, key=lambda device: (device.process_index, device.id)))
    else:
        chosen = tuple(devices[: 1 if config.parallel == "jit" else config.devices or len(devices)])
    if batch % len(chosen):
        raise ValueError(
            f"optim.batch = {batch}: does not divide over {len(chosen)} devices; use a multiple of {len(chosen)}, or fewer train.devices"
        )
    return chosen


def _check_hosts(config: TrainConfig, devices: list[jax.Device]) -> None:
    count = jax.process_count()
    if not jax.distributed.is_initialized():
        raise ValueError(f"{count} hosts share these devices, but were not started together: see docs/multihost.md, or use one host")
    if config.parallel not in ("auto", "shard_map"):
        raise ValueError(f"train.parallel = {config.parallel!r}: is for one process, but there are {count}; use auto")
    if config.devices not in (0, len(devices)):
        raise ValueError(f"train.devices = {config.devices}: {count} processes use all their devices, {len(devices)}; use 0")
    sizes = Counter(device.process_index for device in devices)
    if len(set(sizes.values())) > 1:
        raise ValueError(f"devices of the processes: {dict(sorted(sizes.items()))}; all must have the same number")


def make_parallel(function: Update, kind: str, devices: tuple[jax.Device, ...], shard_state: ShardState = "none") -> Parallel:
    """Wraps ``function(state, batch, axis_name)``, which returns a new state (or any replicated tree) and metrics.

    ``kind`` is ``TrainConfig.parallel``; ``devices`` come from :func:`choose_devices`. With ``shard_state`` "full", which needs several
    devices and shard_map ("auto" takes it), the state holds shards (:mod:`qrag_jax.rl.shards`), and ``function`` must return such a state.
    """
    count, kind = len(devices), _kind(kind, devices, shard_state)
    if kind == "jit":
        alone = jax.jit(function, donate_argnums=0)
        where = SingleDeviceSharding(devices[0])
        # The default device is not named: its arrays are not bound to it, and naming it would make another program of the same update.
        lower = alone.lower if devices[0] == jax.devices()[0] else _lower(alone, lambda tree: jax.tree.map(lambda _: where, tree), where)
        return Parallel("jit", devices, WHOLE, _own_buffers, alone, jax.device_get, lambda tree: tree, lower)
    spread = _gather_pool(function)
    mesh = Mesh(np.asarray(devices), (AXIS,))
    everywhere, split = (NamedSharding(mesh, spec) for spec in (PartitionSpec(), PartitionSpec(AXIS)))
    if kind == "pmap":
        step = jax.pmap(spread, AXIS, devices=devices, donate_argnums=0)
        # Placed in the way that pmap returns it; otherwise the second call would compile again.
        place = partial(_place_rows, split)
        lower = lambda state, batch: step.lower(
            *jax.eval_shape(lambda *trees: (_rows(trees[0], count), _split(trees[1], count)), state, batch)
        )
        return Parallel("pmap", devices, Share(devices=count), place, partial(_call_pmap, step, count), _fetch_first, _first, lower)
    share = Share(jax.process_index(), jax.process_count(), count)
    step = jax.jit(_over_mesh(spread, mesh, shard_state, 0), donate_argnums=0)
    call = _call_shard_map(step, split)
    if shard_state == "full":
        lower = _lower(step, partial(sharding.shardings, mesh=mesh), split)
        whole = lambda tree: jax.device_put(sharding.fetch(tree))
        place, shapes = partial(sharding.place, mesh), partial(sharding.placed_shapes, mesh)
        return Parallel("shard_map", devices, share, place, call, sharding.fetch, whole, lower, count, shapes)
    lower = _lower(step, lambda tree: jax.tree.map(lambda _: everywhere, tree), split)
    return Parallel("shard_map", devices, share, partial(_place, everywhere), call, _fetch, _first_copy, lower)


def _kind(kind: str, devices: tuple[jax.Device, ...], shard_state: ShardState) -> str:
    """jit, pmap or shard_map. Raises ValueError if that cannot hold a split state."""
    if kind == "auto":
        several = jax.process_count() > 1 or shard_state == "full"
        kind = "jit" if len(devices) == 1 else "shard_map" if several else "pmap"
    if shard_state == "full" and kind != "shard_map":
        raise ValueError(f"train.shard_state = 'full': needs several devices and train.parallel auto or shard_map, not {kind}")
    return kind


def _over_mesh(
    function: Callable[..., Any], mesh: Mesh, shard_state: ShardState, rows: int, returns_state: bool = True
) -> Callable[..., Any]:
    """``function(state, batch, *rows)`` on all devices of ``mesh``, with the state where ``shard_state`` puts it."""
    whole, split = PartitionSpec(), PartitionSpec(AXIS)
    spread = partial(jax.shard_map, mesh=mesh)
    if shard_state == "none":
        return spread(function, in_specs=(whole, *[split] * (rows + 1)), out_specs=whole if returns_state else split)

    def call(state: Any, *batch: Any) -> Any:
        where = sharding.specs(state, mesh.size)
        out = (where, whole) if returns_state else split
        inner = sharding.on_shards(function, where, returns_state)
        return spread(inner, in_specs=(where, *[split] * (rows + 1)), out_specs=out)(state, *batch)

    return call


def _lower(step: Any, of_state: Callable[[Any], Any], of_batch: Any) -> Callable[[Any, Any], jax.stages.Lowered]:
    """``Parallel.lower`` of a jitted ``step``; ``of_state``: shapes of a state -> its shardings."""
    put = lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    def lower(state: Any, batch: Any) -> jax.stages.Lowered:
        return cast(
            jax.stages.Lowered, step.lower(jax.tree.map(put, state, of_state(state)), jax.tree.map(lambda leaf: put(leaf, of_batch), batch))
        )

    return lower


@dataclass(frozen=True)
class Phases:
    """An update in two halves; the host computes rewards between them. Both take a state that :class:`Parallel` has placed.

    Rows of the episodes are [B, ...], or [devices, B / devices, ...] with pmap; rewards must have the same shape.
    """

    collect: Callable[[Any, TaskBatch], Episode]
    """(state, batch) -> episodes. The state is not donated."""
    learn: Callable[[Any, TaskBatch, Episode, np.ndarray], tuple[Any, Metrics]]
    """(state, batch, episodes, rewards) -> the new state and metrics."""


def make_phases(
    collect: Callable[..., Episode], learn: Update, kind: str, devices: tuple[jax.Device, ...], shard_state: ShardState = "none"
) -> Phases:
    """Wraps ``collect(state, batch, axis_name)`` and ``learn(state, batch, episode, rewards, axis_name)`` for the devices of one host.

    The other arguments are those of :func:`make_parallel`.
    """
    count, kind = len(devices), _kind(kind, devices, shard_state)
    if kind == "jit":
        return Phases(jax.jit(collect), jax.jit(learn, donate_argnums=0))
    collect, learn = _gather_pool(collect), _gather_pool(learn)
    if kind == "pmap":
        once = jax.pmap(collect, AXIS, devices=devices)
        last = jax.pmap(learn, AXIS, devices=devices, donate_argnums=0)
        return Phases(lambda state, batch: once(state, _split(batch, count)), partial(_call_pmap, last, count))
    mesh = Mesh(np.asarray(devices), (AXIS,))
    return Phases(
        jax.jit(_over_mesh(collect, mesh, shard_state, 0, returns_state=False)),
        jax.jit(_over_mesh(learn, mesh, shard_state, 2), donate_argnums=0),
    )


def _gather_pool(function: Callable[..., Any]) -> Callable[..., Any]:
    """``function(state, batch, ..., axis_name)`` for a batch whose pool rows are split over the devices."""

    def spread(state: TrainState, batch: TaskBatch, *rows: Any) -> Any:
        pool = jax.lax.all_gather(batch.chunk_pool_ids, AXIS, tiled=True)
        return function(state, replace(batch, chunk_pool_ids=pool), *rows, axis_name=AXIS)

    return spread


def _split(batch: TaskBatch, count: int) -> TaskBatch:
    """Rows [B, ...] -> [count, B / count, ...], the shape that pmap takes."""
    return jax.tree.map(lambda x: x.reshape(count, -1, *x.shape[1:]), batch)


def _own_buffers(state: TrainState) -> TrainState:
    """A copy whose buffers may be donated without destroying the caller's."""
    return jax.tree.map(lambda x: x.copy() if isinstance(x, jax.Array) else jnp.array(x), state)


def _rows(state: TrainState, count: int) -> TrainState:
    """[...] -> [count, ...], the shape that pmap takes."""
    return jax.tree.map(lambda x: jnp.broadcast_to(x, (count, *x.shape)), state)


def _place_rows(split: NamedSharding, state: TrainState) -> TrainState:
    """A copy of a host state on each device, made array by array."""

    def one(leaf: Any) -> jax.Array:
        row = np.asarray(leaf)[None]
        return jax.make_array_from_callback((split.mesh.size, *row.shape[1:]), split, lambda index: row.copy())

    placed = jax.tree.map(one, replace(state, key=jax.random.key_data(state.key)))
    return replace(placed, key=jax.random.wrap_key_data(placed.key))


def _call_pmap(step: Update, count: int, state: TrainState, batch: TaskBatch, *rows: Any) -> tuple[Any, Metrics]:
    state, metrics = step(state, _split(batch, count), *rows)
    return state, _first(metrics)


def _first(tree: Any) -> Any:
    """The first device's rows. (Indexing the whole array would run a program on all devices for each leaf.)"""
    return jax.tree.map(lambda x: x.addressable_data(0)[0], tree)


def _fetch_first(tree: Any) -> Any:
    """The first device's rows, on the host."""
    return jax.tree.map(lambda x: jax.device_get(x.addressable_data(0))[0], tree)


def _place(everywhere: NamedSharding, state: TrainState) -> TrainState:
    # Random keys are sent as plain integers.
    state = multihost_utils.broadcast_one_to_all(replace(state, key=jax.random.key_data(state.key)))
    state = jax.tree.map(lambda x: jax.make_array_from_process_local_data(everywhere, np.array(x)), state)
    return replace(state, key=jax.random.wrap_key_data(state.key))


def _call_shard_map(step: Any, split: NamedSharding) -> Update:
    """``step`` for this process's rows of a batch; the rows of all processes form one array per field."""
    compiled: dict[Any, Any] = {}

    def call(state: TrainState, batch: TaskBatch) -> tuple[Any, Metrics]:
        batch = jax.tree.map(lambda x: jax.make_array_from_process_local_data(split, np.asarray(x)), batch)
        if jax.process_count() == 1:
            return step(state, batch)
        shapes = tuple(x.shape for x in jax.tree.leaves(batch))
        if shapes not in compiled:
            # One process may compile for much longer than another, but collectives wait for only half a minute.
            compiled[shapes] = step.lower(state, batch).compile()
            barrier()
        return compiled[shapes](state, batch)

    return call


def _fetch(tree: Any) -> Any:
    """The copy on this process's first device, on the host."""
    return jax.device_get(_first_copy(tree))


def _first_copy(tree: Any) -> Any:
    """The copy on this process's first device; every device has all of it."""
    return jax.tree.map(lambda x: x.addressable_data(0), tree)
