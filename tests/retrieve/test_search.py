"""Search: greedy compared with training's rollout, the beam compared with exhaustive search, and the input that is refused."""

from __future__ import annotations

import itertools
from dataclasses import replace
from functools import lru_cache, partial

import jax
import numpy as np
import pytest

from qrag_jax import data
from qrag_jax.models.embedder import embed_actions, embed_states
from qrag_jax.retrieve.chunks import Chunk
from qrag_jax.retrieve.retriever import Retriever
from qrag_jax.retrieve.search import SearchPath, plan_score, search
from qrag_jax.retrieve.types import Look
from qrag_jax.rl import policy
from qrag_jax.rl.env import StateLayout
from qrag_jax.rl.rollout import rollout
from qrag_jax.train.batches import make_batch
from qrag_jax.types import QAExample
from tests.support.small import SMALL, changed, small_learner, small_tokenizer

BUDGET = 4


@lru_cache
def retriever(threshold: float | None = None) -> Retriever:
    learner, state = small_learner()
    return Retriever(SMALL, learner.embedder, state.params, small_tokenizer(), threshold)


@lru_cache
def examples() -> list[QAExample]:
    stories = data.load(SMALL.data, "validation", seed=0, haystacks=2)
    return [stories[i] for i in range(6)]


@pytest.mark.parametrize("order", ["document", "picked"])
def test_greedy_is_the_rollout(order: str) -> None:
    trained = retriever()
    config = changed(SMALL, data={"state_order": order})
    one = Retriever(config, trained.embedder, trained.params, trained.tokenizer)
    batch = jax.tree.map(jax.numpy.asarray, make_batch(examples(), 0, one.tokenizer, config.data))
    layout = StateLayout.make(config.data, BUDGET, one.tokenizer)
    keys = jax.random.split(jax.random.key(0), len(examples()))
    episode = rollout(
        partial(embed_states, one.embedder, one.params),
        embed_actions(one.embedder, one.params, batch.chunk_pool_ids),
        batch,
        keys,
        lambda key, q, available: policy.greedy(q, available),
        budget=BUDGET,
        layout=layout,
        qhead=SMALL.qhead,
    )
    found = one.run(examples(), BUDGET)
    np.testing.assert_allclose([t.q for t in found], episode.q, atol=1e-5)
    np.testing.assert_allclose([t.positions for t in found], episode.positions, atol=1e-5)
    assert [t.picked for t in found] == [tuple(row) for row in np.asarray(episode.picked).tolist()]
    assert any(list(t.picked) != sorted(t.picked) for t in found), "the orders differ on these examples"


def test_a_state_that_is_cut_is_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    trained = retriever()
    config = changed(SMALL, data={"state_tokens": 14})
    one = Retriever(config, trained.embedder, trained.params, trained.tokenizer)
    one.run(examples(), BUDGET)
    one.run(examples(), BUDGET)
    told = [line for line in capsys.readouterr().out.splitlines() if "was cut to the 14 that the retriever reads" in line]
    assert len(told) == 1
    trained.run(examples(), BUDGET)
    assert "was cut" not in capsys.readouterr().out


def test_search_batch_and_stream_agree() -> None:
    one, chunks = retriever(), examples()[0].chunks
    questions = [example.question for example in examples()[:3]]
    together = one.search_batch(questions, chunks, BUDGET)
    for question, picks in zip(questions, together, strict=True):
        alone = one.search(question, chunks, BUDGET)
        assert [pick.chunk for pick in alone] == [pick.chunk for pick in picks] == sorted(pick.chunk for pick in picks)
        steps = list(one.stream(question, chunks, BUDGET, runners_up=3, bins=5))
        assert sorted((step.pick for step in steps), key=lambda pick: pick.chunk) == alone
        assert [step.pick.step for step in steps] == list(range(BUDGET))
        for step in steps:
            taken = [earlier.pick.chunk for earlier in steps[: step.number + 1]]
            assert len(step.runners_up) == 3
            assert not {other.chunk for other in step.runners_up} & set(taken)
            assert step.pick.q >= step.runners_up[0].q >= step.runners_up[2].q
            assert step.pick.text == chunks[step.pick.chunk]
            assert step.curve is not None
            assert np.nanmax(step.curve) == np.float32(step.pick.q)


def test_a_text_keeps_its_characters() -> None:
    text = "Mary went to the kitchen.  John took the milk.\nThen he left. " * 6
    for pick in retriever().search("Where is John?", text, 3):
        assert text[pick.start : pick.end] == pick.text


def test_stop_leaves_out_what_falls_below() -> None:
    chunks, question = examples()[0].chunks, examples()[0].question
    q = [step.pick.q for step in retriever().stream(question, chunks, BUDGET)]
    never, always = retriever(min(q) - 1), retriever(max(q) + 1)
    assert len(never.search(question, chunks, BUDGET, stop=True)) == BUDGET
    assert len(always.search(question, chunks, BUDGET, stop=True)) == 1, "the first pick always stays"
    steps = list(always.stream(question, chunks, BUDGET, stop=True))
    assert [step.stop for step in steps] == [False, True], "the stream ends with the step that falls below"


class Table:
    """A document whose Q is a table over (set of picks, chunk)."""

    def __init__(self, chunks: int, seed: int) -> None:
        self.chunks, self.seed, self.calls = chunks, seed, 0

    def q(self, picks: tuple[int, ...]) -> np.ndarray:
        return np.random.default_rng((self.seed, *sorted(picks))).random(self.chunks)

    def __call__(self, states: np.ndarray, picked: list[tuple[int, ...]], top: int, bins: int = 0) -> list[Look]:
        self.calls += 1
        found = []
        for picks in picked:
            q = self.q(picks)
            q[list(picks)] = -np.inf
            order = np.argsort(-q)[: min(top, self.chunks - len(picks))]
            found.append(Look(tuple(order.tolist()), tuple(q[order].tolist())))
        return found


