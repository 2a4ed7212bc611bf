"""Readers of multi-hop files: what they return and refuse, how splits and orders are drawn, and the counts of the real files."""

from __future__ import annotations

import functools
import gzip
import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qrag_jax import data
from qrag_jax.config import DataConfig
from qrag_jax.data.multihop import questions as multihop
from qrag_jax.data.multihop.hotpotqa import HOTPOTQA, read_hotpotqa
from qrag_jax.data.multihop.musique import MUSIQUE, read_musique
from qrag_jax.data.multihop.records import EMPTY, Record
from qrag_jax.data.multihop.twowiki import read_twowiki
from qrag_jax.data.splits import SPLITS
from qrag_jax.train.batches import make_batch
from tests.support.multihop import BENCHMARKS, FIXTURES, HF_ROW, fixture, put, write_with
from tests.support.small import small_tokenizer, write_lines


def test_hotpotqa_records() -> None:
    records, report = read_hotpotqa(fixture("hotpotqa"))
    first, second, _ = records
    # supporting_facts name Ostrel Bridge and Ada Finnick, which stand at 3 and 1; the question ends with a blank in the file.
    assert first == Record(
        id="hp0",
        question="In which valley was the builder of the Ostrel Bridge born?",
        answer="Lorne Valley",
        aliases=(),
        paragraphs=(
            ("Lorne Valley", "The Lorne Valley is a valley of vineyards. It has nine villages."),
            ("Ada Finnick", "Ada Finnick was an engineer, born in the Lorne Valley. She died in 1911."),
            ("Grenn Castle", "Grenn Castle stands on a hill. Nobody lives in it."),
            ("Ostrel Bridge", "The Ostrel Bridge crosses the Ostrel. It was built by Ada Finnick."),
        ),
        support=(1, 3),
        type="bridge",
    )
    assert first.chunks()[2] == "Grenn Castle. Grenn Castle stands on a hill. Nobody lives in it."
    assert (second.support, second.hops) == ((0, 1), 2)  # three facts in two paragraphs
    assert str(report).endswith("hotpot_fit.json: 3 questions")


def test_musique_records() -> None:
    first, second, third = read_musique(fixture("musique"))[0]
    assert first.aliases == ("J. Ostrow", "Ostrow")
    assert first.paragraphs[:2] == (("Ilm", "Ilm lies south of the province of Brask."), ("Ilm", "Ilm has a fair in June."))
    assert (first.support, first.type) == ((0, 2), "2hop")
    assert (second.support, second.type, second.hops) == ((0, 1, 3), "3hop", 3)
    assert (first.path, second.path) == ((0, 2), (3, 0, 1)), "in the order of the hops"
    assert "\u2028" in third.paragraphs[0][1]  # a line separator inside a string does not end a line of the file


def test_twowiki_records_and_what_is_put_up_with() -> None:
    records, report = read_twowiki(fixture("twowiki"))
    # The first has a distractor twice, the last names sentence 3 of a paragraph with one: it still supports.
    assert [len(record.paragraphs) for record in records] == [4, 5, 3]
    assert [record.support for record in records] == [(1, 2), (0, 1, 2, 3), (0, 2)]
    assert report.notes == Counter(
        {"paragraph repeated word for word, read once": 1, "supporting sentence past the end of its paragraph": 1}
    )
    assert str(report).endswith(
        "2wiki_fit.json: 3 questions; noted: 1 paragraph repeated word for word, read once, "
        "1 supporting sentence past the end of its paragraph"
    )


def test_a_repeated_paragraph_supports_if_either_does(tmp_path: Path) -> None:
    def repeat(record: Any) -> None:
        record["paragraphs"][1] = {**record["paragraphs"][2], "idx": 1, "is_supporting": False}

    (record, *_), report = read_musique(write_with(tmp_path, "musique", repeat))
    assert [title for title, _ in record.paragraphs] == ["Ilm", "Brask"]
    assert record.support == (0, 1)
    assert report.notes.total() == 1


def config(name: str, folder: Path = FIXTURES, **values: Any) -> DataConfig:
    return DataConfig(**{"benchmark": name, "task": "all", "data_dir": str(folder), "chunks": 20, **values})


@pytest.mark.parametrize("name", BENCHMARKS)
def test_splits_of_the_fixtures(name: str) -> None:
    parts = {split: data.load(config(name), split, seed=0, chunks=40, haystacks=2) for split in SPLITS}
    assert {split: len(part) for split, part in parts.items()} == {"train": 2, "validation": 1, "test": 1}
    ids = [{example.id for example in part} for part in parts.values()]
    assert len(set.union(*ids)) == 4
    assert ids[2] == {f"{name}/{BENCHMARKS[name].read(fixture(name).with_name(BENCHMARKS[name].files[1][1]))[0][0].id}"}


