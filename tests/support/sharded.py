"""Results of updates by name, to compare devices, processes and ways to hold the state; and the bytes of a state on a device."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import tensorstore as ts

from qrag_jax.config import RunConfig
from qrag_jax.rl.learner import Learner, TrainState
from qrag_jax.rl.rewards import support_reward
from qrag_jax.train import sharding
from qrag_jax.train.parallel import Parallel
from tests.support.small import small_learner

OPTIMIZERS = {"adamw": None, "sgd": optax.sgd(1.0)}


def device_bytes(state: Any) -> list[int]:
    """Bytes of a state on each device of this process, measured from its arrays."""
    found: dict[jax.Device, int] = defaultdict(int)
    plain = state.replace(key=jax.random.key_data(state.key))
    for leaf in jax.tree.leaves(plain):
        for shard in leaf.addressable_shards:
            found[shard.device] += shard.data.nbytes
    return list(found.values())


def named(tree: Any) -> dict[str, np.ndarray]:
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree.leaves_with_path(tree)}


def numbered_state(config: RunConfig) -> tuple[Learner, TrainState]:
    """A state of the small model in which all numbers differ, as no compression can make them fewer."""
    learner, state = small_learner(config)
    numbers = np.random.default_rng(0)
    some = lambda x: numbers.standard_normal(x.shape).astype(x.dtype) if x.dtype == np.float32 else np.asarray(x)
    moved = jax.tree.map(some, state.replace(key=jax.random.key_data(state.key)))
    return learner, moved.replace(step=np.int32(7), key=state.key)


def assert_parts_written(run_dir: Path, state: Any, devices: int, processes: int) -> None:
    """Each process has written, into files of its own, the parts of its devices; and the first one the arrays that are not split."""
    folder = run_dir / "checkpoints" / "last" / "7" / "state"
    axes = [sharding.split_axis(x.shape, devices) for x in jax.tree.leaves(state)]
    split, whole = sum(axis is not None for axis in axes), sum(axis is None for axis in axes)
    assert split > 8
    assert whole > 8
    found: set[bytes] = set()
    for process in range(processes):
        base = f"file://{folder / f'ocdbt.process_{process}'}/"
        files = ts.KvStore.open({"driver": "ocdbt", "base": base}).result()
        keys = {key for key in files.list().result() if not key.endswith(b".zarray")}
        assert len(keys) == split * devices // processes + (whole if process == 0 else 0)
        assert not found & keys
        found |= keys
        size = sum(len(read.result().value) for read in [files.read(key) for key in keys])
        assert size < sharding.state_bytes(state, devices) * devices / processes
    assert len(list(folder.glob("ocdbt.process_*"))) == processes


def first_gradients(config: RunConfig, make: Callable[..., Parallel], batches: Callable[[Parallel], Any]) -> dict[str, np.ndarray]:
    """Every parameter's gradient in the first update."""
    learner, state = small_learner(config)

    def function(state: Any, batch: Any, axis_name: str | None = None) -> Any:
        episode = learner.collect(state, batch, axis_name)
        targets = learner.targets(state, batch, episode, jax.vmap(support_reward)(episode.picked, batch.support), axis_name)
        return state.replace(params=learner.gradient(state, batch, episode, targets, axis_name)[0]), {}

    parallel = make(function)
    given, _ = parallel.update(parallel.place(state), batches(parallel)[0])
    return named(parallel.fetch(given.params))


def three_updates(
    config: RunConfig, optimizer: str, make: Callable[..., Parallel], batches: Callable[[Parallel], Any]
) -> tuple[dict[str, np.ndarray], list[int]]:
    """Parameters and target after three updates, and the metrics of each; and the bytes of :func:`device_bytes`."""
    learner, state = small_learner(config, OPTIMIZERS[optimizer])
    parallel = make(learner.update)
    state, rows, found = parallel.place(state), batches(parallel), {}
    for step in range(3):
        state, metrics = parallel.update(state, rows[step])
        found |= {f"{name} {step}": np.asarray(value) for name, value in metrics.items()}
    held = parallel.fetch({"params": state.params, "target": state.target_params})
    return found | named(held), device_bytes(state)
