"""The update as a whole: schedules, target network, rollouts, parity flags."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from qrag_jax.config import OptimConfig
from qrag_jax.rl.learner import clip_by_global_norm, learning_rate
from qrag_jax.rl.rewards import support_reward
from tests.support.oracles import rl_python as oracle
from tests.support.small import SMALL, changed, small_batch, small_learner


def test_learning_rate_by_hand():
    # Warm-up of 4 updates to 1.0, then 6 more down to 0.1: the last update has 0.1 + 0.9 / 6 left.
    rate = learning_rate(OptimConfig(learning_rate=1.0, warmup=4, end_ratio=0.1), steps=10)
    np.testing.assert_allclose([rate(i) for i in range(10)], [0.25, 0.5, 0.75, 1.0, 1.0, 0.85, 0.7, 0.55, 0.4, 0.25], rtol=1e-5)


def test_quarter_cosine_by_hand():
    # The same warm-up; then .1 + .9 cos(pi/2 s) at s = 0, 1/6 ... 5/6: cos of 0, 15, 30, 45, 60, 75 degrees.
    rate = learning_rate(OptimConfig(learning_rate=1.0, warmup=4, end_ratio=0.1, schedule="quarter_cosine"), steps=10)
    falls = [0.1 + 0.9 * c for c in (1.0, 0.9659258, 0.8660254, 0.7071068, 0.5, 0.2588190)]
    np.testing.assert_allclose([rate(i) for i in range(10)], [0.25, 0.5, 0.75, 1.0, *falls], rtol=1e-5)


@pytest.mark.parametrize("size", [0.0, 0.5, 4.0])
def test_gradients_are_clipped_as_optax_does(size):
    grads = {"a": size * jnp.array([0.6, 0.0]), "b": size * jnp.array([[-0.8]])}  # of norm ``size``
    ours, theirs = (clip(2.0).update(grads, optax.EmptyState())[0] for clip in (clip_by_global_norm, optax.clip_by_global_norm))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), ours, theirs)


def test_an_episode_picks_each_chunk_once_and_its_rows_say_what_was_picked():
    learner, state = small_learner(changed(SMALL, rl={"random_updates": 0}))
    batch = small_batch()
    episode = jax.jit(learner.collect)(state, batch)
    for row in range(SMALL.optim.batch):
        picks = list(map(int, episode.picked[row]))
        assert len(set(picks)) == SMALL.rl.budget
        for t in range(SMALL.rl.budget):
            question = [int(x) for x in batch.question_ids[row] if x >= 0]
            chunks = [[int(x) for x in batch.chunk_pool_ids[batch.chunk_index[row, i]] if x >= 0] for i in sorted(picks[:t])]
            expected = oracle.state_row(question, chunks, 1, [3], SMALL.data.state_chunk_tokens, learner.layout.tokens)
            assert [int(x) for x in episode.state_ids[row, t] if x >= 0] == expected
            place = oracle.positions(picks[:t], SMALL.data.chunks, 20, 18, True)[picks[t]]
            assert episode.positions[row, t] == place


@pytest.mark.parametrize("reference", [False, True])
def test_a_budget_of_one_has_no_later_states(reference):
    learner, state = small_learner(changed(SMALL, rl={"budget": 1, "reference_lambda_return": reference}))
    state, metrics = jax.eval_shape(learner.update, state, small_batch())
    assert metrics["loss"].shape == ()
    assert "soft_gap" not in metrics


def test_q_and_targets_equal_the_oracle():
    config = changed(SMALL, rl={"random_updates": 0})
    learner, state = small_learner(config)
    other = jax.tree.map(lambda x: x * 1.1, state.params)
    state = state.replace(target_params=other)
    batch = small_batch()
    episode = jax.jit(learner.collect)(state, batch)
    rewards = jax.vmap(support_reward)(episode.picked, batch.support)
    found, gaps = jax.jit(learner.targets_and_gaps)(state, batch, episode, rewards)
    embed = lambda ids, what: np.asarray(learner.embedder.apply(other, jnp.asarray(ids), method=what))
    pool = embed(batch.chunk_pool_ids, "embed_actions")
    for row in range(2):
        picks = [int(i) for i in episode.picked[row]]
        values = []
        for t in range(1, 5):
            if t == 4:
                values.append(0.0)
                break
            s = embed(episode.state_ids[row, t][None], "embed_states")[0]
            at = oracle.positions(picks[:t], 16, 20, 18, True)
            q = np.array(
                [(oracle.rotate(pool[batch.chunk_index[row, i]], at[i], 2, 10_000.0) * s).reshape(2, -1).sum(-1) for i in range(16)]
            )
            left = [i not in picks[:t] for i in range(16)]
            values.append(oracle.soft_value(q, left, 0.05, 5))
            np.testing.assert_allclose(gaps[row, t - 1], values[-1] - q.sum(-1)[left].max(), atol=1e-5)
        reward = oracle.reward(picks, set(np.flatnonzero(batch.support[row])), False)
        expected = oracle.lambda_returns(reward, [0.99] * 3 + [0.0], values, 0.5)
        np.testing.assert_allclose(found[row], expected, atol=1e-5)


def test_a_reward_of_ones_own_replaces_that_for_the_supporting_chunks():
    learner, state = small_learner(changed(SMALL, rl={"random_updates": 0}))
    # Half a point for each supporting chunk, whenever it is picked.
    each = lambda picked, support: 0.5 * support.at[picked].get(mode="fill", fill_value=False)
    own = replace(learner, reward=each)
    batch = small_batch()
    picked = jax.jit(own.collect)(state, batch).picked
    found = np.mean([0.5 * sum(bool(batch.support[row, i]) for i in picked[row]) for row in range(SMALL.optim.batch)])
    _, usual = jax.jit(learner.update)(state, batch)
    _, mine = jax.jit(own.update)(state, batch)
    assert found > 0
    assert mine["return"] == pytest.approx(found)
    assert usual["return"] != mine["return"]
    assert usual["target"] != mine["target"]


def test_target_parameters_follow_at_tau():
    learner, state = small_learner(changed(SMALL, rl={"tau": 0.25}))
    after, _ = jax.jit(learner.update)(state, small_batch())
    expected = jax.tree.map(lambda old, new: 0.75 * old + 0.25 * new, state.target_params, after.params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-7), after.target_params, expected)


def test_padding_changes_nothing():
    learner, state = small_learner(changed(SMALL, rl={"random_updates": 0}))
    batch = small_batch()
    wide = batch.replace(
        chunk_pool_ids=np.pad(batch.chunk_pool_ids, ((0, 64), (0, 0)), constant_values=-1),
        chunk_index=np.pad(batch.chunk_index, ((0, 0), (0, 5))),
        chunk_mask=np.pad(batch.chunk_mask, ((0, 0), (0, 5))),
        support=np.pad(batch.support, ((0, 0), (0, 5))),
    )
    greedy = changed(SMALL, rl={"random_updates": 0, "policy_top_k": 1})
    learner, state = small_learner(greedy)
    a, b = jax.jit(learner.collect)(state, batch), jax.jit(learner.collect)(state, wide)
    assert (a.picked == b.picked).all()
    rewards = jax.vmap(support_reward)(a.picked, batch.support)
    np.testing.assert_allclose(
        jax.jit(learner.targets)(state, batch, a, rewards), jax.jit(learner.targets)(state, wide, b, rewards), atol=1e-6
    )


@pytest.mark.parametrize("flag", ["reference_lambda_return", "reference_soft_value", "reference_alpha"])
def test_parity_flags_change_the_targets(flag):
    # Alpha is tied to the learning rate by one of them: in the warm-up it is lower than its own schedule says.
    learner, state = small_learner(changed(SMALL, rl={"random_updates": 0}))
    other, _ = small_learner(changed(SMALL, rl={"random_updates": 0, flag: True}))
    batch = small_batch()
    episode = jax.jit(learner.collect)(state, batch)
    rewards = jax.vmap(support_reward)(episode.picked, batch.support)
    ours, theirs = (jax.jit(x.targets)(state, batch, episode, rewards) for x in (learner, other))
    assert ours.shape == theirs.shape
    assert not np.allclose(ours, theirs, atol=1e-4)


def test_alpha_has_a_schedule_of_its_own():
    learner, _ = small_learner(changed(SMALL, rl={"alpha": 0.2, "alpha_end": 0.1}))
    np.testing.assert_allclose([learner.alpha(jnp.array(s)) for s in (0, 20, 40, 99)], [0.2, 0.15, 0.1, 0.1], rtol=1e-6)


def test_dropout_is_in_the_loss_only():
    config = changed(SMALL, model={"dropout": 0.5}, rl={"random_updates": 0})
    learner, state = small_learner(config)
    plain, _ = small_learner(changed(SMALL, rl={"random_updates": 0}))
    batch = small_batch()
    episode = jax.jit(learner.collect)(state, batch)
    assert (episode.q == jax.jit(plain.collect)(state, batch).q).all()
    targets = jnp.zeros_like(episode.q)
    dropped = jax.jit(learner.gradient)(state, batch, episode, targets)[1]["loss"]
    assert dropped != jax.jit(plain.gradient)(state, batch, episode, targets)[1]["loss"]


def short_batch(batch, chunks):
    """The batch with all but the first ``chunks`` chunks of its first document removed; the support is the last that is left."""
    mask = batch.chunk_mask.at[0, chunks:].set(False)
    support = batch.support.at[0].set(False).at[0, chunks - 1].set(True)
    return batch.replace(chunk_mask=mask, support=support)


@pytest.mark.parametrize("reference", [False, pytest.param(True, marks=[pytest.mark.slow, pytest.mark.quick])])
def test_a_document_with_fewer_chunks_than_the_budget_is_picked_empty(reference):
    """Its one chunk is picked once; the empty picks earn nothing, add nothing to the loss, and leave the other episodes as they were."""
    config = changed(SMALL, rl={"random_updates": 0, "reference_lambda_return": reference, "reference_soft_value": reference})
    learner, state = small_learner(config)
    full, count = small_batch(), SMALL.data.chunks
    short = short_batch(full, 1)
    collect = jax.jit(learner.collect)
    episode, other = collect(state, short), collect(state, full)
    assert episode.picked[0].tolist() == [0] + [count] * (SMALL.rl.budget - 1)
    assert episode.q[0, 1:].tolist() == [0.0] * (SMALL.rl.budget - 1)
    np.testing.assert_array_equal(episode.picked[1:], other.picked[1:])
    np.testing.assert_array_equal(episode.q[1:], other.q[1:])
    assert all(np.isfinite(np.asarray(leaf)).all() for leaf in jax.tree.leaves(episode))
    rewards = jax.vmap(support_reward)(episode.picked, short.support)
    assert rewards[0].tolist() == [1.0] + [0.0] * (SMALL.rl.budget - 1)
    targets = learner.targets(state, short, episode, rewards)
    np.testing.assert_array_equal(targets[0], rewards[0])
    # By hand: the mean over all B T places of (2 q_h - G)^2, in which the empty places count as 0.
    grads, metrics = learner.gradient(state, short, episode, targets)
    changed_targets = targets.at[0, 1:].set(7.0)
    same, again = learner.gradient(state, short, episode, changed_targets)
    assert metrics["loss"] == again["loss"]
    jax.tree.map(np.testing.assert_array_equal, grads, same)
    assert all(np.isfinite(np.asarray(leaf)).all() for leaf in jax.tree.leaves(grads))
    _, means = jax.jit(learner.update)(state, short)
    assert 0 <= float(means["fact_em"]) <= 1