def test_training_shuffles_questions_and_paragraphs() -> None:
    train = data.load(config("twowiki"), "train", seed=3, group=2)
    by_id = {f"twowiki/{record.id}": record for record in read_twowiki(fixture("twowiki"))[0]}
    orders = set()
    for i in range(40):
        example = train[i]
        assert example == data.load(config("twowiki"), "train", seed=3, group=7)[i]
        record = by_id[example.id]
        assert sorted(example.chunks) == sorted(record.chunks())
        assert {example.chunks[k] for k in example.support} == {record.chunks()[k] for k in record.support}
        orders.add(example.chunks)
    assert len(orders) > 20
    assert [len({train[2 * k].id, train[2 * k + 1].id}) for k in range(20)] == [2] * 20  # a pass has every question once
    assert len({train[2 * k].id for k in range(20)}) == 2  # in an order of its own
    assert [train[i] for i in range(8)] != [data.load(config("twowiki"), "train", seed=4)[i] for i in range(8)]
    with pytest.raises(IndexError, match="must be >= 0, since the sequence has no end"):
        train[-1]
    test = data.load(config("twowiki"), "test", seed=3)
    assert test[0].chunks == test[5].chunks == ("Ume. The Ume is 120 km long.", "Dray. The Dray is 300 km long.", "Lake. Lakes are wide.")


def test_tasks_are_types_of_questions() -> None:
    assert [example.question[:5] for example in data.load(config("hotpotqa", task="comparison"), "train", seed=0)] == ["Which"]
    with pytest.raises(ValueError, match=r"data.task = 'qa2': unknown task of musique; known: all, 2hop, 3hop, 4hop"):
        data.load(config("musique", task="qa2"), "train", seed=0)
    with pytest.raises(ValueError, match="musique: no question is left for test"):
        data.load(config("musique", task="4hop"), "test", seed=0)


def test_examples_fill_a_batch() -> None:
    settings = config("musique", chunks=4)
    train = data.load(settings, "train", seed=0, group=2)
    batch = make_batch([train[0], train[1]], 0, small_tokenizer(), settings)
    assert sorted(batch.chunk_mask.sum(1).tolist()) == [3, 4]
    assert sorted(batch.support.sum(1).tolist()) == [2, 3]
    with pytest.raises(ValueError, match=r"data.chunks = 3: must be >= 4, the number of paragraphs of the longest training document"):
        data.load(config("musique", chunks=3), "train", seed=0)


def test_official_files_are_preferred_and_pairs_are_not_mixed(tmp_path: Path) -> None:
    folder = tmp_path / "musique"
    folder.mkdir()
    with pytest.raises(ValueError, match=r"no files of musique; looked for in data_dir/musique: musique_ans_v1.0_train.jsonl and .*github"):
        data.load(config("musique", tmp_path), "train", seed=0)
    with pytest.raises(ValueError, match=r"data.data_dir: musique is read from files, so give their folder; looked for"):
        data.load(replace(config("musique"), data_dir=None), "train", seed=0)
    for name in MUSIQUE.files[1]:
        shutil.copy(FIXTURES / "musique" / name, folder)
    shutil.copy(fixture("musique"), folder / MUSIQUE.files[0][0])
    assert multihop.find_files(MUSIQUE, tmp_path) == tuple(folder / name for name in MUSIQUE.files[1])
    shutil.copy(folder / "musique_eval.jsonl", folder / MUSIQUE.files[0][1])
    assert multihop.find_files(MUSIQUE, tmp_path) == tuple(folder / name for name in MUSIQUE.files[0])
    shutil.copy(fixture("musique"), folder / MUSIQUE.files[0][1])
    with pytest.raises(ValueError, match=r"train.jsonl and .*dev.jsonl: question '2hop__\d+' is in train and in test"):
        data.load(config("musique", tmp_path), "validation", seed=0)


def test_skipping_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "hotpotqa"
    shutil.copytree(FIXTURES / "hotpotqa", folder)
    write_with(folder, "hotpotqa", put("answer", ""))
    with pytest.raises(ValueError, match="record 1: empty answer"):
        HOTPOTQA_load(config("hotpotqa", tmp_path), "train", seed=0)
    assert len(HOTPOTQA_load(config("hotpotqa", tmp_path, skip_bad=True), "train", seed=0)) == 1
    assert "hotpot_fit.json: 2 questions; 1 left out (1 empty answer)" in capsys.readouterr().out


HOTPOTQA_load = functools.partial(multihop.load, HOTPOTQA)