def test_plan_score_by_hand() -> None:
    see = lambda *q: Look(tuple(range(len(q))), q)
    # Found at the second pick: Q 0.9 then 1.0, and nothing worth 0.1 afterwards. Earned max(0.9 - 1.0, 1.0 - 0.1) = 0.9.
    found = SearchPath((0, 1), (0.9, 1.0), (see(0.9), see(1.0), see(0.1)))
    # The first pick was second best (0.1 given away) and the next state is worth less than it promised.
    lost = SearchPath((2, 3), (0.8, 0.5), (see(0.9), see(0.5), see(0.5)))
    assert plan_score(found) == pytest.approx(0.9)
    assert plan_score(lost) == pytest.approx(0.3 - 2 * 0.1)
    assert plan_score(replace(lost, looks=lost.looks[:2])) == pytest.approx(0.5 - 2 * 0.1), "the last pick counts with its Q until seen"


@pytest.mark.parametrize("seed", range(5))
def test_a_wide_beam_is_exhaustive(seed: int) -> None:
    table, steps = Table(5, seed), 3

    def score(order: tuple[int, ...]) -> float:
        q = [table.q(order[:t]) for t in range(steps + 1)]
        best = [max(np.delete(values, list(order[:t]))) for t, values in enumerate(q)]
        earned = max(q[t][order[t]] - best[t + 1] for t in range(steps))
        return float(earned - 2 * sum(best[t] - q[t][order[t]] for t in range(steps)))

    *_, paths = search(lambda states: np.zeros((len(states), 1)), [table], steps, beam=60)
    # Orders of the same picks are one state: the one that led on the way is the one that is ranked at the end.
    sets = {frozenset(order) for order in itertools.permutations(range(5), steps)}
    assert {frozenset(path.picked) for path in paths[0]} == sets
    assert [score(path.picked) for path in paths[0]] == pytest.approx(sorted((score(path.picked) for path in paths[0]), reverse=True))
    assert [plan_score(path) for path in paths[0]] == pytest.approx([score(path.picked) for path in paths[0]])


@pytest.mark.parametrize("beam", [1, 3])
def test_a_long_search_passes_the_ends_of_shorter_ones(beam: int) -> None:
    documents, encode = [Table(6, seed) for seed in range(20)], lambda states: np.zeros((len(states), 1))
    for budget, paths in enumerate(search(encode, documents, 4, beam=beam), start=1):
        *_, shorter = search(encode, documents, budget, beam=beam)
        assert [[path.picked for path in found] for found in paths] == [[path.picked for path in found] for found in shorter]


def test_many_states_are_embedded_by_length_and_alike() -> None:
    one, chunks = retriever(), examples()[0].chunks
    picked = [chunks[:t] for t in (3, 0, 1, 2)] * 5
    together = one.embed_states([examples()[0].question] * 20, picked, BUDGET + 1)
    alone = [one.embed_states([examples()[0].question], [texts], BUDGET + 1)[0] for texts in picked]
    np.testing.assert_allclose(together, alone, atol=2e-6)


def test_questions_share_a_pass() -> None:
    table = Table(6, 0)
    list(search(lambda states: np.zeros((len(states), 1)), [table, table, table], 2, beam=2))
    assert table.calls == 3, "two steps and a look at what came of them"


def test_beam_through_the_retriever() -> None:
    one, example = retriever(), examples()[0]
    steps = list(one.stream(example.question, example.chunks, 3, beam=4, runners_up=2))
    assert [step.pick.chunk for step in steps] == list(one.run([example], 3, beam=4)[0].picked)
    assert all(len(step.runners_up) == 5 for step in steps), "a beam sees its own width besides"


def test_one_pick() -> None:
    assert retriever().search("Where is Mary?", examples()[0].chunks, 1)[0].step == 0


def test_bad_input() -> None:
    one, chunks = retriever(), examples()[0].chunks
    for message, call in {
        "question is empty": lambda: one.search("  ", chunks),
        "budget = 99": lambda: one.search("where", chunks, 99),
        "budget = 0": lambda: one.stream("where", chunks, 0),
        "beam = 0": lambda: one.search("where", chunks, beam=0),
        "no calibrated threshold": lambda: one.search("where", chunks, stop=True),
        "source holds no chunks": lambda: one.search("where", []),
        "must be a list of questions": lambda: one.search_batch("where", chunks),
        "by another retriever": lambda: one.search("where", retriever(0.5).document(["a b.", "c d."])),
        "examples is empty": lambda: one.run([], 2),
    }.items():
        with pytest.raises(ValueError, match=message):
            call()


def test_a_chunk_given_as_such_has_no_place() -> None:
    assert retriever().document(["one.", "two."]).chunk(1) == Chunk("two.")


@pytest.mark.parametrize("beam", [1, 3])
def test_a_short_document_among_longer_ones_is_picked_empty(beam: int) -> None:
    one = retriever()
    first, second, *_ = examples()
    short = QAExample("short", first.question, first.chunks[:2], first.answer, ())
    found = one.run([short, second], BUDGET, beam=beam)
    assert sorted(found[0].picked) == [0, 1]
    assert len(found[0].q) == len(found[0].positions) == 2
    assert found[1].picked == one.run([second], BUDGET, beam=beam)[0].picked
    steps = list(one.stream(first.question, first.chunks[:2], BUDGET, beam=beam))
    assert sorted(step.pick.chunk for step in steps) == [0, 1]
    with pytest.raises(ValueError, match="budget = 0: must be >= 1"):
        one.run([short], 0)
