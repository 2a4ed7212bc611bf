"""The algorithm against literals derived by hand and against the slow oracles."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qrag_jax.config import DataConfig, QHeadConfig, RLConfig
from qrag_jax.rl import policy
from qrag_jax.rl.env import StateLayout, picked_mask, state_row
from qrag_jax.rl.positions import chunk_positions, relative_positions
from qrag_jax.rl.qhead import q_halves, rotate
from qrag_jax.rl.returns import lambda_returns, reference_lambda_returns, soft_gap, soft_value
from qrag_jax.rl.rewards import support_reward
from qrag_jax.rl.rollout import state_rows
from qrag_jax.types import PAD, TaskBatch
from tests.support.oracles import rl_python as oracle

few = settings(max_examples=40, deadline=None)
SIZE = 24  # padded document length of the property tests, so that each function compiles once


def test_integer_positions_by_hand():
    # 6 chunks, chunks 2 and 3 picked. Interval 0 = chunks 0, 1 (18 * k / 1); interval 1 = chunk 2 alone; interval 2 = chunks 3, 4, 5:
    # 40 + 18 * k / 2 = 40, 49, 58.
    picked = jnp.zeros(6, bool).at[jnp.array([2, 3])].set(True)
    assert relative_positions(picked, 6, QHeadConfig()).tolist() == [0, 18, 20, 40, 49, 58]


def test_continuous_positions_by_hand():
    # Eq. 6 with delta 10, l = 9, one pick at chunk 1 of 4: interval 0 is chunk 0; interval 1 = 10 + 9 * k / 3.
    config = QHeadConfig(position_resolution="continuous", delta=10.0, span=9.0)
    assert relative_positions(jnp.array([False, True, False, False]), 4, config).tolist() == [0, 10, 13, 16]


@few
@given(st.integers(1, SIZE).flatmap(lambda n: st.tuples(st.just(n), st.sets(st.integers(0, n - 1), max_size=6))), st.booleans())
def test_positions_equal_the_oracle(document, integer):
    length, picked = document
    config = QHeadConfig(position_resolution="integer" if integer else "continuous")
    mask = picked_mask(jnp.array([*picked, *[SIZE] * (6 - len(picked))]), SIZE)
    found = relative_positions(mask, length, config)[:length]
    np.testing.assert_allclose(found, oracle.positions(list(picked), length, 20, 18, integer), rtol=1e-6)


def test_integer_positions_are_few_at_any_length():
    picked = jnp.zeros(40_000, bool).at[jnp.array([7, 9_000, 31_111])].set(True)
    assert len(np.unique(relative_positions(picked, 40_000, QHeadConfig()))) <= 4 * 19


@pytest.mark.parametrize(("variant", "expected"), [("absolute", [0, 1, 2]), ("random", [5, 6, 7]), ("none", [0, 0, 0])])
def test_position_variants(variant, expected):
    picked = jnp.array([False, True, False])
    assert chunk_positions(picked, 3, 5, QHeadConfig(positions=variant)).tolist() == expected


def test_rotation_by_hand():
    # One half of width 4: pair 0 turns by the position itself, pair 1 by position / 100.
    config = QHeadConfig(halves=1)
    out = rotate(jnp.array([1.0, 0.0, 1.0, 0.0]), jnp.array(np.pi / 2), config)
    np.testing.assert_allclose(out, [0, 1, np.cos(np.pi / 200), np.sin(np.pi / 200)], atol=1e-6)


@pytest.mark.parametrize("halves", [1, 2])
def test_q_equals_naive_rotation(halves):
    rng = np.random.default_rng(0)
    config = QHeadConfig(halves=halves)
    state, chunks, at = rng.normal(size=16), rng.normal(size=(9, 16)), rng.integers(0, 80, 9).astype(np.float32)
    found = q_halves(jnp.asarray(state, jnp.float32), jnp.asarray(chunks, jnp.float32), jnp.asarray(at), config)
    rotated = np.stack([oracle.rotate(c, p, halves, 10_000.0) for c, p in zip(chunks, at, strict=True)])
    expected = (rotated * state).reshape(9, halves, -1).sum(-1)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    # The state may be turned back in place of every chunk being turned: what an index relies on.
    turned = jnp.stack([rotate(jnp.asarray(state, jnp.float32), -p, config) for p in jnp.asarray(at)])
    np.testing.assert_allclose((turned * chunks).sum(-1), expected.sum(-1), atol=1e-4)


def test_greedy_takes_the_best_available():
    assert policy.greedy(jnp.array([3.0, 2.0, 1.0]), jnp.array([False, True, True])) == 1


def test_boltzmann_by_hand():
    # alpha 0.5, top 2 of the available {0.0, 1.0, 0.5}: exp(2) : exp(1), so 0.731 and 0.269; the unavailable 9.0 never.
    q, available = jnp.array([0.0, 1.0, 9.0, 0.5]), jnp.array([True, True, False, True])
    logits = policy.boltzmann_logits(q, available, 0.5, 2, False)
    np.testing.assert_allclose(jax.nn.softmax(logits), [0, 0.7310586, 0, 0.2689414], atol=1e-6)
    np.testing.assert_allclose(jax.nn.softmax(policy.boltzmann_logits(q, available, 0.5, 2, True)), [1 / 3, 1 / 3, 0, 1 / 3], atol=1e-6)


def test_boltzmann_draws_match_its_logits():
    q, available = jnp.array([0.0, 1.0, 9.0, 0.5]), jnp.array([True, True, False, True])
    keys = jax.random.split(jax.random.key(0), 4000)
    picks = jax.vmap(lambda key: policy.boltzmann(key, q, available, 0.5, 0, False))(keys)
    share = np.bincount(picks, minlength=4) / 4000
    np.testing.assert_allclose(share, jax.nn.softmax(jnp.array([0.0, 2.0, -jnp.inf, 1.0])), atol=0.03)


def test_soft_value_masks_before_it_takes_the_best():
    # Best two overall are unavailable; among the rest 0.2 and 0.1: 0.1 * log(exp(2) + exp(1)) = 0.2313262 a half.
    q = jnp.repeat(jnp.array([[5.0], [4.0], [0.2], [0.1], [0.0]]), 2, axis=1)
    available = jnp.array([False, False, True, True, True])
    assert soft_value(q, available, 0.1, RLConfig(value_top_k=2)) == pytest.approx(2 * 0.23132617, abs=1e-6)
    assert soft_value(q, available, 0.1, RLConfig(value_top_k=2, soft=False)) == pytest.approx(0.4, abs=1e-6)
    # Parity: the reference code takes 5.0 and 4.0 first and is left with nothing.
    assert soft_value(q, available, 0.1, RLConfig(value_top_k=2, reference_soft_value=True)) == 0.0


def test_soft_gap_is_what_the_soft_value_adds_to_the_best_q():
    # The best available Q is 0.2 + 0.1: the gap of V = 0.5 is 0.2. The halves' own best (0.2 and 0.15) belong to two actions.
    q = jnp.array([[5.0, 5.0], [0.2, 0.1], [0.05, 0.15]])
    assert soft_gap(q, jnp.array([False, True, True]), jnp.array(0.5)) == pytest.approx(0.2, abs=1e-6)
    assert soft_gap(q, jnp.zeros(3, bool), jnp.array(0.0)) == 0.0


@few
@given(st.lists(st.tuples(st.floats(-1, 1), st.floats(-1, 1), st.booleans()), min_size=SIZE, max_size=SIZE), st.sampled_from([0, 1, 5]))
def test_soft_value_equals_the_oracle(rows, top_k):
    q, available = np.array([row[:2] for row in rows], np.float32), np.array([row[2] for row in rows])
    found = soft_value(jnp.asarray(q), jnp.asarray(available), 0.05, RLConfig(value_top_k=top_k))
    np.testing.assert_allclose(found, oracle.soft_value(q, list(available), 0.05, top_k), atol=1e-5)


def test_lambda_returns_by_hand():
    # gamma 0.9, lambda 0.5, three steps. G2 = 1; G1 = 0.9 (0.5 * 0.4 + 0.5 * 1) = 0.63; G0 = 0.9 (0.5 * 0.2 + 0.5 * 0.63) = 0.3735.
    found = lambda_returns(jnp.array([0.0, 0.0, 1.0]), jnp.array([0.9, 0.9, 0.0]), jnp.array([0.2, 0.4, 7.0]), 0.5)
    np.testing.assert_allclose(found, [0.3735, 0.63, 1.0], rtol=1e-6)


@few
@given(
    st.lists(st.tuples(st.floats(-1, 1), st.sampled_from([0.0, 0.99]), st.floats(-1, 1)), min_size=5, max_size=5),
    st.sampled_from([0.0, 0.5, 1.0]),
)
def test_lambda_returns_equal_the_mixture_of_n_step_returns(steps, lam):
    r, discount, v = ([step[i] for step in steps] for i in range(3))
    found = lambda_returns(jnp.array(r), jnp.array(discount), jnp.array(v), lam)
    np.testing.assert_allclose(found, oracle.lambda_returns(r, discount, v, lam), atol=1e-5)


def test_reference_lambda_returns_bootstrap_one_step_late():
    r, discount, v = jnp.zeros(3), jnp.full(3, 0.9), jnp.array([1.0, 2.0, 3.0])
    # G1 = 0.9 * 3; G0 = 0.9 (0.5 * 2 + 0.5 * 2.7): V of one step later than lambda_returns uses.
    np.testing.assert_allclose(reference_lambda_returns(r, discount, v, 0.5), [0.9 * (1.0 + 1.35), 2.7], rtol=1e-6)


@pytest.mark.parametrize(
    ("picked", "penalize", "expected"),
    [
        ([3, 1, 0, 2], False, [0, 1, 0, 0]),
        ([3, 0, 2, 1], True, [0, 0, 0, 0.75]),  # 0.5 + 0.5 * 2 / 4
        ([1, 3, 0, 2], True, [0, 1, 0, 0]),
        ([0, 2, 1, 4], False, [0, 0, 0, 0]),
    ],
)
def test_support_reward_by_hand(picked, penalize, expected):
    support = jnp.zeros(5, bool).at[jnp.array([1, 3])].set(True)
    assert support_reward(jnp.array(picked), support, penalize).tolist() == expected
    assert oracle.reward(picked, {1, 3}, penalize) == expected


def test_no_support_is_never_rewarded():
    assert support_reward(jnp.array([0, 1]), jnp.zeros(4, bool)).sum() == 0


LAYOUT = StateLayout(prefix=1, separator=(3,), question_tokens=6, chunk_tokens=4, tokens=14)


def test_state_row_by_hand():
    question = jnp.array([2, 10, 11, 3, -1, -1])
    chunks = jnp.array([[2, 20, 21, 3, -1, -1], [2, 30, 31, 32, 33, 3], [2, 99, 98, 97, 96, 3]])
    # The second chunk has five tokens after [CLS]; three and its separator fit into 4. The third is not picked.
    found = state_row(question, chunks, jnp.array([True, True, False]), LAYOUT)
    assert found.tolist() == [2, 10, 11, 3, 20, 21, 3, 30, 31, 32, 3, -1, -1, -1]


@few
@given(
    st.lists(st.integers(5, 99), max_size=4),
    st.lists(st.lists(st.integers(5, 99), min_size=1, max_size=4), max_size=3),
)
def test_state_row_equals_the_oracle(question, chunks):
    pad = lambda row, width: row + [-1] * (width - len(row))
    full_question = [2, *question, 3]
    full = [[2, *body, 3] for body in chunks]
    rows = jnp.array([pad(row, 6) for row in full] + [[2, 7, 7, 7, 7, 3]] * (3 - len(full)))
    found = state_row(jnp.array(pad(full_question, 6)), rows, jnp.arange(3) < len(full), LAYOUT)
    assert found.tolist() == pad(oracle.state_row(full_question, full, 1, [3], 4, 14), 14)


def test_states_list_the_picks_as_the_layout_says():
    """Picks 2, 0, 1 of chunks [9 9], [8 8], [7 7] after the question [1 5 3]; a chunk's own row opens with 1 and closes with 3."""
    chunks = [[1, 9, 9, 3], [1, 8, 8, 3], [1, 7, 7, 3]]
    batch = TaskBatch(
        question_ids=jnp.array([[1, 5, 3, PAD]]),
        chunk_pool_ids=jnp.array(chunks),
        chunk_index=jnp.array([[0, 1, 2]]),
        chunk_mask=jnp.ones((1, 3), bool),
        support=jnp.zeros((1, 3), bool),
        episode_id=jnp.array([0]),
        hop=jnp.zeros((1, 3), jnp.int32),
    )
    data = DataConfig(question_tokens=4, chunk_tokens=4, state_chunk_tokens=4)
    rows = {
        ("document", (2, 0, 3)): [1, 5, 3, 9, 9, 3, 7, 7, 3],
        ("picked", (2, 0, 3)): [1, 5, 3, 7, 7, 3, 9, 9, 3],
        ("picked", (2, 3, 3)): [1, 5, 3, 7, 7, 3],
        ("picked", (1, 2, 0)): [1, 5, 3, 8, 8, 3, 7, 7, 3, 9, 9, 3],
    }
    tokenizer = SimpleNamespace(prefix=(1,), suffix=(3,), space=())
    for (order, picks), expected in rows.items():
        layout = StateLayout.make(replace(data, state_order=order), 4, tokenizer)
        found = state_rows(batch, jnp.array([picks]), layout)[0]
        assert found[found >= 0].tolist() == expected


@pytest.mark.parametrize(
    ("taken", "expected"),
    [
        # The question [5] of at most 4 tokens has room for the space 6; chunk [9 9] has not (2 tokens and a separator fill 3); [8] has.
        ([False, False, False], [1, 5, 3]),
        ([True, False, False], [1, 5, 6, 3, 9, 9, 3]),
        ([True, True, False], [1, 5, 6, 3, 9, 9, 3, 8, 3]),
        ([True, True, True], [1, 5, 6, 3, 9, 9, 3, 8, 6, 3, 7, 3]),
    ],
)
def test_a_space_ends_every_text_but_the_last(taken, expected):
    tokenizer = SimpleNamespace(prefix=(1,), suffix=(3,), space=(6,))
    data = DataConfig(question_tokens=4, chunk_tokens=4, state_chunk_tokens=3 + 1, reference_state_spaces=True)
    layout = replace(StateLayout.make(data, 4, tokenizer), chunk_tokens=3)
    chunks = jnp.array([[1, 9, 9, 3], [1, 8, 3, PAD], [1, 7, 3, PAD]])
    found = state_row(jnp.array([1, 5, 3, PAD]), chunks, jnp.array(taken), layout)
    assert found[found >= 0].tolist() == expected