@pytest.mark.parametrize(
    ("name", "sizes", "notes"),
    [
        ("hotpotqa", (1809, 300), ({}, {})),
        ("musique", (421, 100), ({}, {})),
        (
            "twowiki",
            (500, 657),
            (
                {"paragraph repeated word for word, read once": 27, "supporting sentence past the end of its paragraph": 6},
                {"paragraph repeated word for word, read once": 30},
            ),
        ),
    ],
)
def test_real_files(shared_data: Path, name: str, sizes: tuple[int, int], notes: tuple[dict[str, int], dict[str, int]]) -> None:
    benchmark = BENCHMARKS[name]
    files = multihop.find_files(benchmark, shared_data)
    assert files is not None
    read = [benchmark.read(path) for path in files]
    assert tuple(len(records) for records, _ in read) == sizes
    assert tuple(dict(report.notes) for _, report in read) == notes
    for records, _ in read:
        assert all(2 <= record.hops <= 4 for record in records)
    places = Counter(place for records, _ in read for record in records if len(record.paragraphs) >= 9 for place in record.support)
    # The published order does not give the support away: every place has its share.
    assert min(places[k] for k in range(9)) > 0.6 * max(places[k] for k in range(9))
    parts = {split: data.load(config(name, shared_data), split, seed=0) for split in SPLITS}
    ids = {split: {example.id for example in part} for split, part in parts.items()}
    assert sum(map(len, ids.values())) == len(set.union(*ids.values())) == sum(sizes)
    assert 0.07 < len(ids["validation"]) / sizes[0] < 0.13


@pytest.mark.parametrize("name", ["x.jsonl", "x.jsonl.gz", "x.parquet", "x.json", "lines.json"])
def test_rows_of_hugging_face_are_read(name: str, tmp_path: Path) -> None:
    """Lists by field, a title in another Unicode form, a distractor without text, a byte-order mark and blank last lines."""
    text, path = json.dumps(HF_ROW), tmp_path / name
    if name == "x.parquet":
        parquet, arrow = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("pyarrow")
        parquet.write_table(arrow.Table.from_pylist([HF_ROW]), path)
    elif name == "x.json":
        path.write_bytes(b"\xef\xbb\xbf" + f"[{text}]\n\n".encode())
    else:
        lines = b"\xef\xbb\xbf" + f"{text}\n\n \n".encode()
        path.write_bytes(gzip.compress(lines) if name.endswith("gz") else lines)
    (record,), report = read_hotpotqa(path)
    assert record.paragraphs == (("Cafe\u0301", "One."), ("B", "Two. Three."))
    assert record.support == (0, 1)
    assert record.id == "a"
    assert report.notes == {EMPTY: 1}


def test_other_layouts_of_rows_on_the_hub_are_the_same_records(tmp_path: Path) -> None:
    """Objects with a title and one more field, and columns that hold JSON texts."""
    (expected,), _ = read_hotpotqa(write_lines(tmp_path / "columns.jsonl", HF_ROW))
    named = {"context": "content", "supporting_facts": "sent_id"}
    columns = {name: list(zip(*HF_ROW[name].values(), strict=True)) for name in named}
    objects = {name: [{"title": title, named[name]: other} for title, other in pairs] for name, pairs in columns.items()}
    for changes in (objects, *({name: json.dumps(value) for name, value in layout.items()} for layout in (columns, objects))):
        (found,), _ = read_hotpotqa(write_lines(tmp_path / "rows.jsonl", {**HF_ROW, **changes}))
        assert found == expected
    with pytest.raises(ValueError, match="wrong type of context: must have a title and one more field, not title, a, b"):
        read_hotpotqa(write_lines(tmp_path / "more.jsonl", {**HF_ROW, "context": [{"title": "B", "a": [], "b": []}]}))
    with pytest.raises(ValueError, match=r"malformed line: not JSON: .*"):
        read_hotpotqa(write_lines(tmp_path / "text.jsonl", {**HF_ROW, "context": "[["}))


@pytest.mark.parametrize("pair", multihop.HUGGING_FACE)
def test_files_of_hugging_face_are_found_by_their_names(pair: tuple[str, str], tmp_path: Path) -> None:
    for name, benchmark in BENCHMARKS.items():
        assert "train and validation (or dev) with one of the endings .parquet, .jsonl, .jsonl.gz, .json." in benchmark.wanted
        for file in pair:
            write_lines(tmp_path / benchmark.folder / file, "{}")
        assert multihop.find_files(benchmark, tmp_path) == tuple(tmp_path / benchmark.folder / file for file in pair), name


def test_rows_of_musique_with_a_list_for_each_field_are_read(tmp_path: Path) -> None:
    row = json.loads((FIXTURES / "musique" / "musique_fit.jsonl").read_text().splitlines()[0])
    (expected,), _ = read_musique(write_lines(tmp_path / "plain.jsonl", row))
    for name in ("paragraphs", "question_decomposition"):
        row[name] = {field: [one.get(field) for one in row[name]] for field in row[name][0]}
    (found,), _ = read_musique(write_lines(tmp_path / "rows.jsonl", row))
    assert found == expected
