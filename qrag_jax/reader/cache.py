"""A cache of answers on disk: no prompt is asked twice, and a failed run loses no answers.

``responses.jsonl`` has one object per line, ``{"version", "key", "reader", "text", "prompt_tokens", "completion_tokens", "finish"}``. Each
answer is appended at once; the last line with a key counts. Several threads may use a cache, and several processes its file.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from pathlib import Path
from typing import Any

from qrag_jax.config.trees import parse_json
from qrag_jax.reader.protocol import Answer, Prompt
from qrag_jax.rundir.log import say

VERSION = 1
FILE_NAME = "responses.jsonl"


def _count(value: Any) -> bool:
    return value is None or (type(value) is int and value >= 0)


_FIELDS = {
    "text": (lambda value: isinstance(value, str), "a string"),
    "prompt_tokens": (_count, "a whole number or null"),
    "completion_tokens": (_count, "a whole number or null"),
    "finish": (lambda value: value in ("stop", "length"), "stop or length"),
}
"""The fields of an Answer, in the same order."""


def response_key(reader: str, prompt: Prompt) -> str:
    """SHA-256 of the reader's name and the conversation, in hexadecimal."""
    return hashlib.sha256(json.dumps([reader, prompt.messages]).encode()).hexdigest()


class ResponseCache:
    """The answers in ``folder``, which is created if it does not exist.

    An incomplete line, left by a process that died while writing, is skipped with a note. Raises ValueError, naming file and line, on any
    other line that is not a response of this version.
    """

    def __init__(self, folder: str | Path) -> None:
        self.path = Path(folder) / FILE_NAME
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()
        self._answers = _read(self.path) if self.path.exists() else {}

    def __len__(self) -> int:
        return len(self._answers)

    def get(self, reader: str, prompt: Prompt) -> Answer | None:
        """The answer of ``reader`` to ``prompt``, or None. Use it only for readers with deterministic answers."""
        return self._answers.get(response_key(reader, prompt))

    def put(self, reader: str, prompt: Prompt, answer: Answer) -> None:
        """Appends one line; returns once it is in the file."""
        key = response_key(reader, prompt)
        record = {"version": VERSION, "key": key, "reader": reader, **vars(answer)}
        line = json.dumps(record).encode() + b"\n"
        with self._lock:
            with self.path.open("a+b") as file:
                if file.seek(0, os.SEEK_END):
                    file.seek(-1, os.SEEK_END)
                    if file.read(1) != b"\n":  # another process died in the middle of a line: begin a new one
                        line = b"\n" + line
                file.write(line)
            self._answers[key] = answer


def _read(path: Path) -> dict[str, Answer]:
    answers: dict[str, Answer] = {}
    half: list[int] = []
    for number, line in enumerate(path.read_bytes().split(b"\n"), 1):
        if not line:
            continue
        try:
            record = parse_json(line)
        except ValueError:
            half.append(number)
            continue
        key = _checked_key(record, path, number)
        answers[key] = Answer(*(record[name] for name in _FIELDS))
    if half:
        say(f"{path}: skipped incomplete line {', '.join(map(str, half))}; its prompt will be asked again")
    return answers


def _checked_key(record: Any, path: Path, number: int) -> str:
    """Checks a record and returns its key."""
    where = f"{path}, line {number}"
    if not isinstance(record, dict):
        raise ValueError(f"{where}: must be a JSON object; correct the line, or use another folder")
    if record.get("version") != VERSION:
        raise ValueError(
            f"{where}: version = {record.get('version')!r}; this qrag-jax reads version {VERSION}: update it, or use another folder"
        )
    if not isinstance(record.get("key"), str):
        raise ValueError(f"{where}: key = {record.get('key')!r}: must be a string; remove the line")
    for name, (valid, allowed) in _FIELDS.items():
        if name not in record or not valid(record[name]):
            raise ValueError(f"{where}: {name} = {record.get(name)!r}: must be {allowed}; remove the line to ask its prompt again")
    return record["key"]
