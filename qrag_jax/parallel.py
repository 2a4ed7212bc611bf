"""The only file that names a device: how ``learner.update`` is spread over the devices of a run.

jit on one device; ``jax.pmap`` over the local devices of one host; jit + ``jax.shard_map`` over a mesh (several hosts, or by choice).
Parameters are replicated, episodes split, the chunk pool shared; the state's buffers are donated.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from qrag_jax.config import TrainConfig
from qrag_jax.rl.learner import Metrics, TrainState
from qrag_jax.types import Episode, TaskBatch

AXIS = "episodes"
Update = Callable[..., tuple[Any, Metrics]]

# The pool is shared by all episodes; everything else of a batch is one row an episode.
_BATCH_AXES = TaskBatch(question_ids=0, chunk_pool_ids=None, chunk_index=0, chunk_mask=0, support=0, episode_id=0)


@dataclass(frozen=True)
class Parallel:
    """How a run uses its devices. ``place`` puts a host state on them, ``update`` steps it, ``fetch`` brings it back to the host."""

    kind: str
    devices: tuple[jax.Device, ...]
    place: Callable[[TrainState], TrainState]
    update: Update
    fetch: Callable[[Any], Any]


def choose_devices(config: TrainConfig, batch: int) -> tuple[jax.Device, ...]:
    """The devices of a run: the first ``config.devices`` (0: all), one under "jit".

    Raises ValueError when there are fewer, or when ``batch`` episodes do not divide over them.
    """
    devices = jax.devices()
    if config.devices > len(devices):
        raise ValueError(f"train.devices = {config.devices}: only {len(devices)} {devices[0].platform} device(s) here; use 0 for all")
    chosen = tuple(devices[: 1 if config.parallel == "jit" else config.devices or len(devices)])
    if batch % len(chosen):
        raise ValueError(
            f"optim.batch = {batch}: does not divide over {len(chosen)} devices; use a multiple of {len(chosen)}, or fewer train.devices"
        )
    return chosen


def make_parallel(function: Update, kind: str, devices: tuple[jax.Device, ...]) -> Parallel:
    """Wraps ``function(state, batch, axis_name)``, which returns a new state (or any replicated tree) and metrics.

    ``kind`` is ``TrainConfig.parallel``; ``devices`` those of :func:`choose_devices`.
    """
    count = len(devices)
    if kind == "auto":
        kind = "jit" if count == 1 else "shard_map" if jax.process_count() > 1 else "pmap"
    if kind == "jit":
        return Parallel("jit", devices, _own_buffers, jax.jit(function, donate_argnums=0), jax.device_get)
    spread = partial(function, axis_name=AXIS)
    if kind == "pmap":
        step = jax.pmap(spread, AXIS, in_axes=(0, _BATCH_AXES), devices=devices, donate_argnums=0)
        # Placed as pmap returns it, or the second call would compile again.
        spread_out = NamedSharding(Mesh(np.asarray(devices), (AXIS,)), PartitionSpec(AXIS))
        place = lambda state: jax.device_put(_replicate(state, count), spread_out)  # noqa: E731
        return Parallel("pmap", devices, place, partial(_call_pmap, step, count), _first)
    mesh = Mesh(np.asarray(devices), (AXIS,))
    replicated = PartitionSpec()
    step = jax.jit(
        jax.shard_map(spread, mesh=mesh, in_specs=(replicated, _batch_spec()), out_specs=(replicated, replicated)), donate_argnums=0
    )
    place = lambda state: jax.device_put(_own_buffers(state), NamedSharding(mesh, replicated))  # noqa: E731
    return Parallel("shard_map", devices, place, step, jax.device_get)


@dataclass(frozen=True)
class Phases:
    """An update in two halves, between which the host computes rewards. Both take a state that :class:`Parallel` has placed.

    Rows of the episodes are [B, ...], under pmap [devices, B / devices, ...], and rewards are wanted in the same shape.
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
    collect, learn = partial(collect, axis_name=AXIS), partial(learn, axis_name=AXIS)
    if kind in ("pmap", "auto"):
        once = jax.pmap(collect, AXIS, in_axes=(0, _BATCH_AXES), devices=devices)
        last = jax.pmap(learn, AXIS, in_axes=(0, _BATCH_AXES, 0, 0), devices=devices, donate_argnums=0)
        return Phases(lambda state, batch: once(state, _split(batch, count)), partial(_call_pmap, last, count))
    spread = partial(jax.shard_map, mesh=Mesh(np.asarray(devices), (AXIS,)))
    whole, split = PartitionSpec(), PartitionSpec(AXIS)
    return Phases(
        jax.jit(spread(collect, in_specs=(whole, _batch_spec()), out_specs=split)),
        jax.jit(spread(learn, in_specs=(whole, _batch_spec(), split, split), out_specs=(whole, whole)), donate_argnums=0),
    )


def _batch_spec() -> TaskBatch:
    spec = lambda axis: PartitionSpec() if axis is None else PartitionSpec(AXIS)  # noqa: E731
    return jax.tree.map(spec, _BATCH_AXES, is_leaf=lambda axis: axis is None)


def _split(batch: TaskBatch, count: int) -> TaskBatch:
    """Rows [B, ...] -> [count, B / count, ...], as pmap takes them."""
    return jax.tree.map(lambda x, axis: x if axis is None else x.reshape(count, -1, *x.shape[1:]), batch, _BATCH_AXES)


def _own_buffers(state: TrainState) -> TrainState:
    """A copy whose buffers may be donated without taking anything from the caller."""
    return jax.tree.map(lambda x: x.copy() if isinstance(x, jax.Array) else jnp.array(x), state)


def _replicate(state: TrainState, count: int) -> TrainState:
    return jax.tree.map(lambda x: jnp.stack([x] * count), state)


def _call_pmap(step: Update, count: int, state: TrainState, batch: TaskBatch, *rows: Any) -> tuple[Any, Metrics]:
    state, metrics = step(state, _split(batch, count), *rows)
    return state, _first(metrics)


def _first(tree: Any) -> Any:
    return jax.tree.map(lambda x: x[0], tree)
