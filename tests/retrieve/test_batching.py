"""Searches that share passes: each finds what it finds alone, whenever it comes, with its own budget, filter and mode."""

from __future__ import annotations

import numpy as np
import pytest

from qrag_jax import Index, Retriever, Text
from qrag_jax.retrieve.batching import TOGETHER, Asked, Batcher
from qrag_jax.retrieve.types import Step
from tests.support.index import CHUNKS, small_retriever

TEXTS = [Text(" ".join(CHUNKS[i : i + 10]), f"{i}.txt", {"part": i // 10}) for i in range(0, 70, 10)]
TEXTS.append(Text("Mary left. John slept.", "short.txt"))
QUESTIONS = ["Where is Mary?", "Where is John?", "Who went to the garden?", "Where is Daniel?", "Who moved?"]


@pytest.fixture(scope="module")
def retriever() -> Retriever:
    retriever = small_retriever()
    retriever.threshold = -1e6
    return retriever


@pytest.fixture(scope="module")
def index(retriever: Retriever, tmp_path_factory: pytest.TempPathFactory) -> Index:
    return Index.build(retriever, TEXTS, tmp_path_factory.mktemp("batching") / "index")


def same(found: list[Step], alone: list[Step]) -> None:
    assert [(step.number, step.pick.chunk, step.pick.also, step.stop) for step in found] == [
        (step.number, step.pick.chunk, step.pick.also, step.stop) for step in alone
    ]
    np.testing.assert_allclose([step.pick.q for step in found], [step.pick.q for step in alone], atol=1e-5)
    np.testing.assert_allclose([step.pick.position for step in found], [step.pick.position for step in alone])


def test_each_finds_what_it_finds_alone_whenever_it_comes(retriever: Retriever, index: Index) -> None:
    batcher = Batcher(retriever, index, modes=("multi", "single", "bm25", "hybrid"))
    options = [
        {"budget": 4},
        {"budget": 1},
        {"budget": 3, "filter": ["part=2"]},
        {"budget": 2, "mode": "single"},
        {"budget": 5, "mode": "hybrid", "filter": {"part": 1}},
        {"budget": 2, "mode": "bm25"},
        {"budget": 3, "mode": "hybrid"},
    ]
    coming = [(QUESTIONS[i % len(QUESTIONS)], one) for i, one in enumerate(options)]
    active: list[tuple[Asked, list[Step]]] = []
    begun = []
    while coming or active:
        for question, one in coming[:3]:
            active.append((batcher.begin(question, **one), []))  # type: ignore[arg-type]
            begun.append((question, one, active[-1]))
        coming = coming[3:]
        for (_, steps), new in zip(active, batcher.step([asked for asked, _ in active]), strict=True):
            steps += new
        active = [entry for entry in active if not entry[0].done]
    for question, one, (asked, steps) in begun:
        same(steps, list(retriever.stream(question, index, **one)))  # type: ignore[arg-type]
        assert asked.notes == []


def test_a_search_stops_at_the_threshold(retriever: Retriever, index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retriever, "threshold", 1e9)
    asked, other = (batcher := Batcher(retriever, index)).begin("Where is Mary?", 4, stop=True), batcher.begin("Where is Mary?", 2)
    steps = batcher.step([asked, other])[0] + batcher.step([asked, other])[0]
    assert [step.stop for step in steps] == [False, True]
    assert asked.done
    assert asked.notes == []


def test_notes_say_what_was_cut_and_what_is_missing(retriever: Retriever, index: Index) -> None:
    batcher = Batcher(retriever, index, modes=("multi", "bm25"))
    asked = batcher.begin("Where is Mary, where is Mary, and where is Mary, and where is Mary?", 1)
    assert asked.notes[0].startswith("cut: the question is longer than the 10 tokens")
    words, few = batcher.begin("zebra", 2, mode="bm25"), batcher.begin("Where is Mary?", 3, filter=["source=sh*"])
    while not few.done:
        batcher.step([one for one in (words, few) if not one.done])
    assert words.notes == ["0 picks, fewer than budget = 2: the index has no more chunks that share a word with the question"]
    assert few.notes == ["2 picks, fewer than budget = 3: the index has no more chunks that match the filter"]


def test_nothing_compiles_after_prepare(retriever: Retriever, index: Index) -> None:
    from qrag_jax.rundir.compilations import compilations

    batcher = Batcher(retriever, index, 5, modes=("multi", "single"))
    batcher.prepare()
    with compilations() as found:
        for count in range(1, TOGETHER + 1):
            asked = [batcher.begin(QUESTIONS[i % 5], 1 + i % 5, mode=("multi", "single")[i % 3 == 0]) for i in range(count)]
            while asked := [one for one in asked if not one.done]:
                batcher.step(asked)
    assert found == []


def test_what_is_not_served_is_refused(retriever: Retriever, index: Index) -> None:
    batcher = Batcher(retriever, index, 2)
    for options, message in (
        ({"budget": 3}, "budget = 3: must be at most 2"),
        ({"budget": 0}, "budget = 0: must be >= 1"),
        ({"mode": "bm25"}, "mode = 'bm25': must be one that is served: multi, single"),
        ({"filter": ["part=99"]}, "filter part=99: no document has that"),
        ({"filter": ["x=1"]}, "filter = 'x': unknown; known: source, part"),
        ({"mode": "single", "stop": True}, "only mode multi has a stop threshold"),
    ):
        with pytest.raises(ValueError, match=message):
            batcher.begin("Where is Mary?", **{"budget": 1} | options)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"budget = 999: must be at most \d+: the retriever reads 64 tokens"):
        Batcher(retriever, index, 999)
    with pytest.raises(ValueError, match="question is empty"):
        batcher.begin(" ", 1)


def test_a_step_that_fails_changes_nothing(retriever: Retriever, index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    batcher = Batcher(retriever, index)
    asked = batcher.begin("Where is Mary?", 2)
    with monkeypatch.context() as patch:
        patch.setattr(Index, "chunk", lambda self, i: (_ for _ in ()).throw(OSError("broken")))
        with pytest.raises(OSError, match="broken"):
            batcher.step([asked])
    assert (asked.path.picked, asked.done) == ((), False)
    assert len(batcher.step([asked])[0]) == 1
