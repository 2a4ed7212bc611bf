"""RULER's own files for its QA tasks: qa_1 (SQuAD, here qa_sh) and qa_2 (HotpotQA, here qa_mh).

A prompt holds numbered documents ("Document 3:"), in the order of the file, and ends with the question. Neither the prompt nor the other
fields say which documents answer the question. That is looked up in the files from which RULER's generator made them:
``squad/dev-v2.0.json`` and HotpotQA's test file. Nothing is guessed: a question that is not found there is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from qrag_jax.data.multihop.hotpotqa import HOTPOTQA
from qrag_jax.data.multihop.questions import find_files, read_split
from qrag_jax.data.multihop.records import Record
from qrag_jax.data.ruler.files import read_official
from qrag_jax.data.ruler.qa import SQUAD_FILE, read_squad
from qrag_jax.types import QAExample

_START = re.compile(r"given documents\.\s+(?=Document 1:\n)")
_DOCUMENT = re.compile(r"(?:^|\n\n)Document (\d+):\n")
_END = re.compile(r"\n\nAnswer the question based on the given documents\.[^\n]*\s+Question: ([^\n]+)")
_ANSWER = re.compile(r"\s*Answer:\s*$")

Supports = Mapping[str, list[frozenset[str]]]
"""Question -> the texts of its supporting paragraphs, without white space; several if the question is asked about several paragraphs."""


def read_official_qa(data_dir: str | Path, task: str, path: Path) -> list[QAExample]:
    """The records of one file as examples. A chunk is a document of the prompt; the first output is the answer, the others are aliases.

    Raises ValueError, naming file and line, on a record that breaks the format, and on one whose supporting documents are not known or not
    there; also if the file that names them is missing.
    """
    source, supports = _squad(Path(data_dir, SQUAD_FILE)) if task == "qa_sh" else _hotpotqa(str(data_dir))
    return read_official(path, partial(_example, supports=supports, source=source))


def _example(record: dict[str, Any], name: str, *, supports: Supports, source: str) -> QAExample:
    text, outputs = record["input"], record["outputs"]
    start = _START.search(text)
    ends = list(_END.finditer(text, start.end())) if start else []
    if start is None or not ends:
        raise ValueError("input is no prompt of a QA task: '... given documents. Document 1: ... Answer the question ... Question: ...'")
    chunks = _documents(text[start.end() : ends[-1].start()])
    question = _ANSWER.sub("", ends[-1][1]).strip()
    if question not in supports:
        raise ValueError(f"question {question!r} is not in {source}, which names the supporting documents")
    places = {_squeezed(chunk): number for number, chunk in enumerate(chunks)}
    there = [wanted for wanted in supports[question] if wanted <= places.keys()]
    if not there:
        raise ValueError(f"the paragraphs that support {question!r} in {source} are not all among its documents")
    support = sorted({places[paragraph] for paragraph in there[0]})
    aliases = tuple(dict.fromkeys(output for output in outputs if output != outputs[0]))
    return QAExample(name, question, chunks, outputs[0], tuple(support), aliases)


def _documents(text: str) -> tuple[str, ...]:
    """The numbered documents of a prompt, without their numbers."""
    _, *parts = _DOCUMENT.split(text)
    numbers, documents = parts[::2], tuple(part.strip() for part in parts[1::2])
    if [int(number) for number in numbers] != list(range(1, len(numbers) + 1)):
        raise ValueError(f"its documents are numbered {', '.join(numbers[:9])}; they must be numbered from 1, without gaps")
    if empty := [number for number, document in zip(numbers, documents, strict=True) if not document]:
        raise ValueError(f"document {empty[0]} is empty")
    return documents


def _squad(path: Path) -> tuple[str, Supports]:
    if not path.is_file():
        raise ValueError(f"{path}: no such file; RULER's qa_1 records do not say which documents answer, and this file does")
    records = (record for records, _ in read_squad(path).values() for record in records)
    return str(path), _collect(records, lambda title, text: text)


def _hotpotqa(data_dir: str) -> tuple[str, Supports]:
    if find_files(HOTPOTQA, data_dir) is None:
        raise ValueError(f"{data_dir}: RULER's qa_2 records do not say which documents answer, HotpotQA's files do; {HOTPOTQA.wanted}")
    records = read_split(HOTPOTQA, data_dir, "test", False)
    return f"the test file in {Path(data_dir, HOTPOTQA.folder)}", _collect(records, lambda title, text: f"{title}\n{text}")


def _collect(records: Iterable[Record], written: Any) -> Supports:
    """``written``: title and text of a paragraph -> the document that RULER's generator makes of it."""
    found: dict[str, list[frozenset[str]]] = {}
    for record in records:
        found.setdefault(record.question, []).append(frozenset(_squeezed(written(*record.paragraphs[k])) for k in record.support))
    return found


def _squeezed(text: str) -> str:
    """``text`` without white space, in which the readers of the two files differ."""
    return "".join(text.split())
