"""The service: many callers at once, limits, callers that leave, an index that changes, and the end."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from qrag_jax import Index, Retriever, Text
from qrag_jax.retrieve.batching import Batcher
from qrag_jax.serve import watching
from qrag_jax.serve.limits import Gone, Limits, Overloaded, Stopping, TooLate
from qrag_jax.serve.request import Found
from qrag_jax.serve.service import Service
from tests.support.index import CHUNKS, small_retriever

QUESTIONS = [f"Where is {name}?" for name in ("Mary", "John", "Sandra", "Daniel")]


@pytest.fixture(scope="module")
def retriever() -> Retriever:
    return small_retriever()


@pytest.fixture(scope="module")
def built(retriever: Retriever, tmp_path_factory: pytest.TempPathFactory) -> Index:
    return Index.build(retriever, [Text(" ".join(CHUNKS), "story.txt", {"year": 2024})], tmp_path_factory.mktemp("serve") / "index")


@pytest.fixture(scope="module")
def service(retriever: Retriever, built: Index) -> Iterator[Service]:
    with Service(built, retriever) as service:
        yield service


def until(happened: Callable[[], bool], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.01)


class Held:
    """Lets the search thread wait before its next pass."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.go, self.waits = threading.Event(), threading.Event()
        step = Batcher.step

        def held(batcher, asked):
            self.waits.set()
            self.go.wait(20)
            return step(batcher, asked)

        monkeypatch.setattr(Batcher, "step", held)


def test_questions_at_once_are_answered_as_alone(service: Service, retriever: Retriever) -> None:
    passes: list[int] = []
    service.searches.on_pass = lambda questions, seconds: passes.append(questions)
    asked = [(QUESTIONS[i % 4], 1 + i % 5) for i in range(40)]
    with ThreadPoolExecutor(20) as threads:
        found = list(threads.map(lambda one: service.search(one[0], budget=one[1]), asked))
    for (question, budget), one in zip(asked, found, strict=True):
        alone = list(retriever.stream(question, service.index, budget))
        assert [step.pick.chunk for step in one.steps] == [step.pick.chunk for step in alone]
        assert (one.question, one.mode, one.version, one.chunks) == (question, "multi", service.index.version, len(service.index))
    assert sum(passes) == sum(budget for _, budget in asked)
    assert max(passes) > 1
    assert service.health().requests == 0


def test_steps_come_one_by_one(service: Service) -> None:
    *steps, found = service.stream(QUESTIONS[0], budget=3)
    assert isinstance(found, Found)
    assert found.steps == tuple(steps)
    assert [step.number for step in steps] == [0, 1, 2]
    assert service.documents()[0].name == "story.txt"


def test_bad_input_is_refused_and_counts_for_nothing(service: Service) -> None:
    for arguments, message in (
        ({"question": " "}, "question is empty"),
        ({"question": "x" * 2001}, "question = 'x.*: must be a text of at most 2,000 characters"),
        ({"question": "x", "budget": 9}, "budget = 9: must be at most"),
        ({"question": "x", "filter": ["year=1"]}, "filter year=1: no document has that"),
    ):
        with pytest.raises(ValueError, match=message):
            service.search(**arguments)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no reader: the service was started without --reader"):
        service.answer("Where is Mary?")
    assert service.health().requests == 0
    for field, value in (("characters", 0), ("requests", 0), ("answers", -1), ("seconds", 0.0), ("budget", 0), ("seconds", float("nan"))):
        with pytest.raises(ValueError, match=f"{field} = "):
            Limits(**{field: value})  # type: ignore[arg-type]


