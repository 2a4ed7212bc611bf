"""The reader of bAbI files: what it returns, what it refuses, and that an independent replay agrees with every official label."""

from __future__ import annotations

from pathlib import Path

import pytest

from qrag_jax.data.babilong.stories import BABI_TASKS, BabiQuestion, babi_path, load_stories, read_babi
from qrag_jax.data.splits import check_split
from tests.support.oracles.babi_replay import check_possible, solve

FIXTURE = Path(__file__).resolve().parents[1] / "fixtures" / "babi" / "qa2_two-supporting-facts_train.txt"
SHARED = Path(__file__).resolve().parents[2] / "../shared/data"

# "What did Bill give to Jeff?" asked about the football's giver and receiver after they met again over the apple:
# the label is the earlier thing. Everything else in the official files is derived exactly.
QUESTIONS_WITH_A_WRONG_LABEL = {("qa5", "train"): 20, ("qa5", "test"): 2}


@pytest.fixture
def official() -> str:
    if not (SHARED / "babi").is_dir():
        pytest.skip("shared/data/babi, the official bAbI files, is not beside this repository")
    return str(SHARED)


def test_reads_stories_questions_and_support() -> None:
    first, *others = read_babi(FIXTURE)
    assert len(others) == 2
    assert first.facts[:2] == ("Mary moved to the bathroom.", "Sandra journeyed to the bedroom.")
    # File: "7 Where is the football? <tab>garden<tab>3 6" and, after one question line, "14 ... <tab>garden<tab>12 6".
    assert first.questions[0] == BabiQuestion("Where is the football?", "garden", (2, 5), 6)
    assert first.questions[1] == BabiQuestion("Where is the football?", "garden", (5, 10), 12)
    assert [len(story.questions) for story in (first, *others)] == [5, 5, 5]


@pytest.mark.parametrize("task", BABI_TASKS)
@pytest.mark.parametrize("split", ["train", "test"])
def test_replay_agrees_with_official_labels(official: str, task: str, split: str) -> None:
    wrong = 0
    for story in read_babi(babi_path(official, task, split)):
        if task != "qa4":
            check_possible(story.facts)
        for question in story.questions:
            if solve(story.facts[: question.facts], question.question) != (question.answer, question.support):
                assert question.question.startswith("What did"), question
                wrong += 1
    assert wrong == QUESTIONS_WITH_A_WRONG_LABEL.get((task, split), 0)


@pytest.mark.parametrize("task", BABI_TASKS)
def test_official_splits_share_no_story(official: str, task: str) -> None:
    train, validation, test = ({story.text for story in load_stories(official, task, split)} for split in ("train", "validation", "test"))
    assert train
    assert validation
    assert test
    assert not train & validation
    assert not train & test
    assert not validation & test


GOOD = "1 Mary moved to the bathroom.\n2 Where is Mary? \tbathroom\t1\n"


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        ("", None, "is empty"),
        ("Mary moved to the bathroom.\n", 1, "has no number"),
        ("2 Mary moved to the bathroom.\n", 1, "out of sequence; expected 1"),
        (GOOD + "4 John moved to the office.\n", 3, "out of sequence; expected 3 or 1"),
        ("1 \n", 1, "sentence is empty"),
        ("1 Mary moved to the bathroom.\n2 Where is Mary?\tbathroom\n", 2, "1 tabs"),
        ("1 Mary moved to the bathroom.\n2 Where is Mary?\tbathroom\t1\tx\n", 2, "3 tabs"),
        ("1 Mary moved to the bathroom.\n2 Where is Mary?\t \t1\n", 2, r"answer to 'Where is Mary\?' is empty"),
        ("1 Mary moved to the bathroom.\n2 \tbathroom\t1\n", 2, "question is empty"),
        ("1 Mary moved to the bathroom.\n2 Where is Mary?\tbathroom\t\n", 2, "names no supporting line"),
        ("1 Mary moved to the bathroom.\n2 Where is Mary?\tbathroom\tone\n", 2, "'one' is not a line number"),
        ("1 Mary moved to the bathroom.\n2 Where is Mary?\tbathroom\t3\n3 John left.\n", 2, "support 3 is not the line of an earlier fact"),
        (GOOD + "3 Where is Mary?\tbathroom\t2\n", 3, r"support 2 is not the line of an earlier fact of this story \(facts: 1\)"),
        ("1 Mary moved to the bathroom.\n2 Where is Mary?\tbathroom\t1 1\n", 2, "names a line twice"),
        ("1 Mary moved to the bathroom.\n1 John left.\n2 Where?\tx\t1\n", 2, "story that ends here has no question"),
        (GOOD + "1 John moved to the office.\n", 3, "story that ends here has no question"),
        (GOOD + "\n", 3, "has no number"),
    ],
)
def test_refuses_malformed_files(tmp_path: Path, text: str, line: int | None, reason: str) -> None:
    path = tmp_path / "qa1.txt"
    path.write_text(text)
    with pytest.raises(ValueError, match=rf"qa1\.txt{f':{line}' if line else ''}: .*{reason}"):
        read_babi(path)


def test_refuses_other_encodings(tmp_path: Path) -> None:
    path = tmp_path / "qa1.txt"
    path.write_bytes(GOOD.encode("utf-16"))
    with pytest.raises(ValueError, match=r"qa1\.txt: is not UTF-8"):
        read_babi(path)


def test_missing_files_say_what_to_place_where(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"qa2_two-supporting-facts_test\.txt: no such file; data_dir = .* babi/en-10k"):
        babi_path(tmp_path, "qa2", "test")
    with pytest.raises(ValueError, match=r"task = 'qa6': unknown task of babilong; known: qa1, qa2, qa3, qa4, qa5"):
        babi_path(tmp_path, "qa6", "test")
    with pytest.raises(ValueError, match=r"split = 'validation': the official bAbI files have"):
        babi_path(tmp_path, "qa2", "validation")
    with pytest.raises(ValueError, match=r"split = 'dev': unknown; known: train, validation, test"):
        check_split("dev")
