"""Readers of multi-hop files: broken records and files are refused or skipped, each with its reason."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qrag_jax.data.multihop.hotpotqa import read_hotpotqa
from qrag_jax.data.multihop.musique import read_musique
from qrag_jax.data.multihop.own import read_own
from tests.support.multihop import BENCHMARKS, HF_ROW, put, write_with
from tests.support.small import write_lines

HOTPOT_FAULTS = [
    (put("_id", ""), "empty _id"),
    (put("_id", "hp1"), "duplicate id"),
    (put("_id", 7), "wrong type of _id: must be a string, not a whole number"),
    (lambda record: record.pop("question"), "no question: the field 'question' is missing; fields: _id, "),
    (put("question", " "), "empty question"),
    (put("answer", ""), "empty answer"),
    (put("answer", None), "wrong type of answer: must be a string, not null"),
    (put("type", "riddle"), r"unknown type: 'riddle'; known: bridge, comparison"),
    (put("context", []), "unknown support title"),
    (put("context", {}), "no title: the field 'title' is missing"),
    (put("context", 0, ["Lorne Valley"]), "wrong type of context: its entries must have 2 parts, not 1"),
    (put("context", 0, 1, "text"), "wrong type of context: must be a list, not a string"),
    (put("context", 0, 1, [3]), "wrong type of sentence"),
    (put("context", 1, 1, []), r"empty paragraph: paragraph 1 \('Ada Finnick'\) has no text"),
    (put("context", 3, 1, [" ", ""]), r"empty paragraph: paragraph 3 \('Ostrel Bridge'\) has no text"),
    (put("context", 2, 0, " "), "empty paragraph: paragraph 2 .* has no title"),
    (put("context", 2, 0, "Ada Finnick"), "ambiguous support title: 'Ada Finnick'"),
    (put("supporting_facts", []), "no support"),
    (put("supporting_facts", 0, ["Ostrel", 0]), "unknown support title: 'Ostrel' is the title of no paragraph"),
    (put("supporting_facts", 0, 1, -1), "negative sentence number"),
    (put("supporting_facts", 0, 1, True), "wrong type of supporting_facts: must be a whole number, not true or false"),
]
MUSIQUE_FAULTS = [
    (put("id", "3hop1__0"), "duplicate id"),
    (put("answerable", False), "not answerable"),
    (lambda record: record.pop("answerable"), "no answerable"),
    (put("paragraphs", []), "no paragraphs"),
    (put("paragraphs", 1, "idx", 2), "idx out of sequence: paragraph 1 has the idx 2"),
    (put("paragraphs", 0, "paragraph_text", " "), "empty paragraph: paragraph 0"),
    (put("paragraphs", 1, 3), "wrong type of record: must be an object, not a whole number"),
    (put("paragraphs", 1, "is_supporting", 0), "wrong type of is_supporting: must be true or false"),
    (put("paragraphs", 1, "is_supporting", True), r"hops are not the support: the hops use the paragraphs \[0, 2\], .* \[0, 1, 2\]"),
    (put("question_decomposition", []), "hops are not the support"),
    (put("question_decomposition", 0, {"id": 1}), "no paragraph_support_idx"),
    (put("answer_aliases", [1]), "wrong type of answer_aliases"),
]


@pytest.mark.parametrize(
    ("name", "change", "reason"),
    [("hotpotqa", *fault) for fault in HOTPOT_FAULTS]
    + [("musique", *fault) for fault in MUSIQUE_FAULTS]
    + [("twowiki", put("type", "bridge"), "unknown type: 'bridge'; known: compositional, comparison, bridge_comparison, inference")],
)
def test_refuses_or_skips_bad_records(tmp_path: Path, name: str, change: Callable[[Any], object], reason: str) -> None:
    path = write_with(tmp_path, name, change)
    read = BENCHMARKS[name].read
    # Of two records with one id, the later one is the bad one.
    number = 2 if reason == "duplicate id" else 1
    where = f":{number}: " if name == "musique" else f": record {number}: "
    with pytest.raises(ValueError, match=rf"{path.name}{where}{reason}.*Correct it, or leave out bad records"):
        read(path)
    records, report = read(path, skip_bad=True)
    assert (len(records), report.kept, report.skipped) == (2, 2, Counter({reason.partition(":")[0]: 1}))
    assert f"2 questions; 1 left out (1 {reason.partition(':')[0]})" in str(report)


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("hotpotqa", "", "is empty"),
        ("hotpotqa", "[{", "not a JSON file: "),
        ("hotpotqa", "{}", "1: no type"),
        ("hotpotqa", "[1]\n[2]", "not a JSON file: Extra data at line 2"),
        ("hotpotqa", "[]", "no record is left; the list is empty"),
        ("hotpotqa", "[3]", "record 1: wrong type of record: must be an object, not a whole number"),
        ("musique", "{]\n", "1: malformed line: not JSON"),
        ("musique", "\n{}\n", "1: malformed line: not JSON"),
    ],
)
def test_refuses_bad_files(tmp_path: Path, name: str, text: str, reason: str) -> None:
    path = tmp_path / "file"
    path.write_text(text)
    with pytest.raises(ValueError, match=f"file: ?{reason}"):
        BENCHMARKS[name].read(path)
    path.write_bytes("[é]".encode("latin-1"))
    with pytest.raises(ValueError, match="file: is not UTF-8"):
        BENCHMARKS[name].read(path)
    with pytest.raises(ValueError, match="nowhere: no such file"):
        BENCHMARKS[name].read(tmp_path / "nowhere")


def test_nothing_left_is_an_error_even_if_bad_records_are_skipped(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text('{"id": 1}\n{"id": 2}\n')
    with pytest.raises(ValueError, match="no record is left; 2 no answerable"):
        read_musique(path, skip_bad=True)


def test_files_that_break_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps({"id": "1", "question": "q \ud800", "chunks": ["a"], "support": [0]}))
    with pytest.raises(ValueError, match=r"x\.jsonl:1: lone surrogate: .*--data\.skip-bad"):
        read_own(path)
    for name, content in (("x.jsonl.gz", gzip.compress(b"{}")[:-4]), ("y.jsonl.gz", b"{}"), ("x.parquet", b"PAR1")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=rf"{name}: (not a whole gzip file|not a parquet file|reading it needs pyarrow)"):
            read_own(tmp_path / name)
    bad = {**HF_ROW, "context": {"title": ["B"], "sentences": [[""], ["a"]]}}
    with pytest.raises(ValueError, match="its lists have 1, 2 entries"):
        read_hotpotqa(write_lines(tmp_path / "z.jsonl", bad))
    empty = {**HF_ROW, "context": {"title": ["Caf\u00e9", "B"], "sentences": [["One."], [""]]}}
    with pytest.raises(ValueError, match="empty paragraph"):
        read_hotpotqa(write_lines(tmp_path / "e.jsonl", empty))
