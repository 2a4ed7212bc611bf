"""BABILong's published rows: facts found in running text, labels by replaying the story, sentences that touch."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from qrag_jax.data.babilong.labels import find_facts, find_label
from qrag_jax.data.babilong.rows import cut, find_rows, load_rows, sentences
from qrag_jax.data.babilong.simulator import simulate_story
from qrag_jax.data.babilong.stories import BABI_TASKS, Story, babi_path, read_babi

BOOK = (
    "The wind fell at dusk, and the boats lay still upon the water.",
    '"Who is there?" he asked.',
    "Mary went to the\nmarket with Dr. Lee.",
    "CHAPTER II\n\nHe closed the door",
)


def row(story: Story, number: int = -1) -> dict[str, str]:
    """A row as BABILong's generator writes it: no space between sentences, and the last one cut."""
    question = story.questions[number]
    text = ""
    for i, fact in enumerate(story.facts[: question.facts]):
        text += (BOOK[i % 3] if i % 2 else "") + fact
    return {"target": question.answer, "question": f"{question.question} ", "input": f"{text}{BOOK[3]}"}


def write(folder: Path, name: str, rows: list[dict[str, str]]) -> Path:
    path = folder / "babilong" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows))
    return path


@pytest.mark.parametrize("task", BABI_TASKS)
def test_rows_get_the_labels_of_their_stories(task: str, tmp_path: Path) -> None:
    stories = [simulate_story(task, "test", 0, i) for i in range(40)]
    write(tmp_path, f"data/{task}/4k.json", [row(story) for story in stories])
    examples = load_rows(tmp_path, task, "4k")
    assert len(examples) == 40
    for story, example in zip(stories, examples, strict=True):
        question = story.questions[-1]
        assert (example.question, example.answer) == (question.question, question.answer)
        assert [example.chunks[i] for i in example.support] == [story.facts[i] for i in question.support]
        kept = [chunk for chunk in example.chunks if chunk in story.facts]
        assert kept == list(story.facts[: question.facts])
        assert example.chunks[-2:] == ("CHAPTER II", "He closed the door")


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("task", BABI_TASKS)
def test_official_labels_follow_from_their_stories(task: str, split: str, shared_data: Path) -> None:
    for story in read_babi(babi_path(shared_data, task, split))[:: 7 if split == "train" else 1]:
        found = [list(find_facts(task, fact)) for fact in story.facts]
        assert all([(start, end) for start, end, _ in pieces] == [(0, len(fact))] for pieces, fact in zip(found, story.facts, strict=True))
        events = [pieces[0][2] for pieces in found]
        for question in story.questions:
            label = find_label(task, events[: question.facts], question.question, question.answer)
            assert label is not None
            assert tuple(sorted(label[1])) == question.support


def test_sentences_that_touch_are_separate_and_nothing_is_lost() -> None:
    text = "She shut the door.He went home.“Stop!” cried the U.S. consul, Mr. Hale.John went to the office.Mary is here."
    (fact,) = [(start, end) for start, end, _ in find_facts("qa1", text)]
    chunks, places = cut(text, [fact])
    assert chunks == [
        "She shut the door.",
        "He went home.",
        "“Stop!” cried the U.S. consul, Mr. Hale.",
        "John went to the office.",
        "Mary is here.",
    ]
    assert places == [3]
    assert list(sentences("It cost 3.5 pounds, i.e. much.  See e.g. p. 4.\n\n  \n")) == ["It cost 3.5 pounds, i.e. much.", "See e.g. p. 4."]
    # A cut sentence may touch the name of a fact.
    assert [text[start:end] for text in ["the manMary went back to the garden.And"] for start, end, _ in find_facts("qa1", text)] == [
        "Mary went back to the garden."
    ]


def test_files_are_found_as_people_have_them(tmp_path: Path) -> None:
    stories = [simulate_story("qa1", "test", 0, i) for i in range(4)]
    write(tmp_path, "data/qa1/0k.json", [row(story) for story in stories])
    write(tmp_path, "data/qa10/0k.json", [])
    path = write(tmp_path, "1k/qa1.jsonl", [])
    path.write_text("".join(json.dumps(row(story)) + "\n" for story in stories[:2]))
    packed = tmp_path / "babilong" / "qa1" / "1M.json.gz"
    packed.parent.mkdir()
    packed.write_bytes(gzip.compress(json.dumps([row(stories[3])]).encode()))
    parquet, arrow = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("pyarrow")
    for part in (0, 1):
        parts = [{name: row(story)[name] for name in ("question", "target", "input")} for story in stories[2 * part : 2 * part + 2]]
        parquet.write_table(arrow.Table.from_pylist(parts), path.with_name(f"qa1-0000{part}-of-00002.parquet"))
    with pytest.raises(ValueError, match="are both qa1 at 1k; keep one of them"):
        find_rows(tmp_path, "qa1")
    path.unlink()
    assert {length: len(files) for length, files in find_rows(tmp_path, "qa1").items()} == {"0k": 1, "1k": 2, "1M": 1}
    assert [example.id for example in load_rows(tmp_path, "qa1", "1k")] == [f"babilong/qa1/1k/{n}" for n in range(4)]
    assert len(load_rows(tmp_path, "qa1", "1M")) == 1
    with pytest.raises(ValueError, match=r"no qa2/LENGTH.json and no LENGTH/qa2-\*.parquet; data_dir = .*hf download RMT-team/babilong"):
        find_rows(tmp_path, "qa2")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target": "moon"}, "facts without the target: the 2 facts of qa1 in its input do not answer 'Where is .*' with 'moon'"),
        ({"question": "Where is the milk?"}, r"question of another task: question 'Where is the milk\?': not one of qa1"),
        ({"input": "Nothing happens here."}, "facts without the target: the 0 facts"),
        ({"input": " "}, "no input: input = ' ': must be a string that is not empty"),
        ({"target": None}, "no target: target = 'None'"),
    ],
)
def test_bad_rows_are_named(change: dict[str, str | None], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    story = simulate_story("qa1", "test", 0, 0)
    good = row(story, 0)
    write(tmp_path, "data/qa1/1k.json", [good, {**good, **change}, good])
    with pytest.raises(ValueError, match=rf"1k\.json: record 2: {message}"):
        load_rows(tmp_path, "qa1", "1k")
    examples = load_rows(tmp_path, "qa1", "1k", skip_bad=True)
    assert [example.id for example in examples] == ["babilong/qa1/1k/0", "babilong/qa1/1k/2"]
    assert "1 left out" in capsys.readouterr().out
