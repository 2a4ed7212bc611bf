"""BABILong's published rows (Kuratov et al. 2024): ``input``, a bAbI story among sentences of books; ``question``; ``target``.

Rows have no labels. So the facts of the story are found in the text by bAbI's grammar, and the story is replayed: this gives the
supporting facts of the question, and they must give the target. Sentences often touch ("the door.He left."), and the last one may be cut.
Each fact and each other sentence is a chunk.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

from qrag_jax.data.babilong.labels import find_facts, find_label
from qrag_jax.data.babilong.stories import check_task
from qrag_jax.data.multihop.records import BadRecord, Record, read_file
from qrag_jax.data.text.sentences import cut_sentences
from qrag_jax.rundir.log import say
from qrag_jax.types import QAExample

FOLDER = "babilong"
FIELDS = ("input", "question", "target")
# LENGTH is 0k, 1k, ... 1M: data/TASK/LENGTH.json of RMT-team/babilong, LENGTH/TASK-00000-of-00001.parquet of babilong-1k-samples.
_FILE = re.compile(
    r"(?:^|/)(?:(?P<task>qa\d+)/(?P<length>\d+[kM])|(?P<length2>\d+[kM])/(?P<task2>qa\d+))"
    r"(?P<shard>-\d+-of-\d+)?\.(?:json|jsonl|parquet)(?:\.gz)?$"
)
# Two sentences that touch: a mark after a lower-case letter, before a capital. A straight quotation mark between them may belong to either,
# so they stay together.
_TOUCHING = re.compile(r"(?<=[a-z][.!?])(?=[A-Z“‘])|(?<=[a-z][.!?][”’])(?=[A-Z“‘])|(?<=[a-z][.!?]\")(?=\")")
_PARAGRAPH = re.compile(r"\n\s*\n")


def find_rows(data_dir: str | Path, task: str) -> dict[str, list[Path]]:
    """The files of a task by length ("4k", "1M"), ascending; several are the parts of one parquet file.

    Raises ValueError if there are none, or two versions of one.
    """
    check_task(task)
    folder = Path(data_dir, FOLDER)
    found: dict[str, list[tuple[str, Path]]] = {}
    for path in sorted(folder.rglob("*")):
        match = _FILE.search(path.relative_to(folder).as_posix())
        if match and (match["task"] or match["task2"]) == task:
            found.setdefault(match["length"] or match["length2"], []).append((match["shard"] or "", path))
    if not found:
        raise ValueError(
            f"{folder}: no {task}/LENGTH.json and no LENGTH/{task}-*.parquet; data_dir = {str(data_dir)!r} must hold BABILong's rows: "
            f"hf download RMT-team/babilong --repo-type dataset --local-dir {folder}"
        )
    for length, files in found.items():
        if len(files) != len({shard for shard, _ in files}) or (len(files) > 1 and any(not shard for shard, _ in files)):
            raise ValueError(f"{folder}: {files[0][1]} and {files[1][1]} are both {task} at {length}; keep one of them")
    return {length: [path for _, path in found[length]] for length in sorted(found, key=tokens)}


def tokens(length: str) -> int:
    """'4k' -> 4 000, '1M' -> 1 000 000; '0k', the stories without other text, is 0."""
    return int(length[:-1]) * {"k": 1_000, "M": 1_000_000}[length[-1]]


def load_rows(data_dir: str | Path, task: str, length: str, *, skip_bad: bool = False) -> list[QAExample]:
    """The rows of a task at one length. Raises ValueError('file: record n: ...') on the first bad row, unless ``skip_bad``."""
    examples: list[QAExample] = []
    for path in find_rows(data_dir, task)[length]:
        records, report = read_file(path, row_parser(task, len(examples)), skip_bad=skip_bad)
        if report.skipped:
            say(str(report))
        examples += [_example(record, f"{FOLDER}/{task}/{length}") for record in records]
    return examples


def _example(record: Record, name: str) -> QAExample:
    chunks = tuple(text for _, text in record.paragraphs)
    return QAExample(f"{name}/{record.id}", record.question, chunks, record.answer, record.support)


def row_parser(task: str, first: int = 0) -> Callable[[Any, Counter[str]], Record]:
    """Reads the rows of one file in turn; row ``first`` + n has this number as its id."""
    numbers = count(first)

    def parse(value: Any, notes: Counter[str]) -> Record:
        number = next(numbers)
        if not isinstance(value, dict):
            raise BadRecord("not a row", f"a row is an object with {', '.join(FIELDS)}")
        for name in FIELDS:
            if not isinstance(value.get(name), str) or not value[name].strip():
                raise BadRecord(f"no {name}", f"{name} = {str(value.get(name))[:60]!r}: must be a string that is not empty")
        question, answer = value["question"].strip(), value["target"].strip()
        pieces = list(find_facts(task, value["input"]))
        try:
            label = find_label(task, [event for _, _, event in pieces], question, answer)
        except ValueError as error:
            raise BadRecord("question of another task", str(error)) from error
        if label is None:
            raise BadRecord(
                "facts without the target", f"the {len(pieces)} facts of {task} in its input do not answer {question!r} with {answer!r}"
            )
        chunks, places = cut(value["input"], [(start, end) for start, end, _ in pieces])
        support = tuple(sorted(places[fact] for fact in label[1]))
        return Record(str(number), question, answer, (), tuple(("", chunk) for chunk in chunks), support, task)

    return parse


def cut(text: str, facts: list[tuple[int, int]]) -> tuple[list[str], list[int]]:
    """The chunks of a text, in order, and the index of the chunk of each of its ``facts``, which are ranges in the text."""
    chunks: list[str] = []
    places: list[int] = []
    begin = 0
    for start, end in facts:
        chunks += sentences(text[begin:start])
        places.append(len(chunks))
        chunks.append(text[start:end])
        begin = end
    return [*chunks, *sentences(text[begin:])], places


def sentences(text: str) -> Iterator[str]:
    """The sentences between two facts, with white space folded. Everything is kept."""
    for paragraph in _PARAGRAPH.split(text):
        for piece in _TOUCHING.split(" ".join(paragraph.split())):
            yield from cut_sentences(piece)
