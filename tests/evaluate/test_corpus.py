"""An open corpus: how it is made, what the methods give on it, and how they are scored and chosen."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import scipy.stats

from qrag_jax import data
from qrag_jax.evaluate.baselines import Encoder, bm25, single_step
from qrag_jax.evaluate.corpus import UNTIL_STOP, Corpus, Method, choose, chosen, fuse, gather, scores, tailed
from qrag_jax.evaluate.metrics import bootstrap_means, recall
from qrag_jax.evaluate.open_search import baseline_methods, looks, open_threshold, search, trained_methods
from qrag_jax.retrieve.retriever import Retriever
from qrag_jax.types import QAExample
from tests.support.small import SMALL, small_learner, small_tokenizer


@pytest.fixture(scope="module")
def retriever() -> Retriever:
    learner, state = small_learner()
    return Retriever(SMALL, learner.embedder, state.params, small_tokenizer())


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    made = data.load(SMALL.data, "test", seed=0, chunks=8, haystacks=1)
    return gather([made[i] for i in range(5)])


def test_equal_texts_stand_once() -> None:
    one = QAExample("one", "?", ("a", "b", "a"), "", (1, 2))
    two = QAExample("two", "?", ("c", "b"), "", (1,))
    found = gather([one, two], ["c", "d"])
    assert found.texts == ("a", "b", "c", "d")
    assert [q.support for q in found.questions] == [(0, 1), (1,)]
    assert all(q.chunks is found.texts for q in found.questions), "so that an index is made once for all"


def test_what_cannot_be_a_corpus() -> None:
    with pytest.raises(ValueError, match="needs at least one question"):
        gather([])
    with pytest.raises(ValueError, match="question 'x': has no supporting chunks"):
        gather([QAExample("x", "?", ("a",), "", ())])


def test_fusion_by_hand() -> None:
    # 7: 1/61 + 1/63; 3: 1/62 + 1/61, the largest; 5: 1/63; 9: 1/62.
    assert fuse([(7, 3, 5)], [(3, 9, 7)]) == [(3, 7, 9, 5)]
    assert fuse([(4, 2)], [(2, 4)]) == [(4, 2)], "equal sums keep the first order"


def test_a_tail_follows_what_was_picked() -> None:
    assert tailed([(5, 2), ()], [(2, 1, 5, 0), (3,)]) == [(5, 2, 1, 0), (3,)]


def test_picks_come_from_the_search_of_that_length() -> None:
    method = Method("beam", True, {2: [(1, 2, 9)], 6: [(3, 4, 5, 6, 7, 8, 9)]})
    assert method.picks(2) == [(1, 2)]
    assert method.picks(3) == [(3, 4, 5)]
    assert method.picks(10) == [(3, 4, 5, 6, 7, 8, 9)]


def test_recall_by_hand() -> None:
    assert (recall((1, 2, 3), (2, 9)), recall((1,), (1,), missing=3), recall((), (4,))) == (0.5, 0.25, 0.0)


def test_intervals_agree_with_scipy() -> None:
    values = np.random.default_rng(1).random((80, 2))
    draws = bootstrap_means(values, seed=3)
    for column in (values[:, 0], values[:, 0] - values[:, 1]):
        theirs = scipy.stats.bootstrap((column,), np.mean, n_resamples=5000, method="percentile", random_state=np.random.default_rng(2))
        ours = draws[:, 0] if column is values[:, 0] or np.array_equal(column, values[:, 0]) else draws[:, 0] - draws[:, 1]
        np.testing.assert_allclose(np.percentile(ours, [2.5, 97.5]), theirs.confidence_interval, atol=0.006)


def test_scores_by_hand() -> None:
    texts = tuple("abcdef")
    asked = tuple(QAExample(str(i), "?", texts, "", support) for i, support in enumerate([(0, 1), (2, 3), (0, 1, 2, 3, 4, 5)]))
    corpus = Corpus(texts, asked)
    base = Method("BM25", False, {10: [(0, 1, 2), (4, 5, 2), (0, 1, 2)]})
    ours = Method("Q-RAG, greedy", True, {10: [(1, 0, 2), (3, 2, 0), (5,)]})
    found = {(s.method, s.hops, s.metric, s.k): s for s in scores(corpus, [base, ours], {"all_support": (2,), "recall": (2, 3)})}
    assert {s.hops for s in found.values()} == {"all", "2", "5+"}
    assert found["BM25", "all", "all_support", 2].value == pytest.approx(1 / 3)
    one = found["Q-RAG, greedy", "all", "all_support", 2]
    assert (one.value, one.best, one.difference) == (pytest.approx(2 / 3), "BM25", pytest.approx(1 / 3))
    assert one.difference_low == pytest.approx(0.0), "no question is worse, so no resample is"
    assert one.picks == pytest.approx(5 / 3)
    assert found["BM25", "2", "recall", 3].value == pytest.approx((1 + 1 / 2) / 2)
    assert found["BM25", "5+", "recall", 3].value == pytest.approx(3 / 6)
    assert found["Q-RAG, greedy", "5+", "recall", 3].questions == 1
    assert found["BM25", "all", "recall", 2].difference is None


def test_a_choice_is_never_behind_another_method_on_its_questions() -> None:
    rng = np.random.default_rng(0)
    texts = tuple(map(str, range(30)))
    for _ in range(20):
        asked = tuple(QAExample(str(i), "?", texts, "", tuple(sorted(rng.choice(30, 2, replace=False).tolist()))) for i in range(12))
        corpus = Corpus(texts, asked)
        methods = [Method(name, name < "D", {10: [tuple(rng.permutation(30)[:12].tolist()) for _ in asked]}) for name in "ABCD"]
        cuts = {"all_support": (2, 4, 6), "recall": (2, 5, 10)}
        choice = choose(corpus, methods, cuts)
        best = chosen("chosen", choice, methods)
        for score in scores(corpus, [methods[3], best], {"all_support": (2, 4, 6), "recall": (5, 10)}):
            if score.method == "chosen" and score.hops == "all":
                assert score.difference is not None
                assert score.difference >= 0


def test_bm25_of_one_corpus_is_that_of_each_question(corpus: Corpus) -> None:
    apart = [replace(question, chunks=(*corpus.texts,)) for question in corpus.questions]
    assert bm25(corpus.questions, 4) == [found for question in apart for found in bm25([question], 4)]


def test_looks_are_those_of_the_encoder(retriever: Retriever, corpus: Corpus) -> None:
    once, again = looks(Encoder(retriever), corpus)
    assert [order[:3] for order in once] == [found.picked for found in single_step(retriever)(corpus.questions, 3)]
    vectors = retriever.embed_chunks(corpus.texts).astype(np.float64)
    for question, first, found in zip(corpus.questions, once, again, strict=True):
        (state,) = retriever.embed_states([question.question], [[corpus.texts[first[0]]]], 2).astype(np.float64)
        similar = vectors @ state / np.linalg.norm(vectors, axis=1)
        order = [i for i in np.argsort(-similar, kind="stable").tolist() if i != first[0]]
        assert found == (first[0], *order)[: len(found)]


def test_methods_of_a_trained_retriever(retriever: Retriever, corpus: Corpus) -> None:
    found = search(retriever, corpus, (2, 3), (1, 2))
    document = retriever.document(list(corpus.texts))
    for question, order, q in zip(corpus.questions, found.greedy, found.q, strict=True):
        steps = list(retriever.stream(question.question, document, 3))
        assert order == tuple(step.pick.chunk for step in steps)
        assert q == pytest.approx([step.pick.q for step in steps], rel=1e-5)
    assert [order[0] for order in found.once] == [order[0] for order in found.greedy]
    assert {count: {len(order) for order in orders} for count, orders in found.paths[2].items()} == {2: {2}, 3: {3}}
    threshold = open_threshold(found, corpus)
    assert threshold is not None
    baselines = baseline_methods(corpus, {"small": Encoder(retriever)})
    assert [method.name for method in baselines] == ["BM25", "small, one look", "small, asked again", "BM25 + small"]
    methods = {method.name: method for method in trained_methods(found, max(q for row in found.q for q in row) + 1, baselines)}
    assert [len(order) for order in methods[UNTIL_STOP].picks(3)] == [1] * 5, "every later pick is below the threshold"
    assert methods["Q-RAG, stop, then one look"].picks(3) == [order[:3] for order in found.once]
    assert methods["Q-RAG, greedy"].picks(3) == found.greedy
    assert all(len(set(order)) == len(order) == 8 for name, m in methods.items() if name != UNTIL_STOP for order in m.picks(8))
    assert UNTIL_STOP not in {method.name for method in trained_methods(found, None, baselines)}
