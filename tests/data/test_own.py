"""A user's own questions: what a line may be, what is said about one that is not, and how the splits are made."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from qrag_jax import data
from qrag_jax.config import DataConfig
from qrag_jax.data.multihop.own import read_own
from qrag_jax.data.splits import SPLITS, hashed_split
from qrag_jax.types import QAExample

FIXTURE = Path(__file__).resolve().parents[1] / "fixtures" / "own" / "questions.jsonl"
GOOD: dict[str, Any] = {"id": "a", "question": "Where?", "chunks": ["Here.", "There.", "Nowhere."], "support": [1], "answer": "There"}


def write(path: Path, *records: Any) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def many(first: int, last: int) -> list[dict[str, Any]]:
    return [{**GOOD, "id": f"q{n}"} for n in range(first, last)]


def config(path: Path, **values: Any) -> DataConfig:
    return DataConfig(**{"benchmark": "own", "task": "all", "data_dir": str(path), **values})


def test_reads_lines() -> None:
    (first, second, third), report = read_own(FIXTURE)
    assert first.chunks() == ("The house has two doors.", "The spare key is in the blue box.", "The blue box is in the shed.")
    assert first.support == (1, 2)  # [2, 1] in the file
    assert (second.answer, second.support) == ("", (0,))
    assert third.question == "When is the café closed?"
    assert str(report).endswith("questions.jsonl: 3 questions")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"anwser": "x"}, "unknown field: 'anwser'; known: id, question, chunks, support, answer"),
        ({"id": None}, "wrong type of id: must be a string, not null"),
        ({"id": " "}, "empty id: the field 'id' has no text"),
        ({"question": ""}, "empty question"),
        ({"chunks": "Here. There."}, "wrong type of chunks: must be a list, not a string"),
        ({"chunks": []}, "empty chunks: a document needs at least one chunk"),
        ({"chunks": ["Here.", 2]}, "wrong type of chunks: must be a string, not a whole number"),
        ({"chunks": ["Here.", "\n"]}, r"empty chunk: chunks\[1\] has no text"),
        ({"support": []}, r"empty support: must hold at least one index in 0..2"),
        ({"support": 1}, "wrong type of support: must be a list"),
        ({"support": ["1"]}, "wrong type of support: must be a whole number, not a string"),
        ({"support": [True]}, "wrong type of support: must be a whole number, not true or false"),
        ({"support": [3]}, r"support out of range: 3 must be in 0..2"),
        ({"support": [-1]}, "support out of range: -1"),
        ({"support": [1, 1]}, r"support with repeats: \[1, 1\] names a chunk twice"),
        ({"chunks": ["Here.", "There.", "There."]}, r"contradictory support: chunks\[2\] has the same text as chunks\[1\]"),
        ({"answer": 3}, "wrong type of answer: must be a string, not a whole number"),
        ({"id": "b"}, "duplicate id: 'b' is the id of an earlier record"),
    ],
)
def test_names_file_line_and_field(tmp_path: Path, change: dict[str, Any], reason: str) -> None:
    path = write(tmp_path / "my.jsonl", {**GOOD, "id": "b"}, {**GOOD, **change})
    with pytest.raises(ValueError, match=rf"my\.jsonl:2: {reason}"):
        read_own(path)
    records, report = read_own(path, skip_bad=True)
    assert [record.id for record in records] == ["b"]
    assert report.skipped == Counter({reason.partition(":")[0]: 1})


@pytest.mark.parametrize("field", ["id", "question", "chunks", "support"])
def test_every_field_but_the_answer_is_needed(tmp_path: Path, field: str) -> None:
    path = write(tmp_path / "my.jsonl", {name: value for name, value in GOOD.items() if name != field})
    with pytest.raises(ValueError, match=f"my.jsonl:1: no {field}: the field '{field}' is missing; fields: "):
        read_own(path)


def test_one_file_is_split_by_its_ids(tmp_path: Path) -> None:
    path = write(tmp_path / "my.jsonl", *many(0, 400))
    ids = {split: {example.id for example in data.load(config(path), split, seed=0)} for split in SPLITS}
    assert sum(map(len, ids.values())) == len(set.union(*ids.values())) == 400
    assert 300 < len(ids["train"]) < 340
    # Questions that are added later, and other lines' order, move none of the old ones.
    more = write(tmp_path / "more.jsonl", *reversed(many(0, 500)))
    for split in SPLITS:
        assert ids[split] < {example.id for example in data.load(config(more), split, seed=1)}


def test_chunks_keep_their_order_and_questions_come_again(tmp_path: Path) -> None:
    path = write(tmp_path / "my.jsonl", *many(0, 100))
    train = data.load(config(path), "train", seed=0, group=4)
    assert isinstance(train[0], QAExample)
    assert all(train[i].chunks == tuple(GOOD["chunks"]) and train[i].support == (1,) for i in range(2 * len(train)))
    first, second = ([train[i].id for i in range(k * len(train), (k + 1) * len(train))] for k in (0, 1))
    assert first != second
    assert sorted(first) == sorted(second)


def test_a_folder_has_a_file_a_split(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", *many(0, 3))
    write(tmp_path / "validation.jsonl", *many(3, 5))
    with pytest.raises(ValueError, match=r"no test\.jsonl; a folder of your own questions holds train\.jsonl, validation\.jsonl and"):
        data.load(config(tmp_path), "train", seed=0)
    write(tmp_path / "test.jsonl", *many(5, 6))
    assert [len(data.load(config(tmp_path), split, seed=0)) for split in SPLITS] == [3, 2, 1]
    folder = tmp_path / "other"
    folder.mkdir()
    for split in SPLITS:
        write(folder / f"{split}.jsonl", GOOD)
    with pytest.raises(ValueError, match="other: question 'a' is in train and in validation; splits must share no question"):
        data.load(config(folder), "test", seed=0)


def test_refuses_what_cannot_be_trained_on(tmp_path: Path) -> None:
    path = write(tmp_path / "my.jsonl", *many(0, 100))
    with pytest.raises(ValueError, match=r"data.chunks = 2: must be >= 3, the number of paragraphs of the longest training document"):
        data.load(config(path, chunks=2), "train", seed=0)
    with pytest.raises(ValueError, match=r"data.task = 'qa2': unknown task of own; known: all"):
        data.load(config(path, task="qa2"), "train", seed=0)
    with pytest.raises(ValueError, match=r"give your questions, a .jsonl file or a folder"):
        data.load(DataConfig(benchmark="own", task="all"), "train", seed=0)
    with pytest.raises(ValueError, match=r"nowhere\.jsonl: no such file"):
        data.load(config(tmp_path / "nowhere.jsonl"), "train", seed=0)
    one = config(write(tmp_path / "one.jsonl", GOOD))
    for split in set(SPLITS) - {hashed_split(GOOD["id"])}:
        with pytest.raises(ValueError, match=rf"none of its questions falls into {split}; add questions"):
            data.load(one, split, seed=0)
