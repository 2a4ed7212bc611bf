"""One process of several: raw gradients and loss of the first update. ``python -m tests.support.host_gradients OUT.npz``."""

from __future__ import annotations

import sys
import warnings
from typing import Any

import jax
import numpy as np

from qrag_jax.config import RunConfig
from qrag_jax.rl.rewards import support_reward
from qrag_jax.train import hosts
from qrag_jax.train.batches import Batches, stage_examples
from qrag_jax.train.parallel import choose_devices, make_parallel
from tests.support.small import SMALL, changed, small_learner, small_tokenizer

CONFIG = changed(SMALL, rl={"budget": 2})  # the whole batch has 8 episodes


def batches(config: RunConfig, *share: Any) -> Batches:
    stages = [(stage, stage_examples(config, stage)) for stage in config.train.stages(config.data)]
    return Batches(config.data, config.optim.batch, small_tokenizer(), stages, *share)


def gradients(kind: str, devices: tuple[jax.Device, ...]) -> dict[str, np.ndarray]:
    """Every parameter's gradient by name, and the loss, in this process's part of the devices."""
    learner, state = small_learner(CONFIG)

    def function(state, batch, axis_name=None):
        episode = learner.collect(state, batch, axis_name)
        targets = learner.targets(state, batch, episode, jax.vmap(support_reward)(episode.picked, batch.support), axis_name)
        grads, metrics = learner.gradient(state, batch, episode, targets, axis_name)
        loss = metrics["loss"] if axis_name is None else jax.lax.pmean(metrics["loss"], axis_name)
        return {"grads": grads, "loss": loss}, {}

    parallel = make_parallel(function, kind, devices)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Some donated buffers were not usable")  # the state is given away for its gradient
        found, _ = parallel.update(parallel.place(state), batches(CONFIG, parallel.share)[0])
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree.leaves_with_path(parallel.fetch(found))}


if __name__ == "__main__":
    hosts.start()
    found = gradients("auto", choose_devices(CONFIG.train, CONFIG.optim.batch))
    if hosts.is_leader():
        np.savez(sys.argv[1], **found)
