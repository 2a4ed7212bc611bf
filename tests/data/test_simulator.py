"""Generated bAbI stories: right by an independent replay, disjoint between splits, and distributed as the official ones."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from qrag_jax.data.babilong.simulator import FEWEST_FACTS, OPENING, QUESTIONS, simulate_story
from qrag_jax.data.babilong.stories import BABI_TASKS, Story, babi_path, read_babi
from qrag_jax.data.splits import SPLITS
from tests.support.oracles.babi_replay import check_possible, parse, solve

SHARED = Path(__file__).resolve().parents[2] / "../shared/data"


@pytest.mark.parametrize("task", BABI_TASKS)
def test_replay_agrees_with_every_label(task: str) -> None:
    for index in range({"qa3": 60, "qa4": 600}.get(task, 200)):
        story = simulate_story(task, SPLITS[index % 3], 0, index)
        if task != "qa4":
            check_possible(story.facts)
        for question in story.questions:
            assert question.facts >= FEWEST_FACTS[task]
            assert solve(story.facts[: question.facts], question.question) == (question.answer, question.support), (index, question)


@pytest.mark.parametrize("task", BABI_TASKS)
def test_a_story_is_a_function_of_its_arguments(task: str) -> None:
    forward = [simulate_story(task, "train", 7, index) for index in range(5)]
    backward = [simulate_story(task, "train", 7, index) for index in reversed(range(5))]
    assert forward == backward[::-1]
    assert forward != [simulate_story(task, "train", 8, index) for index in range(5)]
    assert forward != [simulate_story(task, "validation", 7, index) for index in range(5)]


@pytest.mark.parametrize("task", BABI_TASKS)
def test_a_story_for_fewer_questions_is_the_beginning_of_the_whole_one(task: str) -> None:
    for index in range(20):
        story = simulate_story(task, "train", 0, index)
        assert len(story.questions) == QUESTIONS[task]
        for count in range(1, QUESTIONS[task] + 1):
            begun = simulate_story(task, "train", 0, index, count)
            assert begun.questions == story.questions[:count]
            assert begun.facts == story.facts[: max(OPENING, story.questions[count - 1].facts)]


@pytest.mark.parametrize("task", BABI_TASKS)
def test_splits_share_no_opening_whatever_the_seed(task: str) -> None:
    # qa4 has only 1920 different stories: that many of each split are as good as all of them.
    count = 400 if task == "qa4" else 15
    seen = [{simulate_story(task, split, seed, i).facts[:OPENING] for i in range(count) for seed in (0, 1)} for split in SPLITS]
    assert not seen[0] & seen[1]
    assert not seen[0] & seen[2]
    assert not seen[1] & seen[2]
    if task == "qa4":
        assert all(len(stories) > 90 for stories in seen)


def test_refuses_bad_arguments() -> None:
    with pytest.raises(ValueError, match=r"task = 'qa9': unknown task of babilong; known: qa1"):
        simulate_story("qa9", "train", 0, 0)
    with pytest.raises(ValueError, match=r"index = -1: both must be >= 0"):
        simulate_story("qa1", "train", 0, -1)
    with pytest.raises(ValueError, match=r"questions = 6: a story of qa2 has 1\.\.5"):
        simulate_story("qa2", "train", 0, 0, 6)


def _statistics(stories: Sequence[Story]) -> dict[str, float]:
    """Means that a wrong world, a wrong choice of questions or a wrong label convention would shift."""
    questions = [(story, question) for story in stories for question in story.questions]
    actions = Counter(parse(fact)[0] for story in stories for fact in story.facts)
    there = Counter((parse(fact)[0], fact.endswith(" there.")) for story in stories for fact in story.facts)
    supports = Counter(parse(story.facts[fact])[0] for story, question in questions for fact in question.support)
    result = {
        "facts a story": float(np.mean([len(story.facts) for story in stories])),
        "facts before a question": float(np.mean([question.facts for _, question in questions])),
        "facts since the oldest support": float(np.mean([question.facts - question.support[0] for _, question in questions])),
        "facts since the newest support": float(np.mean([question.facts - question.support[-1] for _, question in questions])),
        "different facts": float(np.mean([len(set(story.facts)) / len(story.facts) for story in stories])),
        "different questions": float(np.mean([len({q.question for q in story.questions}) for story in stories])),
    }
    result |= {f"share of {name}": count / sum(actions.values()) for name, count in actions.items()}
    result |= {f"share of {name} in support": count / supports.total() for name, count in supports.items()}
    for name in ("get", "drop"):
        if actions[name]:
            result[f"{name} there"] = there[name, True] / actions[name]
    return result


@pytest.mark.parametrize("task", BABI_TASKS)
def test_distribution_is_that_of_the_official_files(task: str) -> None:
    if not (SHARED / "babi").is_dir():
        pytest.skip("shared/data/babi, the official bAbI files, is not beside this repository")
    official = _statistics(read_babi(babi_path(SHARED, task, "train")))
    count = {"qa3": 300, "qa4": 1000}.get(task, 500)
    generated = _statistics([simulate_story(task, "train", 0, index) for index in range(count)])
    assert generated.keys() == official.keys()
    for name, value in official.items():
        # Story lengths have a long tail: means of a few hundred stories are known to a few per cent only.
        assert generated[name] == pytest.approx(value, rel=0.1), name
