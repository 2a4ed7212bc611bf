"""A strict reader of RULER's own files, ``<task>/validation.jsonl``, as its generator writes them; here for the NIAH tasks.

Each line is an object with ``index``, ``input`` (a whole prompt: introduction, text, question, perhaps the beginning of the answer) and
``outputs`` (the values asked for); other fields are ignored.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from qrag_jax.config.trees import parse_json
from qrag_jax.data.text.sentences import MAX_TOKENS, count_tokens, cut_sentences
from qrag_jax.types import VALUES_SEPARATOR, QAExample

FOLDER = "ruler"
FILE = "validation.jsonl"
FOLDER_OF = {"qa_sh": "qa_1", "qa_mh": "qa_2"}
"""Task -> RULER's own name for it, where that differs."""

_INTRODUCTION = re.compile(r"special magic \w+ (?:is|are) hidden within the following text\.[^\n]* afterwards\.")
_QUESTION = re.compile(r"What (?:is|are all) the special magic \w+ for [^\n?]+ mentioned in the provided text\?")
_NEEDLE = re.compile(r"(One of the special magic \w+ for \S+ is: [^\s.]+\.)(?=\s|$)")


Parse = Callable[[dict[str, Any], str], QAExample]
"""A record and the name of its example -> the example. Raises ValueError with the reason."""


def read_official(path: str | Path, parse: Parse | None = None) -> list[QAExample]:
    """The records of one file as examples. ``parse`` None: :func:`needles`.

    Raises ValueError('file:line: reason') on the first record that breaks the format or has an output that its text does not hold.
    """
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: is not UTF-8 text ({error}); RULER writes JSON lines in UTF-8") from error
    if lines[-1] == "":
        lines.pop()
    if not lines:
        raise ValueError(f"{path}: is empty; a RULER file has one record per line")
    examples: list[QAExample] = []
    line_of: dict[str, int] = {}
    for row, line in enumerate(lines, start=1):
        try:
            example = _example(line, path.parent.name, parse or needles)
            if example.id in line_of:
                raise ValueError(
                    f"index {example.id.rpartition('/')[2]} is also the index of line {line_of[example.id]}; every record needs its own"
                )
        except ValueError as error:
            raise ValueError(f"{path}:{row}: {error}") from error
        line_of[example.id] = row
        examples.append(example)
    return examples


def official_path(data_dir: str | Path, task: str, length: int) -> Path:
    """The path of the records of a task (full name) with texts of ``length`` tokens."""
    return Path(data_dir, FOLDER, str(length), FOLDER_OF.get(task, task), FILE)


def official_lengths(data_dir: str | Path, task: str) -> list[int]:
    """The text lengths, in tokens and ascending, for which official records exist. Raises ValueError if there are none."""
    task = FOLDER_OF.get(task, task)
    found = sorted(int(path.parts[-3]) for path in Path(data_dir, FOLDER).glob(f"*/{task}/{FILE}") if path.parts[-3].isdigit())
    if not found:
        raise ValueError(
            f"{Path(data_dir, FOLDER)}: no */{task}/{FILE}; data_dir = {str(data_dir)!r} must hold {FOLDER}/LENGTH/{task}/{FILE} "
            "as written by RULER's own generator. Without official files, generated examples are used"
        )
    return found


def _example(line: str, task: str, parse: Parse) -> QAExample:
    try:
        record = parse_json(line)
    except ValueError as error:
        raise ValueError(f"is {error}") from error
    if not isinstance(record, dict):
        raise ValueError(f"is a JSON {type(record).__name__}; a record is an object with index, input and outputs")
    index, text, outputs = (_field(record, name) for name in ("index", "input", "outputs"))
    if type(index) is not int or index < 0:
        raise ValueError(f"index = {index!r}: must be a number >= 0")
    if not isinstance(text, str):
        raise ValueError(f"input = {text!r}: must be the prompt as a string")
    if not isinstance(outputs, list) or not outputs or not all(isinstance(value, str) and value.strip() for value in outputs):
        raise ValueError(f"outputs = {outputs!r}: must be a list of one or more values, each a string that is not empty")
    return parse(record, f"{FOLDER}/{task}/official/{index}")


def needles(record: dict[str, Any], name: str) -> QAExample:
    """A record of a NIAH task: the prompt's question, and its text cut into chunks (:func:`cut`), of which those that hold an output are
    the support. The answer consists of the outputs, joined."""
    text, outputs = record["input"], record["outputs"]
    if any(VALUES_SEPARATOR in value for value in outputs):
        raise ValueError(f"outputs = {outputs!r}: a value holds {VALUES_SEPARATOR!r}, which separates the values of an answer")
    introduction = _INTRODUCTION.search(text)
    if introduction is None:
        raise ValueError("input has no introduction '... hidden within the following text. ... afterwards.'; only NIAH tasks are read")
    questions = list(_QUESTION.finditer(text, introduction.end()))
    if not questions:
        raise ValueError("input has no question 'What is the special magic ... mentioned in the provided text?' after its text")
    chunks = tuple(cut(text[introduction.end() : questions[-1].start()]))
    support: set[int] = set()
    for value in outputs:
        whole = re.compile(rf"(?<!\w){re.escape(value)}(?!\w)")
        holding = [n for n, chunk in enumerate(chunks) if whole.search(chunk)]
        if not holding:
            raise ValueError(f"output {value!r} is not found in the text of the record, so it has no supporting chunk")
        support.update(holding)
    return QAExample(name, questions[-1][0], chunks, VALUES_SEPARATOR.join(outputs), tuple(sorted(support)))


def _field(record: dict[str, Any], name: str) -> Any:
    if name not in record:
        raise ValueError(f"has no field {name!r}; a record has index, input and outputs")
    return record[name]


def cut(text: str) -> Iterator[str]:
    """The chunks of a text: its lines, of which those with more than 64 tokens are cut into sentences. A needle is always a separate chunk.

    Only white space is left out. Haystacks of needles and of noise have short lines; essays are one long line.
    """
    for line in text.split("\n"):
        short = count_tokens(line) <= MAX_TOKENS
        for piece in filter(None, (part.strip() for part in _NEEDLE.split(" ".join(line.split())))):
            yield from (piece,) if short or _NEEDLE.fullmatch(piece) else cut_sentences(piece)
