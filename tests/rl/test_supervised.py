"""The supervised objective: its loss, the states in which the loss is taken, its gradient on several devices, and refused settings."""

from __future__ import annotations

import math
from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qrag_jax.config import RLConfig
from qrag_jax.rl.supervised import LOSSES, binary_loss, gold_picks, labels, ranked_first, softmax_loss
from qrag_jax.train.parallel import make_parallel
from tests.support.oracles import rl_python as oracle
from tests.support.small import SMALL, changed, small_batch, small_learner

CONFIG = changed(SMALL, data={"task": "qa2"}, rl={"objective": "supervised", "budget": 2}, qhead={"positions": "random"})


def test_the_way_of_the_supporting_chunks_by_hand():
    support = jnp.array([False, True, False, True])
    assert gold_picks(support, 3).tolist() == [1, 3, 4], "document order, then empty places"
    assert gold_picks(support, 1).tolist() == [1]
    available = jnp.array([[True] * 4, [True, False, True, True], [True, False, True, False]])
    positive, counts = labels(available, support)
    assert positive.tolist() == [[False, True, False, True], [False, False, False, True], [False] * 4]
    assert counts.tolist() == [True, True, False]


def test_loss_by_hand():
    # Chunks 0 and 1 support, chunk 2 does not. Empty state, alpha 2, Q (0, 2, -2): sigmoid(Q / 2) = (0.5, 0.731, 0.269), so
    # (ln 2 + 0.3133 + 0.3133) / 3. Chunk 0 picked: chunks 1 and 2 are left with Q (0, 0), so ln 2. Both picked: nothing.
    support = jnp.array([True, True, False])
    q = jnp.array([[0.0, 2.0, -2.0], [9.0, 0.0, 0.0], [7.0, 7.0, 7.0]])
    available = jnp.array([[True, True, True], [False, True, True], [False, False, True]])
    low = math.log(1 + math.exp(-1))
    assert binary_loss(q, available, support, 2.0) == pytest.approx((math.log(2) + 2 * low) / 3 + math.log(2), rel=1e-6)
    assert ranked_first(q, available, support), "1 beats 2 in the empty state; of equals the first one is taken"
    assert not ranked_first(q.at[1, 2].set(0.1), available, support)
    # Softmax: exp(Q / 2) = (1, e, 1/e) in the empty state, of which chunks 0 and 1 have 1 + e; then (1, 1), of which chunk 1 has a half.
    share = (1 + math.e) / (1 + math.e + 1 / math.e)
    assert softmax_loss(q, available, support, 2.0) == pytest.approx(-math.log(share) + math.log(2), rel=1e-6)
    for loss in LOSSES.values():
        assert loss(q, available, jnp.zeros(3, bool), 2.0) == 0.0, "no labels, nothing to learn"


@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.parametrize("support", [set(), {2}, {0, 3}, {1, 2, 4, 5}, set(range(6))])
def test_loss_and_gradient_equal_the_oracle(support, kind):
    # Budget 3, six chunks and one of padding: of four supporting chunks only the first three are ever next.
    q = np.random.default_rng(0).normal(size=(3, 7)).astype(np.float32)
    mask = np.array([True] * 6 + [False])
    flags = np.isin(np.arange(7), list(support))
    order = sorted(support)
    available = np.stack([mask & ~np.isin(np.arange(7), order[:t]) for t in range(3)])
    expected = lambda q: oracle.LOSSES[kind](q, list(mask), support, 0.5)
    found, slope = jax.jit(jax.value_and_grad(LOSSES[kind]))(q, available, flags, 0.5)
    assert found == pytest.approx(expected(q), rel=1e-5)
    steps = np.eye(q.size).reshape(q.size, *q.shape) * 1e-5
    differences = [(expected(q + step) - expected(q - step)) / 2e-5 for step in steps.astype(np.float64)]
    np.testing.assert_allclose(slope, np.reshape(differences, q.shape), atol=1e-5)


@pytest.mark.parametrize("kind", LOSSES)
def test_a_batch_scores_the_states_on_the_way(kind):
    # The loss of a batch against Q of each chunk, computed one by one; no positions, so that a product is all there is to it.
    config = changed(CONFIG, qhead={"positions": "none"}, rl={"supervised_loss": kind})
    learner, state = small_learner(config)
    batch = small_batch(config=config)
    embed = lambda ids, what: np.asarray(jax.jit(learner.embedder.apply, static_argnames="method")(state.params, ids, method=what))
    pool = embed(batch.chunk_pool_ids, "embed_actions")
    losses, texts = [], []
    for row in range(config.optim.batch):
        order = np.flatnonzero(batch.support[row]).tolist()
        question = [int(x) for x in batch.question_ids[row] if x >= 0]
        rows = [[int(x) for x in batch.chunk_pool_ids[i] if x >= 0] for i in batch.chunk_index[row]]
        texts += [oracle.state_row(question, [rows[i] for i in order[:t]], 1, [3], 12, 99) for t in range(2)]
    ids = np.array([text + [-1] * (24 - len(text)) for text in texts], np.int32)
    at = embed(ids, "embed_states").reshape(-1, 2, SMALL.model.width)
    for row in range(config.optim.batch):
        order = np.flatnonzero(batch.support[row]).tolist()
        q = at[row] @ pool[batch.chunk_index[row]].T
        losses.append(oracle.LOSSES[kind](q, [True] * 16, set(order), config.rl.alpha))
    assert len(order) == 2
    loss = jax.jit(learner.supervised_gradient)(state, batch)[1]["loss"]
    assert loss == pytest.approx(np.mean(losses), rel=1e-4)


@lru_cache
def raw_gradients(kind: str, count: int):
    learner, state = small_learner(CONFIG)

    def gradients(state, batch, axis_name=None):
        grads, metrics = learner.supervised_gradient(state, batch, axis_name)
        return state.replace(params=grads), jax.lax.pmean(metrics, axis_name) if axis_name else metrics

    how = ("shard_map", tuple(jax.devices()[:count]), "full") if kind == "full" else (kind, tuple(jax.devices()[:count]))
    devices = make_parallel(gradients, *how)
    given, metrics = devices.update(devices.place(state), small_batch(config=CONFIG))
    return devices.fetch(given.params), {name: float(value) for name, value in metrics.items()}


@pytest.mark.filterwarnings("ignore:Some donated buffers were not usable")  # the state is given away for its gradients
@pytest.mark.parametrize(
    ("kind", "count"), [("pmap", 2), ("shard_map", 2), pytest.param("full", 2, marks=[pytest.mark.slow, pytest.mark.quick])]
)
def test_raw_gradients_are_those_of_one_device(kind, count):
    expected, metrics = raw_gradients("jit", 1)
    found, found_metrics = raw_gradients(kind, count)
    assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected)) > 1e-3
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6, rtol=1e-4), found, expected)
    assert found_metrics == pytest.approx(metrics, rel=1e-4)


@pytest.mark.optimized
def test_it_learns_to_rank_the_next_chunk_first():
    config = changed(CONFIG, data={"task": "qa1"}, qhead={"positions": "relative"}, optim={"learning_rate": 3e-3})
    learner, state = small_learner(config)
    update = jax.jit(learner.update)
    batch, losses = small_batch(config=config), []
    for _ in range(30):
        state, metrics = update(state, batch)
        losses.append(float(metrics["loss"]))
    assert losses[-1] < 0.5 * losses[0]
    assert state.step == 30
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
