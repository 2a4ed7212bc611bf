"""The limit of "not in the documents": which questions are asked to which documents, and what is found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from qrag_jax.config import QHeadConfig, RunConfig
from qrag_jax.evaluate import refusal
from qrag_jax.evaluate.sets import EvaluationSet
from qrag_jax.export.refusal import Refusal
from qrag_jax.retrieve.retriever import Retriever
from qrag_jax.retrieve.types import Trajectory
from qrag_jax.types import QAExample
from tests.support.small import SMALL, changed

PARAGRAPHS = replace(changed(SMALL, data={"benchmark": "hotpotqa", "task": "all"}), qhead=QHeadConfig(positions="none"))


class Counting(Retriever):
    """The best Q of a question is 1 if the document holds its supporting chunk, which begins with its id, and 0 otherwise."""

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self.asked: list[list[QAExample]] = []

    def run(self, examples: Sequence[QAExample], budget: int, *, beam: int = 1, label: str | None = None) -> list[Trajectory]:
        self.asked.append(list(examples))
        best = [float(any(chunk.startswith(one.id) for chunk in one.chunks)) for one in examples]
        return [Trajectory((0, 1), (q, -1.0), (0.0, 0.0)) for q in best]


def question(name: str, others: int = 3, **options: Any) -> QAExample:
    return QAExample(name, "Who?", (f"{name} did.", *(f"not {name} {i}" for i in range(others))), "A", (0,), **options)


def asked(examples: Sequence[QAExample], config: RunConfig = PARAGRAPHS) -> tuple[Refusal | None, list[list[QAExample]]]:
    retriever = Counting(config)
    groups = tuple(range(i, i + 1) for i in range(len(examples)))
    questions = EvaluationSet("some", config.data.benchmark, config.data.task, None, 2, examples, groups, "validation")
    return refusal.find_refusal(retriever, questions), retriever.asked


def test_paragraphs_are_one_haystack_with_and_without_the_support() -> None:
    found, [both] = asked([question("a"), question("b")])
    assert found == Refusal(0.5, 0.0, 1.0, 2, 8)
    assert [len(one.chunks) for one in both] == [8, 8, 7, 7]
    assert [any(chunk.startswith("a ") for chunk in one.chunks) for one in both] == [True, True, False, True]


def test_a_story_is_asked_alone() -> None:
    found, parts = asked([question("a"), question("b")], SMALL)
    assert found == Refusal(0.5, 0.0, 1.0, 2, 4)
    assert [[len(one.chunks) for one in part] for part in parts] == [[4, 3], [4, 3]]


def test_large_documents_are_joined_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refusal, "MOST", 8)
    _, parts = asked([question(name) for name in "abc"])
    assert [len(part) for part in parts] == [4, 2]


def test_questions_that_cannot_be_asked_both_ways_are_left_out() -> None:
    _, [both] = asked([question("a"), question("b", missing=1), replace(question("c"), support=())])
    assert [one.id for one in both] == ["a", "a"]
    assert asked([question("a", others=1)]) == (None, [])
