"""The order of the supporting chunks, demonstrations, and the loss that joins both objectives."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qrag_jax.config import RLConfig
from qrag_jax.rl.gold import gold_only, gold_ranks, next_gold
from qrag_jax.rl.learner import Learner
from qrag_jax.rl.rollout import picks_before, state_rows
from qrag_jax.train.parallel import make_parallel
from qrag_jax.types import TaskBatch
from tests.support.small import SMALL, changed, small_batch, small_learner

CONFIG = changed(SMALL, data={"state_order": "picked"}, rl={"budget": 3, "random_updates": 0}, qhead={"positions": "none"})


@lru_cache
def make_batch() -> TaskBatch:
    """A batch whose questions have 0 to 4 supporting chunks, and need them from the last one to the first."""
    batch, draw = small_batch(config=CONFIG), np.random.default_rng(0)
    support = np.zeros(batch.support.shape, bool)
    for row, size in enumerate((0, 1, 2, 2, 3, 3, 4, 4)):
        support[row, draw.choice(support.shape[1], size, replace=False)] = True
    hop = np.where(support, support.sum(1, keepdims=True) - np.cumsum(support, axis=1), 0)
    return replace(batch, support=jnp.asarray(support), hop=jnp.asarray(hop, jnp.int32))


@lru_cache
def make_gold(order: str, known: bool = True) -> np.ndarray:
    """The supporting chunks of the batch as they are picked. ``known``: whether the data says in which order the question needs them."""
    learner, state = small_learner(changed(CONFIG, rl={"objective": "supervised", "gold_order": order}))
    batch = make_batch() if known else replace(make_batch(), hop=jnp.zeros_like(make_batch().hop))

    def gold(state, batch):
        return learner.gold(state.params, learner.embed_pool(state.params, batch, None), state, batch)[0]

    return np.asarray(jax.jit(gold)(state, batch))


def test_ranks_by_hand():
    batch = jax.tree.map(lambda x: x[:1], make_batch())
    batch = replace(batch, support=jnp.array([[False, True, True, True]]), hop=jnp.array([[0, 2, 0, 1]]))
    expected = {"document": [4, 1, 2, 3], "policy": [4, 0, 0, 0], "bridge": [4, 2, 0, 1]}
    assert {order: gold_ranks(batch, order)[0].tolist() for order in expected} == expected
    free = jnp.array([True, False, True, True])
    assert next_gold(free, jnp.array([4, 0, 0, 0])).tolist() == [False, False, True, True]
    assert next_gold(free, jnp.array([4, 0, 2, 1])).tolist() == [False, False, False, True]
    assert next_gold(free, jnp.array([4, 1, 4, 4])).tolist() == free.tolist(), "no supporting chunk is left: all that are available"
    assert gold_only(jnp.array([3, 0, 4]), jnp.array([False, False, False, True])).tolist() == [3, 4, 4]


def test_document_and_bridge_order_are_known_beforehand():
    for order, step in (("document", 1), ("bridge", -1)):
        for row, support in zip(make_gold(order), np.asarray(make_batch().support), strict=True):
            assert row.tolist() == [*np.flatnonzero(support)[::step].tolist(), 16, 16, 16][:3]
    np.testing.assert_array_equal(make_gold("bridge", known=False), make_gold("policy"))


def test_the_order_of_the_policy_is_by_q_and_the_loss_is_taken_along_it():
    # Against a search for the missing chunk with the highest Q, state by state; without positions, Q is a plain product.
    rl = {"objective": "supervised", "supervised_loss": "softmax", "gold_order": "policy"}
    learner, state = small_learner(changed(CONFIG, rl=rl))
    batch, found = make_batch(), make_gold("policy")
    embed = lambda ids, what: np.asarray(jax.jit(learner.embedder.apply, static_argnames="method")(state.params, ids, method=what))
    pool = embed(batch.chunk_pool_ids, "embed_actions")
    differs, losses = 0, np.zeros(len(found))
    for t in range(3):
        at = embed(state_rows(batch, picks_before(jnp.asarray(found), t, 16), learner.layout), "embed_states")
        for row, support in enumerate(np.asarray(batch.support)):
            q = pool[batch.chunk_index[row]] @ at[row]
            left = [i for i in np.flatnonzero(support) if i not in found[row, :t]]
            best = max(left, key=lambda i: q[i], default=16)
            assert found[row, t] == best
            differs += best != min(left, default=16)
            if left:
                weights = np.exp(q / CONFIG.rl.alpha)
                losses[row] -= np.log(weights[left].sum() / weights[[i for i in range(16) if i not in found[row, :t]]].sum())
    assert differs > 2
    assert jax.jit(learner.supervised_gradient)(state, batch)[1]["loss"] == pytest.approx(losses.mean(), rel=1e-4)


def test_demonstrations_fall_from_a_share_to_none():
    learner, state = small_learner(changed(CONFIG, rl={"demonstrations": 1.0}))
    free, _ = small_learner(CONFIG)
    batch, collect = make_batch(), jax.jit(learner.collect)
    few = np.asarray(batch.support.sum(1) <= 3)
    picked = np.asarray(collect(state, batch).picked)
    for row, support in enumerate(np.asarray(batch.support)):
        gold = np.flatnonzero(support).tolist()[:3]
        assert picked[row, : len(gold)].tolist() == gold, "in document order, then by the policy"
        assert len(set(picked[row].tolist())) == 3
        assert not few[row] or set(gold) == set(np.flatnonzero(support))
    last = state.replace(step=jnp.asarray(CONFIG.train.steps))
    np.testing.assert_array_equal(collect(last, batch).picked, jax.jit(free.collect)(last, batch).picked)
    # Over many updates, half of the episodes follow at the start, and a quarter half way.
    half, _ = small_learner(changed(CONFIG, rl={"demonstrations": 0.5}))
    for step, share in ((0, 0.5), (20, 0.25)):
        at = lambda key, step=step: half.demonstrations(state.replace(step=jnp.asarray(step), key=key), batch)
        follows = jax.vmap(at)(jax.random.split(jax.random.key(7), 100))
        assert abs(float((follows[:, few] < 16).any(-1)[:, 1:].mean()) - share) < 0.06


@lru_cache
def gradients(weight: float, kind: str = "jit", count: int = 1):
    """Raw gradients and metrics of the joint loss."""
    changes = {"supervised_weight": weight, "supervised_loss": "softmax", "gold_order": "policy", "demonstrations": 0.5}
    learner, state = small_learner(changed(CONFIG, rl=changes))

    def function(state, batch, axis_name=None):
        episode = learner.collect(state, batch, axis_name)
        grads, metrics = learner.gradient(state, batch, episode, jnp.ones(episode.picked.shape), axis_name)
        return state.replace(params=grads), jax.lax.pmean(metrics, axis_name) if axis_name else metrics

    devices = make_parallel(function, kind, tuple(jax.devices()[:count]))
    given, metrics = devices.update(devices.place(state), make_batch())
    return devices.fetch(given.params), {name: float(value) for name, value in metrics.items()}


def test_the_joint_loss_is_recorded():
    learner, state = small_learner(changed(CONFIG, rl={"supervised_weight": 1.0}))
    assert {"loss", "supervised_loss", "target"} < set(jax.eval_shape(learner.update, state, make_batch())[1])


def test_the_joint_gradient_is_the_sum_of_both():
    changes = {"supervised_weight": 3.0, "supervised_loss": "softmax", "gold_order": "policy", "random_updates": 0}
    learner, state = small_learner(changed(CONFIG, rl=changes))
    batch = make_batch()

    @jax.jit
    def each(state, batch):
        episode = learner.collect(state, batch)
        targets = jnp.ones(episode.picked.shape)
        rewards, _ = Learner.gradient(learner, state, batch, episode, targets)
        labels, _ = learner.supervised_gradient(state, batch)
        return rewards, labels, *learner.gradient(state, batch, episode, targets)

    rewards, labels, both, metrics = each(state, batch)
    assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(labels)) > 1e-3
    assert set(metrics) == {"loss", "supervised_loss"}
    sums = jax.tree.map(lambda a, b: a + 3 * b, rewards, labels)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6, rtol=1e-4), both, sums)


@pytest.mark.slow
@pytest.mark.quick
@pytest.mark.filterwarnings("ignore:Some donated buffers were not usable")  # the state is given away for its gradients
def test_the_joint_gradient_is_the_same_on_two_devices():
    one, found = gradients(1.0)
    assert found["supervised_loss"] > 0
    spread, metrics = gradients(1.0, "shard_map", 2)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-3), spread, one)
    assert metrics == pytest.approx(found, rel=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"demonstrations": 1.5}, r"rl.demonstrations = 1.5: must be in \[0, 1\]"),
        ({"supervised_weight": -1.0}, "rl.supervised_weight = -1.0: must be >= 0"),
        ({"objective": "supervised", "demonstrations": 0.5}, "rl.demonstrations = 0.5: must be 0.0 under rl.objective 'supervised'"),
        ({"objective": "supervised", "supervised_weight": 1.0}, "rl.supervised_weight = 1.0: must be 0.0 under rl.objective 'supervised'"),
    ],
)
def test_bad_settings_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        RLConfig(**changes)
