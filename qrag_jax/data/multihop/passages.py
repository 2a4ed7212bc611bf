"""A file of passages without questions, which make a corpus larger: a JSON list, or one JSON object per line.

Each passage is an object with ``text`` and perhaps ``title``; other fields are not read. It becomes the chunk "title. text".
"""

from __future__ import annotations

from pathlib import Path

from qrag_jax.config.trees import parse_json
from qrag_jax.data.multihop.records import read_text


def read_passages(path: str | Path) -> tuple[str, ...]:
    """The passages of a file, in order; equal ones once.

    Raises ValueError, naming file and place, when the file is missing, is neither form, or holds a passage without text.
    """
    path = Path(path)
    text = read_text(path)
    if path.name.endswith((".jsonl", ".jsonl.gz")):
        places = [(f"{path}:{n}", line) for n, line in enumerate(text.rstrip(" \t\r\n").split("\n"), 1)]
        trees = [(where, _parsed(line, where)) for where, line in places]
    else:
        tree = _parsed(text, str(path))
        if not isinstance(tree, list) or not tree:
            raise ValueError(f"{path}: must be a list of passages; a file with one passage per line must be called .jsonl")
        trees = [(f"{path}: passage {n}", passage) for n, passage in enumerate(tree, 1)]
    return tuple(dict.fromkeys(_chunk(passage, where) for where, passage in trees))


def _parsed(text: str, where: str) -> object:
    try:
        return parse_json(text)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _chunk(passage: object, where: str) -> str:
    title, text = (passage.get(name, "") for name in ("title", "text")) if isinstance(passage, dict) else (None, None)
    if not isinstance(title, str) or not isinstance(text, str) or not text.strip():
        raise ValueError(f'{where}: must be an object with a text, such as {{"title": "Paris", "text": "Paris is a city."}}')
    try:
        f"{title}{text}".encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{where}: {error.object[error.start]!a} is no character") from None
    return f"{title.strip()}. {text.strip()}" if title.strip() else text.strip()
