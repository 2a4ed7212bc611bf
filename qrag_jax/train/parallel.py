"""The only file that names a device: how ``learner.update`` is spread over the devices of a run.

jit on one device; ``jax.pmap`` over the local devices of one host; jit + ``jax.shard_map`` over a mesh (on several hosts, or if chosen).
Parameters are replicated. A batch's episodes and pool rows are split over the devices; each device then gathers the token rows of the whole
pool. The state's buffers are donated.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from qrag_jax.config import TrainConfig
from qrag_jax.rl.learner import Metrics, TrainState
from qrag_jax.train.hosts import barrier
from qrag_jax.types import WHOLE, Episode, Share, TaskBatch

AXIS = "episodes"
Update = Callable[..., tuple[Any, Metrics]]


@dataclass(frozen=True)
class Parallel:
    """How a run uses its devices. ``place`` puts a host state on them, ``update`` updates it, ``fetch`` copies it back to the host.

    With several processes, each passes its own ``share`` of the batch to ``update``, and ``place`` gives all of them process 0's state.
    """

    kind: str
    devices: tuple[jax.Device, ...]
    share: Share
    place: Callable[[TrainState], TrainState]
    update: Update
    fetch: Callable[[Any], Any]


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


def make_parallel(function: Update, kind: str, devices: tuple[jax.Device, ...]) -> Parallel:
    """Wraps ``function(state, batch, axis_name)``, which returns a new state (or any replicated tree) and metrics.

    ``kind`` is ``TrainConfig.parallel``; ``devices`` come from :func:`choose_devices`.
    """
    count = len(devices)
    if kind == "auto":
        kind = "jit" if count == 1 else "shard_map" if jax.process_count() > 1 else "pmap"
    if kind == "jit":
        return Parallel("jit", devices, WHOLE, _own_buffers, jax.jit(function, donate_argnums=0), jax.device_get)
    spread = _gather_pool(function)
    mesh = Mesh(np.asarray(devices), (AXIS,))
    everywhere, split = (NamedSharding(mesh, spec) for spec in (PartitionSpec(), PartitionSpec(AXIS)))
    if kind == "pmap":
        step = jax.pmap(spread, AXIS, devices=devices, donate_argnums=0)
        # Placed in the way that pmap returns it; otherwise the second call would compile again.
        place = lambda state: jax.device_put(_replicate(state, count), split)
        return Parallel("pmap", devices, Share(devices=count), place, partial(_call_pmap, step, count), _first)
    step = jax.jit(jax.shard_map(spread, mesh=mesh, in_specs=(everywhere.spec, split.spec), out_specs=everywhere.spec), donate_argnums=0)
    share = Share(jax.process_index(), jax.process_count(), count)
    return Parallel("shard_map", devices, share, partial(_place, everywhere), _call_shard_map(step, split), _fetch)


@dataclass(frozen=True)
class Phases:
    """An update in two halves; the host computes rewards between them. Both take a state that :class:`Parallel` has placed.

    Rows of the episodes are [B, ...], or [devices, B / devices, ...] with pmap; rewards must have the same shape.
    """

    collect: Callable[[Any, TaskBatch], Episode]
    """(state, batch) -> episodes. The state is not donated."""
    learn: Callable[[Any, TaskBatch, Episode, np.ndarray], tuple[Any, Metrics]]
    """(state, batch, episodes, rewards) -> the new state and metrics."""


def make_phases(collect: Callable[..., Episode], learn: Update, kind: str, devices: tuple[jax.Device, ...]) -> Phases:
    """Wraps ``collect(state, batch, axis_name)`` and ``learn(state, batch, episode, rewards, axis_name)`` for the devices of one host.

    ``kind`` and ``devices`` as for :func:`make_parallel`.
    """
    count = len(devices)
    if kind == "jit" or (kind == "auto" and count == 1):
        return Phases(jax.jit(collect), jax.jit(learn, donate_argnums=0))
    collect, learn = _gather_pool(collect), _gather_pool(learn)
    if kind in ("pmap", "auto"):
        once = jax.pmap(collect, AXIS, devices=devices)
        last = jax.pmap(learn, AXIS, devices=devices, donate_argnums=0)
        return Phases(lambda state, batch: once(state, _split(batch, count)), partial(_call_pmap, last, count))
    spread = partial(jax.shard_map, mesh=Mesh(np.asarray(devices), (AXIS,)))
    whole, split = PartitionSpec(), PartitionSpec(AXIS)
    return Phases(
        jax.jit(spread(collect, in_specs=(whole, split), out_specs=split)),
        jax.jit(spread(learn, in_specs=(whole, split, split, split), out_specs=whole), donate_argnums=0),
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


def _replicate(state: TrainState, count: int) -> TrainState:
    return jax.tree.map(lambda x: jnp.stack([x] * count), state)


def _call_pmap(step: Update, count: int, state: TrainState, batch: TaskBatch, *rows: Any) -> tuple[Any, Metrics]:
    state, metrics = step(state, _split(batch, count), *rows)
    return state, _first(metrics)


def _first(tree: Any) -> Any:
    """The first device's rows. (Indexing the whole array would run a program on all devices for each leaf.)"""
    return jax.tree.map(lambda x: x.addressable_data(0)[0], tree)


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
    """The copy on this process's first device; every device has all of it."""
    return jax.device_get(jax.tree.map(lambda x: x.addressable_data(0), tree))
