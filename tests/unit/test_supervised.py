"""The supervised objective: its loss, the states it is taken in, its gradient on several devices, and what it is refused with."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qrag_jax.config import RLConfig
from qrag_jax.parallel import make_parallel
from qrag_jax.rl.supervised import gold_picks, labels, ranked_first, trajectory_loss
from tests.helpers import SMALL, changed, small_batch, small_learner
from tests.oracles import rl_python as oracle

CONFIG = changed(SMALL, data={"task": "qa2"}, rl={"objective": "supervised", "budget": 3}, qhead={"positions": "random"})


def test_the_way_of_the_supporting_chunks_by_hand():
    support = jnp.array([False, True, False, True])
    assert gold_picks(support, 3).tolist() == [1, 3, 4], "document order, then empty places"
    assert gold_picks(support, 1).tolist() == [1]
    positive, counts = labels(support, 3)
    assert positive.tolist() == [[False, True, False, True], [False, False, False, True], [False] * 4]
    assert counts.tolist() == [True, True, False]


def test_loss_by_hand():
    # Chunks 0 and 1 support, chunk 2 does not. Empty state, alpha 2, Q (0, 2, -2): sigmoid(Q / 2) = (0.5, 0.731, 0.269), so
    # (ln 2 + 0.3133 + 0.3133) / 3. Chunk 0 picked: chunks 1 and 2 are left with Q (0, 0), so ln 2. Both picked: nothing.
    support = jnp.array([True, True, False])
    q = jnp.array([[0.0, 2.0, -2.0], [9.0, 0.0, 0.0], [7.0, 7.0, 7.0]])
    available = jnp.array([[True, True, True], [False, True, True], [False, False, True]])
    low = math.log(1 + math.exp(-1))
    assert trajectory_loss(q, available, support, 2.0) == pytest.approx((math.log(2) + 2 * low) / 3 + math.log(2), rel=1e-6)
    assert ranked_first(q, available, support), "1 beats 2 in the empty state; of equals the first one is taken"
    assert not ranked_first(q.at[1, 2].set(0.1), available, support)
    assert trajectory_loss(q, available, jnp.zeros(3, bool), 2.0) == 0.0, "no labels, nothing to learn"


@pytest.mark.parametrize("support", [{2}, {0, 3}, {1, 2, 4, 5}])
def test_loss_equals_the_oracle(support):
    # Budget 3, six chunks and one of padding: of four supporting chunks only the first three are ever next.
    q = np.random.default_rng(0).normal(size=(3, 7)).astype(np.float32)
    mask = np.array([True] * 6 + [False])
    flags = np.isin(np.arange(7), list(support))
    order = sorted(support)
    available = np.stack([mask & ~np.isin(np.arange(7), order[:t]) for t in range(3)])
    found = jax.jit(trajectory_loss)(q, available, flags, 0.5)
    assert found == pytest.approx(oracle.trajectory_loss(q, list(mask), support, 0.5), rel=1e-5)


def test_the_update_scores_the_states_on_the_way():
    # The whole update against Q of each chunk, computed one by one; no positions, so that a product is all there is to it.
    config = changed(CONFIG, qhead={"positions": "none"})
    learner, state = small_learner(config)
    batch = small_batch(config=config)
    embed = lambda ids, what: np.asarray(learner.embedder.apply(state.params, jnp.asarray(ids), method=what))  # noqa: E731
    pool = embed(batch.chunk_pool_ids, "embed_actions")
    losses = []
    for row in range(config.optim.batch):
        order = np.flatnonzero(batch.support[row]).tolist()
        question = [int(x) for x in batch.question_ids[row] if x >= 0]
        rows = [[int(x) for x in batch.chunk_pool_ids[i] if x >= 0] for i in batch.chunk_index[row]]
        texts = [oracle.state_row(question, [rows[i] for i in order[:t]], 1, [3], 12, 99) for t in range(3)]
        q = np.stack([pool[batch.chunk_index[row]] @ embed([text], "embed_states")[0] for text in texts])
        losses.append(oracle.trajectory_loss(q, [True] * 16, set(order), config.rl.alpha))
    assert len(order) == 2
    after, metrics = jax.jit(learner.update)(state, batch)
    assert metrics["loss"] == pytest.approx(np.mean(losses), rel=1e-4)
    assert after.step == 1
    assert max(np.abs(a - b).max() for a, b in zip(*map(jax.tree.leaves, (state.params, after.params)), strict=True)) > 0


@pytest.mark.filterwarnings("ignore:Some donated buffers were not usable")
@pytest.mark.parametrize("kind", ["pmap", "shard_map"])
def test_raw_gradients_are_those_of_one_device(kind):
    config = changed(CONFIG, optim={"accumulate": 2})
    learner, state = small_learner(config)
    batch = small_batch(config=config)
    expected, metrics = jax.jit(learner.supervised_gradient)(state, batch)
    whole, _ = jax.jit(small_learner(CONFIG)[0].supervised_gradient)(state, batch)
    close = lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6, rtol=1e-4)  # noqa: E731
    jax.tree.map(close, whole, expected)
    devices = make_parallel(
        lambda state, batch, axis_name: (learner.supervised_gradient(state, batch, axis_name)[0], {"step": jnp.zeros(())}),
        kind,
        tuple(jax.devices()[:2]),
    )
    found = devices.fetch(devices.update(devices.place(state), batch)[0])
    assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected)) > 1e-3
    jax.tree.map(close, found, expected)
    devices = make_parallel(learner.update, kind, tuple(jax.devices()[:2]))
    found_metrics = devices.update(devices.place(state), batch)[1]
    assert {name: float(found_metrics[name]) for name in metrics} == pytest.approx(jax.tree.map(float, metrics), rel=1e-4)


def test_it_learns_to_rank_the_next_chunk_first():
    config = changed(CONFIG, data={"task": "qa1"}, qhead={"positions": "relative"}, optim={"learning_rate": 3e-3})
    learner, state = small_learner(config)
    update = jax.jit(learner.update)
    batch, losses = small_batch(config=config), []
    for _ in range(40):
        state, metrics = update(state, batch)
        losses.append(float(metrics["loss"]))
    assert losses[-1] < 0.5 * losses[0]
    assert set(metrics) >= {"return", "fact_em", "loss", "q", "grad_norm"}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("reward", "answer_em"),
        ("penalize_extra_steps", True),
        ("soft", False),
        ("target_network", False),
        ("reference_lambda_return", True),
        ("reference_soft_value", True),
        ("reference_alpha", True),
    ],
)
def test_switches_of_the_other_objective_are_refused(field, value):
    with pytest.raises(ValueError, match=rf"rl\.{field} = {value!r}: must be .* under rl\.objective 'supervised'"):
        RLConfig(objective="supervised", **{field: value})
