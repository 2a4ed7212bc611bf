"""jit, pmap and shard_map, with a replicated and with a split state ("full"), on 1, 2 and 4 simulated devices compute the same.

Raw gradients are compared: Adam and clipping hide a wrong scale.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from qrag_jax import data
from qrag_jax.config import TrainConfig
from qrag_jax.reader.protocol import Answer
from qrag_jax.rl.rewards import support_reward
from qrag_jax.train import answer_update
from qrag_jax.train.parallel import Phases, choose_devices, make_parallel, make_phases
from tests.support.small import SMALL, changed, last_place, small_batch, small_learner

KINDS = [("jit", 1), ("pmap", 1), ("pmap", 2), ("pmap", 4), ("shard_map", 1), ("shard_map", 2), ("shard_map", 4)]
KINDS += [("full", 2), ("full", 4)]
# One update drawn at random, then by the policy, so that both paths are seen; two slices, so that accumulation is.
CONFIG = changed(SMALL, rl={"random_updates": 1, "budget": 2}, model={"tile_tokens": 64})
OPTIMIZERS = {"adamw": None, "sgd": optax.sgd(1.0)}


@pytest.fixture(autouse=True)
def _devices():
    if len(jax.devices()) < 4:
        pytest.skip("needs 4 devices; XLA_FLAGS was set before the tests' own --xla_force_host_platform_device_count=4")


def how(kind):
    """Words of make_parallel and make_phases."""
    return {"kind": "shard_map", "shard_state": "full"} if kind == "full" else {"kind": kind}


def parallel(function, kind, count):
    return make_parallel(function, devices=tuple(jax.devices()[:count]), **how(kind))


@lru_cache
def raw_gradients(kind: str, count: int):
    learner, state = small_learner(CONFIG)

    def gradients(state, batch, axis_name=None):
        episode = learner.collect(state, batch, axis_name)
        rewards = jax.vmap(support_reward)(episode.picked, batch.support)
        targets = learner.targets(state, batch, episode, rewards, axis_name)
        return state.replace(params=learner.gradient(state, batch, episode, targets, axis_name)[0]), {"step": jnp.zeros(())}

    devices = parallel(gradients, kind, count)
    return devices.fetch(devices.update(devices.place(state), small_batch())[0].params)


@lru_cache
def three_updates(kind: str, count: int, optimizer: str):
    learner, state = small_learner(CONFIG, OPTIMIZERS[optimizer])
    devices = parallel(learner.update, kind, count)
    state = devices.place(state)
    metrics = []
    for step in range(3):
        state, found = devices.update(state, small_batch(step))
        metrics.append({name: float(value) for name, value in found.items()})
    return devices.fetch(state), metrics


def assert_close(found, expected, tolerance):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=tolerance, rtol=1e-4), found, expected)


@pytest.mark.filterwarnings("ignore:Some donated buffers were not usable")  # the state is given away for its gradients
@pytest.mark.parametrize(("kind", "count"), [("pmap", 4), ("shard_map", 4)])
def test_raw_gradients_are_those_of_one_device(kind, count):
    assert_raw_gradients(kind, count)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Some donated buffers were not usable")
@pytest.mark.parametrize(("kind", "count"), [(kind, count) for kind, count in KINDS[1:] if count == 4])
def test_raw_gradients_of_optimized_programs(kind, count):
    assert_raw_gradients(kind, count)


def assert_raw_gradients(kind, count):
    expected = raw_gradients("jit", 1)
    assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected)) > 1e-4
    assert_close(raw_gradients(kind, count), expected, 1e-7)


@pytest.mark.slow
@pytest.mark.quick
@pytest.mark.parametrize("kind", ["shard_map", "full"])
def test_parameters_and_metrics_are_those_of_one_device(kind):
    assert_same_updates(kind, 4, "sgd")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "count", "optimizer"),
    # SGD's updates are the raw gradients, which are compared above for every kind.
    [("pmap", 1, "adamw"), ("pmap", 4, "adamw"), ("shard_map", 2, "adamw"), ("full", 4, "adamw"), ("shard_map", 4, "sgd")],
)
def test_parameters_and_metrics_of_optimized_programs(kind, count, optimizer):
    assert_same_updates(kind, count, optimizer)


def assert_same_updates(kind, count, optimizer):
    state, metrics = three_updates(kind, count, optimizer)
    expected, expected_metrics = three_updates("jit", 1, optimizer)
    assert_close(state.params, expected.params, 1e-5)
    assert_close(state.target_params, expected.target_params, 1e-5)
    assert_close(metrics, expected_metrics, 1e-5)


class LastPlace:
    """A reader that knows the task."""

    name = "last place"

    def answer(self, prompts):
        return [Answer(last_place(prompt.user), None, None, "stop") for prompt in prompts]


@lru_cache
def answer_updates(kind: str, count: int):
    """State, metrics and rewards of two updates whose rewards come from answers. Plain SGD at a rate of 1: the step is the raw gradient."""
    config = changed(CONFIG, rl={"reward": "mixed"}, eval={"reader": "flax:replaced"})
    learner, state = small_learner(config, OPTIMIZERS["sgd"])
    devices = tuple(jax.devices()[:count])
    phases = make_phases(learner.collect, learner.learn, devices=devices, **how(kind))
    rewards, metrics = [], []

    def learn(state, batch, episode, reward):
        rewards.append(reward.reshape(len(batch.support), -1))
        return phases.learn(state, batch, episode, reward)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(answer_update, "make_reader", lambda settings, folder: LastPlace())
        update = answer_update.AnswerUpdate(learner, Phases(phases.collect, learn), Path())
    examples = data.load(config.data, "train", seed=0, group=config.optim.batch)
    plain = parallel(learner.update, kind, count)
    state = plain.place(state)
    for step in range(2):
        part = [examples[i] for i in range(step * config.optim.batch, (step + 1) * config.optim.batch)]
        state, found = update(state, small_batch(step), part, "qa1")
        metrics.append({name: float(value) for name, value in found.items()})
    return plain.fetch(state), metrics, rewards


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "count"), [("auto", 2), ("pmap", 4), ("shard_map", 4), ("full", 4)])
def test_an_update_from_answers_is_that_of_one_device(kind, count):
    state, metrics, rewards = answer_updates(kind, count)
    expected, expected_metrics, expected_rewards = answer_updates("jit", 1)
    np.testing.assert_array_equal(rewards, expected_rewards)
    assert 0 < np.sum(rewards) < np.size(rewards)
    assert_close(state.params, expected.params, 1e-7)
    assert_close(state.target_params, expected.target_params, 1e-7)
    assert_close(metrics, expected_metrics, 1e-5)


def test_gradient_is_that_of_a_plain_loop():
    # No vmap, no slices, no devices: the mean of single-episode gradients.
    learner, state = small_learner(CONFIG)
    batch = small_batch()
    gradient = jax.jit(lambda *words: learner.gradient(*words)[0])
    episode = jax.jit(learner.collect)(state, batch)
    rewards = jax.vmap(support_reward)(episode.picked, batch.support)
    targets = jax.jit(learner.targets)(state, batch, episode, rewards)
    whole = gradient(state, batch, episode, targets)
    total = jax.tree.map(jnp.zeros_like, whole)
    for i in range(CONFIG.optim.batch):
        one = lambda x, i=i: x[i : i + 1]
        single = jax.tree.map(one, batch).replace(chunk_pool_ids=batch.chunk_pool_ids)
        part = gradient(state, single, jax.tree.map(one, episode), one(targets))
        total = jax.tree.map(jnp.add, total, part)
    assert_close(jax.tree.map(lambda x: x / CONFIG.optim.batch, total), whole, 1e-7)


@pytest.mark.parametrize("kind", ["pmap", "shard_map"])
def test_a_batch_that_does_not_divide_is_refused(kind):
    with pytest.raises(ValueError, match=r"optim\.batch = 6: does not divide over 4 devices"):
        choose_devices(TrainConfig(parallel=kind, devices=4), 6)


def test_too_many_devices_are_refused():
    with pytest.raises(ValueError, match=r"train\.devices = 99"):
        choose_devices(TrainConfig(devices=99), 8)


def test_one_compile_per_bucket():
    learner, state = small_learner(CONFIG)
    devices = parallel(learner.update, "jit", 1)
    state = devices.place(state)
    for step in range(4):
        state, _ = devices.update(state, small_batch(step))
    shapes = {small_batch(step).chunk_pool_ids.shape for step in range(4)}
    assert devices.update._cache_size() == len(shapes)
