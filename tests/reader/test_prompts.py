"""Prompts: what they must contain, what they must not contain, and that their examples are right."""

from __future__ import annotations

import re

import pytest

from qrag_jax.config import benchmarks
from qrag_jax.data.babilong.stories import BABI_TASKS
from qrag_jax.evaluate.answers import BABILONG_LABELS
from qrag_jax.reader.prompts import BABILONG, TEMPLATES, closed_book, make_prompt

CASES = [(name, one.default_task) for name, one in benchmarks.BENCHMARKS.items()] + [("babilong", "qa5"), ("ruler", "qa_mh")]
CHUNKS = ["First chunk.", "Second chunk {with} %s braces.", "Third chunk."]


@pytest.mark.parametrize(("benchmark", "task"), CASES)
def test_chunks_in_order_then_the_question_then_the_form(benchmark: str, task: str) -> None:
    prompt = make_prompt(benchmark, task, "Where is the {thing}? ", CHUNKS)
    places = [prompt.user.rindex(part) for part in (*CHUNKS, "Question: Where is the {thing}?\n", "Answer with ")]
    assert places == sorted(places)
    assert prompt.user.endswith("and nothing else.")
    assert prompt.system
    assert prompt == make_prompt(benchmark, task, "Where is the {thing}?", CHUNKS)


@pytest.mark.parametrize(("benchmark", "task"), CASES)
def test_closed_book_shows_no_text_and_says_so(benchmark: str, task: str) -> None:
    prompt, opened = closed_book(benchmark, task, "Where?"), make_prompt(benchmark, task, "Where?", CHUNKS)
    assert "without any text" in (prompt.system or "")
    assert "Text:" not in prompt.user
    assert "Example" not in prompt.user
    assert prompt.user.splitlines() == opened.user.splitlines()[-2:]  # the same question, the same form


def test_every_benchmark_has_a_prompt() -> None:
    for name, known in benchmarks.BENCHMARKS.items():
        for task in known.names:
            assert make_prompt(name, task, "What?", CHUNKS).shots == () or name == "babilong"
    assert {task.prompt for known in benchmarks.BENCHMARKS.values() for task in known.tasks.values()} == set(TEMPLATES)
    numbers, words = make_prompt("ruler", "niah_mk3", "What?", CHUNKS), make_prompt("ruler", "qa_sh", "What?", CHUNKS)
    assert "special magic" in (numbers.system or "")
    assert words == make_prompt("musique", "all", "What?", CHUNKS) == make_prompt("hotpotqa:2+musique", "all", "What?", CHUNKS)


def test_every_babilong_task_has_a_prompt_with_examples() -> None:
    assert tuple(BABILONG) == BABI_TASKS
    for task, template in BABILONG.items():
        prompt = make_prompt("babilong", task, "Where?", CHUNKS)
        roles = [message["role"] for message in prompt.messages]
        assert roles == ["system", *["user", "assistant"] * len(template.examples), "user"]
        assert len(template.examples) >= 2
        for asked, answer in prompt.shots:
            assert asked.endswith(template.form)
            assert len(answer.split()) == 1
        whole = str(prompt.messages)
        assert "<context>" not in whole  # the rule cuts an answer there
        assert "<example>" not in whole


def test_examples_name_no_answer_of_the_benchmark() -> None:
    labels = {label for task in BABILONG_LABELS.values() for label in task}
    for template in BABILONG.values():
        words = set(re.findall(r"\w+", " ".join(" ".join(example) for example in template.examples).lower()))
        assert not words & labels
        for text, _, answer in template.examples:
            assert answer in text


def test_place_examples_are_right() -> None:
    """qa1 to qa3 replayed: where each thing has been, and where each person is."""
    for task in ("qa1", "qa2", "qa3"):
        for text, question, answer in BABILONG[task].examples:
            at: dict[str, str] = {}
            carried: dict[str, str] = {}
            trail: dict[str, list[str]] = {}
            for fact in text.split(". "):
                person, *_, last = words = fact.rstrip(".").removesuffix(" there").split()
                if "to" in words:
                    at[person] = last
                    for thing, holder in carried.items():
                        if holder == person:
                            trail[thing].append(last)
                elif {"got", "took", "grabbed", "picked"} & set(words):
                    carried[last] = person
                    trail.setdefault(last, [at[person]] if person in at else [])
                else:
                    assert carried.pop(last) == person
            *_, first, second = words = question.rstrip("?").split()
            if task == "qa1":
                assert at[second] == answer, question
            elif task == "qa2":
                assert trail[second][-1] == answer, question
            else:
                places = trail[words[3]]
                assert (first, places[places.index(second) - 1]) == ("the", answer), question


def test_bad_input() -> None:
    with pytest.raises(ValueError, match=r"benchmark = 'trivia': unknown; known: babilong, "):
        make_prompt("trivia", "", "Where?", CHUNKS)
    with pytest.raises(ValueError, match=r"data\.task = 'qa1': unknown task of musique"):
        make_prompt("babilong+musique", "qa1", "Where?", CHUNKS)
    with pytest.raises(ValueError, match=r"task = 'qa9': unknown task of babilong; known: qa1"):
        closed_book("babilong", "qa9", "Where?")
    for chunks in ([], "one text"):
        with pytest.raises(ValueError, match="call closed_book"):
            make_prompt("babilong", "qa1", "Where?", chunks)
