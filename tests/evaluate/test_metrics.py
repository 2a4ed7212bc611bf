"""Metrics against literals derived by hand."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest

from qrag_jax.evaluate.metrics import calibrate_refusal, calibrate_threshold, fact_em, fact_f1, stopping, wilson_interval
from qrag_jax.retrieve.search import stopped


def test_fact_em_and_f1_by_hand():
    # 4 picked, 2 supporting, both found: F1 = 2 * 2 / (4 + 2).
    assert fact_em([5, 1, 9, 3], [1, 3]) == 1.0
    assert fact_f1([5, 1, 9, 3], [1, 3]) == pytest.approx(2 / 3)
    assert fact_em([5, 1], [1, 3]) == 0.0
    assert fact_f1([5, 1], [1, 3]) == pytest.approx(0.5)
    assert fact_f1([7, 8], [1]) == 0.0


@pytest.mark.parametrize("metric", [fact_em, fact_f1])
def test_without_labels_there_is_no_score(metric):
    with pytest.raises(ValueError, match="undefined without supporting chunks"):
        metric([1, 2], [])


def test_stopping_takes_no_pick_below_the_threshold_and_always_one():
    assert stopped([4, 2, 7, 1], [0.1, 0.9, 0.2, 0.8], 0.5) == [4, 2]
    assert stopped([4, 2], [0.1, 0.2], 0.5) == [4]
    assert stopped([4, 2], [0.9, 0.9], 0.5) == [4, 2]


def test_threshold_separates_needed_from_needless_picks():
    # Needed second picks have Q 0.8 and 0.7; needless ones 0.1 and 0.2. The widest gap is 0.2 .. 0.7, its middle 0.45.
    picked, q = [[0, 1, 2], [3, 4, 5]], [[0.9, 0.8, 0.1], [0.9, 0.7, 0.2]]
    assert calibrate_threshold(picked, q, [[0, 1], [3, 4]]) == pytest.approx(0.45)
    with pytest.raises(ValueError, match="at least two picks"):
        calibrate_threshold([[0]], [[0.9]], [[0]])


def test_the_limit_of_refusal_refuses_the_most_without_an_answer_and_few_with_one():
    # Separated: 0.2 .. 0.6 is between the two, and its middle 0.4.
    assert calibrate_refusal([0.6, 0.8, 0.9], [-0.1, 0.1, 0.2]) == pytest.approx(0.4)
    # One of 100 with an answer may be refused (that of 0.3), so that also 0.5 is refused rightly: between 0.5 and 0.7.
    assert calibrate_refusal([0.3, *[0.7] * 99], [0.1, 0.2, 0.5]) == pytest.approx(0.6)
    # Of 99 none may be: only 0.1 and 0.2 are refused, between 0.2 and 0.3.
    assert calibrate_refusal([0.3, *[0.7] * 98], [0.1, 0.2, 0.5]) == pytest.approx(0.25)
    # The wrong way round: nothing can be refused, and the limit is below all.
    assert calibrate_refusal([0.1], [0.9]) < 0.1


def test_wilson_interval_by_hand():
    # 10 of 10: centre (1 + 1.9208/10) / (1 + 3.8416/10), half-width 1.96 * sqrt(0.9604/100) / 1.38416, so 0.7225 .. 1.
    low, high = wilson_interval(10, 10)
    assert low == pytest.approx(0.7225, abs=1e-3)
    assert high == 1.0
    with pytest.raises(ValueError, match="at least one episode"):
        wilson_interval(0, 0)


@pytest.mark.parametrize(("successes", "trials"), [(0, 1), (1, 1), (0, 200), (1, 3), (3, 10), (100, 200), (199, 200), (10**6, 10**6 + 1)])
def test_wilson_interval_is_its_formula(successes, trials):
    # (p + z^2/2n -+ z sqrt(p (1 - p) / n + z^2/4n^2)) / (1 + z^2/n) with z = 1.96, in exact fractions but for the root.
    z, p = Fraction(196, 100), Fraction(successes, trials)
    half = float(z) * math.sqrt(p * (1 - p) / trials + z * z / (4 * trials * trials))
    low, high = ((float(p + z * z / (2 * trials)) + sign * half) / float(1 + z * z / trials) for sign in (-1, 1))
    assert wilson_interval(successes, trials) == pytest.approx((low, high), rel=0, abs=1e-12)
    assert wilson_interval(successes, trials)[0] <= p <= wilson_interval(successes, trials)[1]


def test_wilson_interval_literals():
    # What results.json held before the formula was SciPy's.
    assert wilson_interval(3, 10) == pytest.approx((0.10778928748621183, 0.6032267800204347), rel=0, abs=1e-12)
    assert wilson_interval(199, 200) == pytest.approx((0.9722256001302286, 0.999116854010634), rel=0, abs=1e-12)


def test_stopping_by_hand():
    # Episode A needs chunk 1 and finds it first; episode B needs chunks 5 and 6 and finds them in two picks.
    found = stopping([[1, 2], [5, 6]], [[0.9, 0.1], [0.9, 0.8]], [[1], [5, 6]], points=3)
    assert found.threshold == pytest.approx((0.1, 0.45, 0.8), abs=1e-5)
    # Below every Q: both take two picks, F1 of A is 2 * 1 / (2 + 1). In between: A stops after one. Above every Q: so does B.
    assert found.fact_f1 == pytest.approx(((2 / 3 + 1) / 2, 1.0, (1 + 2 / 3) / 2))
    assert found.fact_em == pytest.approx((1.0, 1.0, 0.5))
    assert found.length == pytest.approx((2.0, 1.5, 1.0))
    assert found.perfect == pytest.approx((0.5, 1.0, 0.5))
    assert found.roc_auc == 1.0, "the one state with something missing has the higher Q"
    assert stopping([[5, 6]], [[0.9, 0.8]], [[5, 6]]).roc_auc is None
    # One state misses something (B after one pick) against two that do not: its Q of 0.5 ties with A's and is above C's.
    tied = stopping([[1, 2], [5, 6], [3, 4]], [[0.9, 0.5], [0.9, 0.5], [0.9, 0.1]], [[1], [5, 6], [3]])
    assert tied.roc_auc == pytest.approx((0.5 + 1) / 2)


def test_roc_auc_of_ties_and_strangers_by_hand():
    # Something is missing in the states of Q 3, 1, 2; nothing in those of 2, 0. Of 6 pairs 3 > 2, 3 > 0, 1 > 0, 2 > 0 win, 2 = 2 is half.
    picked, support = [[1, 2]] * 5, [[1, 9]] * 3 + [[1]] * 2
    q = [[9.0, later] for later in (3.0, 1.0, 2.0, 2.0, 0.0)]
    assert stopping(picked, q, support).roc_auc == pytest.approx(4.5 / 6, rel=0, abs=1e-12)