def test_what_is_too_much_is_refused_at_once(retriever: Retriever, built: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    held = Held(monkeypatch)
    with Service(built, retriever, limits=Limits(requests=2, budget=2)) as service, ThreadPoolExecutor(4) as threads:
        accepted = [threads.submit(service.search, question, budget=1) for question in QUESTIONS[:2]]
        until(lambda: service.health().requests == 2)
        with pytest.raises(Overloaded, match="requests = 2: so many are being answered already; ask again in") as refused:
            service.search(QUESTIONS[2])
        assert refused.value.wait >= 1
        held.go.set()
        assert all(len(one.result().steps) == 1 for one in accepted)


def test_who_leaves_or_waits_too_long_costs_nothing_more(retriever: Retriever, built: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    held, seen = Held(monkeypatch), []
    with Service(built, retriever, limits=Limits(seconds=0.3)) as service, ThreadPoolExecutor(8) as threads:
        service.searches.on_pass = lambda questions, seconds: seen.append(questions)
        with service.accept() as first, service.accept() as second:
            leaves = threads.submit(service.search, QUESTIONS[0], budget=5, request=first)
            held.waits.wait(20)
            waits = threads.submit(service.search, QUESTIONS[1], budget=5, request=second)
            first.gone.set()
            with pytest.raises(TooLate, match=r"seconds = 0\.3: the request was not answered within that time"):
                waits.result()
            held.go.set()
            with pytest.raises(Gone):
                leaves.result()
        until(lambda: service.health().requests == 0)
        assert len(service.search(QUESTIONS[2], budget=2).steps) == 2
        assert seen == [1, 1, 1]  # the first is the pass in which it left
        steps = service.stream(QUESTIONS[3], budget=5)
        next(steps)
        steps.close()
        until(lambda: service.health().requests == 0)


def test_a_fault_is_of_its_own_question_only(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    step = Batcher.step

    def broken(batcher, asked):
        if any(one.question == QUESTIONS[1] for one in asked):
            raise OSError("the disk is broken")
        return step(batcher, asked)

    monkeypatch.setattr(Batcher, "step", broken)
    with ThreadPoolExecutor(8) as threads:
        found = [threads.submit(service.search, QUESTIONS[i % 2], budget=2) for i in range(8)]
        for i, one in enumerate(found):
            if i % 2:
                with pytest.raises(OSError, match="the disk is broken"):
                    one.result()
            else:
                assert len(one.result().steps) == 2
    assert service.health().live


def test_an_index_that_changes_is_taken_up_between_questions(
    retriever: Retriever, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(watching, "EVERY", 0.02)
    place = tmp_path / "index"
    index = Index.build(retriever, [Text("Mary went home. John slept.", "a.txt")], place)
    with Service(index, retriever) as service:
        before = service.search(QUESTIONS[0])
        assert before.notes == ("2 picks, fewer than budget = 4: the index has no more chunks",)
        stream = service.stream(QUESTIONS[0], budget=2)
        next(stream)
        index.add(retriever, [Text("Sandra took the milk. Daniel left.", "b.txt")])
        until(lambda: service.health().chunks == 4)
        *_, old = stream
        assert (old.chunks, old.version) in {(2, before.version), (4, service.index.version)}  # whole, of one of them
        after = service.search(QUESTIONS[0])
        assert (after.chunks, len(after.steps)) == (4, 4)
        assert after.version != before.version
        assert service.health().stale is None
        other = small_retriever(key=7)
        Index.build(other, ["Mary."], tmp_path / "other")
        (tmp_path / "other/meta.json").replace(place / "meta.json")
        until(lambda: "cannot be used" in (service.health().stale or ""))
        assert service.search(QUESTIONS[0]).version == after.version
        (place / "meta.json").unlink()
        until(lambda: "no longer there" in (service.health().stale or ""))
        assert len(service.search(QUESTIONS[0]).steps) == 4
    assert "has changed; questions are now asked to its 4 chunks" in capsys.readouterr().out


def test_an_index_that_could_not_be_used_is_tried_again(
    retriever: Retriever, built: Index, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(watching, "AGAIN", 0.0)
    faults, used = [OSError("no more files"), OSError("no more files")], []

    def prepare(index: Index) -> Batcher:
        if faults:
            raise faults.pop()
        return Batcher(retriever, index)

    watcher = watching.Watcher(built, prepare, used.append)
    watcher._version = "another"
    for _ in range(2):
        watcher.look()
        assert "cannot be used (no more files)" in str(watcher.stale)
    watcher.look()
    watcher.look()
    assert (watcher.stale, len(used)) == (None, 1)
    assert capsys.readouterr().out.count("no more files") == 1


def test_stopping_answers_what_was_accepted(retriever: Retriever, built: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    held = Held(monkeypatch)
    service = Service(built, retriever).start()
    with ThreadPoolExecutor(12) as threads:
        accepted = [threads.submit(service.search, QUESTIONS[i % 4], budget=2) for i in range(10)]
        until(lambda: service.health().requests == 10)
        assert not service.stop(0.05)
        with pytest.raises(Stopping, match="accepts no more questions"):
            service.search(QUESTIONS[0])
        assert not service.health().ready
        held.go.set()
        assert service.stop()
        assert all(len(one.result().steps) == 2 for one in accepted)
    until(lambda: not service.health().live)
