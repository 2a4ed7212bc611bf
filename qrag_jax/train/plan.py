"""What an update needs of each device's memory, known before the first one; and what to change when it does not fit."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import jax

from qrag_jax.config import RunConfig
from qrag_jax.rl.learner import TrainState

GIB = 2**30
SMALLEST_TILE = 512  # model.tile_tokens below which little memory is left to gain


@dataclass(frozen=True)
class Plan:
    """Bytes on each of ``devices`` devices during an update."""

    devices: int
    params: int
    target: int
    """The moving average of the parameters."""
    moments: int
    """Adam's two averages of the gradient, and its step."""
    temporaries: int
    """Gradients and activations."""
    other: int
    """The batch and the results."""
    available: int | None
    """What a device has for all of this; None: unknown."""

    @property
    def state(self) -> int:
        return self.params + self.target + self.moments

    @property
    def total(self) -> int:
        return self.state + self.temporaries + self.other

    @property
    def fits(self) -> bool | None:
        return None if self.available is None else self.total <= self.available

    def __str__(self) -> str:
        where = f"on each of {self.devices} devices" if self.devices > 1 else "on the device"
        has = "an unknown amount is free" if self.available is None else f"{gib(self.available)} GiB are free for it"
        return (
            f"memory of an update {where}: {gib(self.total)} GiB (parameters {gib(self.params)}, their moving average {gib(self.target)}, "
            f"Adam {gib(self.moments)}, gradients and activations {gib(self.temporaries)}, batch and results {gib(self.other)}); {has}"
        )


def gib(size: float) -> str:
    """Bytes in GiB: 0.0123, 1.23, 12.3."""
    size /= GIB
    return f"{size:.2g}" if size < 0.1 else f"{size:.2f}" if size < 10 else f"{size:.1f}"


def make_plan(state: TrainState, shardings: Any, memory: Any, devices: int, available: int | None) -> Plan:
    """The plan of a compiled update. ``state``: arrays or shapes; ``shardings``: theirs; ``memory``: ``compiled.memory_analysis()``."""
    params, target, moments = (
        held(getattr(state, name), getattr(shardings, name)) for name in ("params", "target_params", "opt_state")
    )
    most = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    other = most - params - target - moments
    return Plan(devices, params, target, moments, memory.temp_size_in_bytes, max(other, 0), available)


def held(tree: Any, shardings: Any) -> int:
    """Bytes of the leaves of ``tree`` on one device."""
    sizes = jax.tree.map(lambda leaf, where: math.prod(where.shard_shape(leaf.shape)) * leaf.dtype.itemsize, tree, shardings)
    return sum(jax.tree.leaves(sizes))


def advice(config: RunConfig, plan: Plan) -> str:
    """What to set so that an update fits, the most effective first."""
    assert plan.available is not None
    model, room = config.model, plan.available - plan.state
    found = []
    split = config.train.shard_state != "none"
    if plan.devices > 1 and not split:
        found.append("train.shard_state full")
    if model.compute_dtype == "float32":
        found.append("model.compute_dtype bfloat16")
    if not model.remat:
        found.append("model.remat True")
    tile = model.tile_tokens
    while tile > SMALLEST_TILE and room < plan.temporaries * tile / model.tile_tokens:
        tile //= 2
    if tile < model.tile_tokens:
        found.append(f"model.tile_tokens {tile}")
    more = "more devices" if split else "train.shard_state full on more devices" if plan.devices == 1 else "more devices with it"
    return "; ".join([*found, "a smaller optim.batch", more])
