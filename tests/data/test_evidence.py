"""Readers of gold evidence and of meetings, and files of passages: by hand, what they refuse, and the counts of the real files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qrag_jax import data
from qrag_jax.config import DataConfig, benchmarks
from qrag_jax.data.multihop.evidence import read_evidence, read_proofs
from qrag_jax.data.multihop.passages import read_passages
from qrag_jax.data.multihop.qmsum import WORDS, pack, read_qmsum
from qrag_jax.data.splits import SPLITS
from tests.support.small import write_lines


def evidence(name: str, *paragraphs: tuple[str, str, bool], **changes: Any) -> dict[str, Any]:
    parts = [{"idx": i, "title": t, "paragraph_text": p, "is_supporting": s} for i, (t, p, s) in enumerate(paragraphs)]
    return {"id": name, "question": " Why? ", "answer": "so", "answer_aliases": ["", "thus"], "paragraphs": parts, **changes}


def test_evidence_records(tmp_path: Path) -> None:
    lines = [evidence("a", ("", "x", False), ("Page", "y", True)), evidence("b", ("", "z", True))]
    (first, second), report = read_evidence(write_lines(tmp_path / "some.jsonl", *lines))
    assert (first.question, first.aliases, first.paragraphs, first.support) == ("Why?", ("thus",), (("", "x"), ("Page", "y")), (1,))
    assert first.chunks() == ("x", "Page. y")
    assert (second.support, report.notes["empty alias, not read"]) == ((0,), 2)


def test_proofs_of_one_question(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "some.jsonl", evidence("a", ("", "x", True)), evidence("a", ("", "y", True)))
    with pytest.raises(ValueError, match="duplicate id"):
        read_evidence(path)
    records, _ = read_proofs(path)
    assert {record.id.rpartition("-")[0] for record in records} == {"a"}
    assert len({record.id for record in records}) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"paragraphs": [{"idx": 1, "title": "", "paragraph_text": "x", "is_supporting": True}]}, "idx out of sequence"),
        ({"paragraphs": [{"idx": 0, "title": "", "paragraph_text": " ", "is_supporting": True}]}, "empty paragraph: .* has no text"),
        ({"paragraphs": [{"idx": 0, "title": "", "paragraph_text": "x", "is_supporting": False}]}, "no support"),
        ({"answer_aliases": None}, "wrong type of answer_aliases"),
    ],
)
def test_bad_evidence(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=rf"some\.jsonl:1: {message}"):
        read_evidence(write_lines(tmp_path / "some.jsonl", evidence("a", ("", "x", True), **change)))


def test_turns_are_packed_in_order() -> None:
    long = " ".join(f"w{i}" for i in range(WORDS + 10))
    meeting = pack([("Ann", "one two"), ("Bob", " "), ("Cy", long), ("Ann", "end")])
    # "Ann: one two" has three words; "Cy:" and 90 words do not fit after them, and are broken after 80.
    assert meeting.chunks == ("Ann: one two", f"Cy: {' '.join(long.split()[:79])}", f"{' '.join(long.split()[79:])}\nAnn: end")
    assert meeting.places == ((0, 0), None, (1, 2), (2, 2))
    assert all(len(chunk.split()) <= WORDS for chunk in meeting.chunks)


@pytest.fixture
def queries(tmp_path: Path) -> Callable[..., Path]:
    turns = [{"idx": i, "speaker": "Ann", "text": " ".join([f"t{i}"] * 60)} for i in range(3)]
    write_lines(tmp_path / "meetings_val.jsonl", {"doc_id": "M1", "turns": turns})
    query = {"id": "M1_0", "doc_id": "M1", "question": "What?", "answer": "this", "support_spans": [[1, 2]]}
    return lambda **changes: write_lines(tmp_path / "queries_val.jsonl", {**query, **changes})


def test_queries_of_a_meeting(queries: Callable[..., Path]) -> None:
    ((record,), _) = read_qmsum(queries())
    assert (record.id, record.support, [text[:7] for _, text in record.paragraphs]) == ("M1_0", (1, 2), ["Ann: t0", "Ann: t1", "Ann: t2"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"doc_id": "M2"}, "unknown meeting: 'M2'"),
        ({"support_spans": [[1, 3]]}, r"span out of range: \[1, 3\]: must be a first and a last turn in 0\.\.2"),
        ({"support_spans": [[2, 1]]}, "span out of range"),
        ({"support_spans": [[1]]}, "span out of range"),
        ({"support_spans": []}, "no support"),
        ({"support_spans": [[0, "1"]]}, "wrong type of support_spans"),
        ({"answer": " "}, "empty answer"),
    ],
)
def test_bad_queries(queries: Callable[..., Path], change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=rf"queries_val\.jsonl:1: {message}"):
        read_qmsum(queries(**change))


def test_bad_meetings(queries: Callable[..., Path]) -> None:
    path = queries()
    meetings = path.with_name("meetings_val.jsonl")
    write_lines(meetings, *[{"doc_id": "M1", "turns": []}] * 2)
    with pytest.raises(ValueError, match=r"meetings_val\.jsonl:2: 'M1' is the doc_id of an earlier meeting"):
        read_qmsum(path)
    write_lines(meetings, {"doc_id": "M1", "turns": [{"speaker": "Ann"}]})
    with pytest.raises(ValueError, match=r"meetings_val\.jsonl:1: no text"):
        read_qmsum(path)
    meetings.unlink()
    with pytest.raises(ValueError, match=r"meetings_val\.jsonl: no such file"):
        read_qmsum(path)


def test_a_training_file_alone_gives_three_splits_by_page(tmp_path: Path) -> None:
    lines = [evidence(str(i), (f"page {i % 40}", f"text {i}", True), ("other", "no", False)) for i in range(200)]
    write_lines(tmp_path / "conditionalqa" / "conditionalqa_train_evidence.jsonl", *lines)
    config = DataConfig(benchmark="conditionalqa", task="all", data_dir=str(tmp_path))
    pages = {s: {text.partition(".")[0] for e in data.load(config, s, seed=0) for text in e.chunks if "page" in text} for s in SPLITS}
    assert sum(map(len, pages.values())) == len(set.union(*pages.values())) == 40, "no page is in two splits"
    assert all(pages.values())


def test_ordered_documents_are_not_shuffled_in_training(tmp_path: Path, queries: Callable[..., Path]) -> None:
    folder = queries().parent
    target = tmp_path / "qmsum"
    target.mkdir()
    for name in ("meetings", "queries"):
        for split in ("train", "val"):
            text = (folder / f"{name}_val.jsonl").read_text(encoding="utf-8")
            # The training file has other queries, of a meeting that falls into train.
            (target / f"{name}_{split}.jsonl").write_text(text.replace("M1", "M5" if split == "train" else "M1"), encoding="utf-8")
    made = data.load(DataConfig(benchmark="qmsum", task="all", data_dir=str(tmp_path)), "train", seed=0)
    assert [made[i].support for i in range(4)] == [(1, 2)] * 4
    assert made[3].chunks[0].startswith("Ann: t0")


def test_passages(tmp_path: Path) -> None:
    rows = [{"title": " Rome ", "text": "It is old.", "idx": 3}, {"text": "Alone."}, {"title": "", "text": "Alone."}]
    expected = ("Rome. It is old.", "Alone.")
    assert read_passages(write_lines(tmp_path / "a.jsonl", *rows)) == expected
    assert read_passages(write_lines(tmp_path / "a.json", json.dumps(rows))) == expected


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.jsonl", '{"text": "x"}\nno', r"a\.jsonl:2: not JSON"),
        ("a.jsonl", '{"title": "x"}', r"a\.jsonl:1: must be an object with a text"),
        ("a.jsonl", "[1]", r"a\.jsonl:1: must be an object"),
        ("a.jsonl", '{"text": "\\ud800"}', r"a\.jsonl:1: .* is no character"),
        ("a.json", '{"text": "x"}', r"a\.json: must be a list of passages; .* must be called \.jsonl"),
        ("a.json", '[{"text": " "}]', r"a\.json: passage 1: must be an object"),
        ("a.json", " ", r"a\.json: is empty"),
    ],
)
def test_bad_passages(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        read_passages(tmp_path / name)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("entailmentbank", (1180, 132, 187)),
        ("conditionalqa", (1763, 226, 256)),
        ("qmsum", (1009, 86, 237)),
        ("hotpotqa_more", (79, 10, 11)),
        ("hotpotqa_evidence", (402, 52, 45)),
        ("twowiki_more", (750, 86, 110)),
    ],
)
def test_the_real_files(name: str, counts: tuple[int, int, int], shared_data: Path) -> None:
    config = DataConfig(benchmark=name, task="all", data_dir=str(shared_data), chunks=benchmarks.longest(name))
    assert tuple(len(data.load(config, split, seed=0)) for split in SPLITS) == counts
