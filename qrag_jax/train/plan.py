"""What an update needs of each device's memory, known before the first one; and what to change when it does not fit."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import jax

from qrag_jax.config import RunConfig
from qrag_jax.reader.memory import free_memory
from qrag_jax.rl.learner import TrainState
from qrag_jax.train.parallel import Parallel
from qrag_jax.train.sharding import state_bytes
from qrag_jax.types import TaskBatch

GIB = 2**30
SMALLEST_TILE = 512  # model.tile_tokens; below it there is little memory left to gain
FULL = "RESOURCE_EXHAUSTED"  # in the error of a compiler, or an allocator, that lacks memory


@dataclass(frozen=True)
class Plan:
    """Bytes on each of ``devices`` devices during an update. The state is split into ``parts``; 1: every device holds all of it."""

    devices: int
    parts: int
    params: int
    target: int
    """The moving average of the parameters."""
    moments: int
    """Adam's two averages of the gradient, and its step."""
    temporaries: int
    """Gradients and activations."""
    other: int
    """The batch, the results and the program."""
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
        has = "unknown" if self.available is None else gib(self.available)
        return (
            f"memory of an update {where}: {gib(self.total)}, of {has} free for it (parameters {gib(self.params)}, their moving average "
            f"{gib(self.target)}, Adam {gib(self.moments)}, gradients and activations {gib(self.temporaries)}, other {gib(self.other)})"
        )


def gib(size: int) -> str:
    """Bytes for people: 0.012 GiB, 1.23 GiB, 12.3 GiB."""
    found = size / GIB
    return f"{found:.3f} GiB" if found < 0.1 else f"{found:.2f} GiB" if found < 10 else f"{found:.1f} GiB"


def make_plan(state: TrainState, parts: int, memory: Any, devices: int, available: int | None) -> Plan:
    """The plan of an update of ``state`` (arrays or shapes). ``memory``: ``memory_analysis()`` of the compiled update."""
    params, target, moments = parts_of_state(state, parts)
    most = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes + memory.generated_code_size_in_bytes
    other = max(most - params - target - moments, 0)
    return Plan(devices, parts, params, target, moments, memory.temp_size_in_bytes, other, available)


def parts_of_state(state: TrainState, parts: int) -> tuple[int, int, int]:
    """Bytes on a device of the parameters (with the weights that they adapt), of their moving average, and of Adam's moments."""
    params, target, moments = (state_bytes(tree, parts) for tree in ((state.params, state.base), state.target_params, state.opt_state))
    return params, target, moments


def plan_update(config: RunConfig, parallel: Parallel, state: TrainState, batch: TaskBatch) -> Plan | None:
    """Compiles the update of a run whose state lies on its devices, and returns the plan of it; None where the compiler does not tell.

    ``state``: its shapes; ``batch``: this process's share of one. A later ``parallel.update`` of the same shapes compiles nothing. Raises
    ValueError when the update does not fit, saying what to set.
    """
    count, held = len(parallel.devices), state_bytes(state, parallel.parts)
    whole = jax.tree.map(lambda x: jax.ShapeDtypeStruct((x.shape[0] * parallel.share.count, *x.shape[1:]), x.dtype), batch)
    free = free_memory(local(parallel))
    available = None if free is None else free + held
    try:
        memory = parallel.lower(state, whole).compile().memory_analysis()
    except jax.errors.JaxRuntimeError as error:
        if FULL not in str(error):
            raise
        reason = str(error).split("\n")[0].partition(f"{FULL}: ")[2]
        advice = ways_to_fit(config, state_plan(parallel, state, available))
        raise ValueError(f"an update does not fit into a device's memory: {reason} {advice}") from error
    if memory is None:
        return None
    plan = make_plan(state, parallel.parts, memory, count, available)
    if not plan.fits:
        refuse(config, plan)
    return plan


def check_state(config: RunConfig, parallel: Parallel, state: TrainState) -> None:
    """Raises ValueError when not even a run's state fits into the free memory of its devices. ``state``: its shapes."""
    plan = state_plan(parallel, state, free_memory(local(parallel)))
    if not plan.fits:
        refuse(config, plan)


def state_plan(parallel: Parallel, state: TrainState, available: int | None) -> Plan:
    """The plan of what is known without compiling."""
    params, target, moments = parts_of_state(state, parallel.parts)
    return Plan(len(parallel.devices), parallel.parts, params, target, moments, 0, 0, available)


def local(parallel: Parallel) -> list[jax.Device]:
    return [device for device in parallel.devices if device.process_index == jax.process_index()]


def refuse(config: RunConfig, plan: Plan) -> None:
    """Raises ValueError unless it is unknown what the devices have."""
    if plan.available is not None:
        raise ValueError(f"{plan}: this does not fit. {ways_to_fit(config, plan)}")


def ways_to_fit(config: RunConfig, plan: Plan) -> str:
    """What to set so that an update fits, the most effective first."""
    model, found = config.model, []
    if plan.devices > 1 and plan.parts == 1:
        found.append("train.shard_state full")
    if model.compute_dtype == "float32":
        found.append("model.compute_dtype bfloat16")
    if not model.remat:
        found.append("model.remat True")
    if (tile := fitting_tile(model.tile_tokens, plan)) < model.tile_tokens:
        found.append(f"model.tile_tokens {tile}")
    found.append("a smaller optim.batch")
    return f"Use {', '.join(found)}, or {devices_to_fit(plan)}"


def fitting_tile(tokens: int, plan: Plan) -> int:
    """Tokens of a tile, halved until the temporaries fit if they shrink as it does; never below SMALLEST_TILE."""
    room = math.inf if plan.available is None else plan.available - plan.state - plan.other
    tile = tokens
    while tile >= 2 * SMALLEST_TILE and (tile == tokens or plan.temporaries * tile / tokens > room):
        tile //= 2
    return tile


def devices_to_fit(plan: Plan) -> str:
    """How many devices would hold the state in half of their memory, if it is known; otherwise just more."""
    if plan.available is None:
        return "more devices"
    fewest = math.ceil(2 * plan.state * plan.parts / plan.available)
    return f"{fewest} devices or more with train.shard_state full" if fewest > plan.devices else "more devices with train.shard_state full"
