"""Long natural text as a list of sentences, in which the facts of a BabiLong document are hidden.

With a data folder, the text is that of ``books/train`` and ``books/test`` (plain UTF-8, a blank line between paragraphs). Without one, it
is the prose that comes with Python: the language reference in ``pydoc_data.topics``, and docstrings and comments of the standard library.
Splits share no book (topic, module). Books stay whole; their order is shuffled by a hash of their names, so it is the same everywhere.
"""

from __future__ import annotations

import ast
import os
import re
import sysconfig
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import groupby
from pathlib import Path

from qrag_jax.data.prepared import prepared_folder, read_records
from qrag_jax.data.splits import Split, check_split, hashed_split, stable_fraction
from qrag_jax.data.text.sentences import split_sentences

HAYSTACK_SENTENCES = 100_000
"""Benchmarks read at least this many sentences if there are as many: about 30 books, in three seconds from text files."""
PYTHON_DOCS = "python documentation"
VALIDATION_SHARE = 0.1
"""Share of the books in ``books/train`` that are used for validation."""


@dataclass(frozen=True)
class Haystack:
    """The ``sentences`` of ``books``, one book after the other. ``source``: a folder, or 'python documentation'."""

    sentences: Sequence[str]
    source: str
    books: tuple[str, ...]


@lru_cache(maxsize=16)
def load_haystack(data_dir: str | None, split: Split, limit: int | None = None) -> Haystack:
    """The haystack of a split: all of it, or with ``limit``, as many whole books as are needed for ``limit`` sentences.

    A limited haystack is the beginning of the full one. Results are cached for the life of the process.
    Raises ValueError if the folder or its books are missing or hold no prose.
    """
    check_split(split)
    if limit is not None and limit < 1:
        raise ValueError(f"limit = {limit}: must be >= 1, or None for the whole haystack")
    if data_dir is None:
        return _until(_python_books(split), limit, PYTHON_DOCS)
    return _until(_books(data_dir, split), limit, str(Path(data_dir) / "books"))


def _books(data_dir: str, split: Split) -> Iterator[tuple[str, Sequence[str]]]:
    """Books with their sentences, one at a time, from prepared records if they exist, else from the text files."""
    if folder := prepared_folder(data_dir, "book_sentences"):
        sources = list(Path(data_dir, "books", "train").glob("*.txt")) + list(Path(data_dir, "books", "test").glob("*.txt"))
        pages = read_records(folder, split, sources)
        for book, group in groupby(pages, key=lambda page: page["book"].decode()):
            yield book, [sentence.decode() for page in group for sentence in page["sentences"]]
    else:
        for path in book_paths(data_dir)[split]:
            yield path.stem, book_sentences(path)


def _until(books: Iterable[tuple[str, Sequence[str]]], limit: int | None, source: str) -> Haystack:
    sentences: list[str] = []
    names: list[str] = []
    for name, found in books:
        if found:
            names.append(name)
            sentences.extend(found)
        if limit is not None and len(sentences) >= limit:
            break
    if not sentences:
        raise ValueError(f"{source}: no sentence of 10 to 64 words and punctuation; books must be plain English prose in UTF-8")
    return Haystack(tuple(sentences), source, tuple(names))


def book_paths(data_dir: str | Path) -> dict[Split, list[Path]]:
    """The books of each split, in haystack order. A tenth of ``books/train`` is validation. Raises ValueError if there are none."""
    found: dict[str, list[Path]] = {}
    for folder in ("train", "test"):
        place = Path(data_dir) / "books" / folder
        found[folder] = sorted(place.glob("*.txt"), key=lambda path: (stable_fraction(path.stem), path.stem))
        if not found[folder]:
            raise ValueError(f"{place}: no .txt files; data_dir = {str(data_dir)!r} must hold books/train/*.txt and books/test/*.txt")
    if len(found["train"]) < 2:
        where = Path(data_dir) / "books" / "train"
        raise ValueError(f"{where}: holds only one book; training and validation each need a book, so add at least one more")
    if both := {path.stem for path in found["train"]} & {path.stem for path in found["test"]}:
        raise ValueError(f"{Path(data_dir) / 'books'}: {min(both)}.txt is in train and in test; keep it in only one of them")
    kept = max(1, round(VALIDATION_SHARE * len(found["train"])))
    return {"train": found["train"][kept:], "validation": found["train"][:kept], "test": found["test"]}


@cache
def book_sentences(path: Path) -> tuple[str, ...]:
    """The sentences of one book. Raises ValueError if it is not UTF-8."""
    try:
        return tuple(split_sentences(path.read_text(encoding="utf-8")))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: is not UTF-8 text ({error}); convert the book to UTF-8") from error


# The standard library -----------------------------------------------------------------------------------------------------------

_SKIPPED_FOLDERS = frozenset(
    ("test", "tests", "idle_test", "lib2to3", "turtledemo", "encodings", "pydoc_data", "site-packages", "dist-packages", "__pycache__")
)
_CODE = re.compile(r">>>|::|[=<>{}\\@]|\w\(\w|__|\[\w*\]|:param|:return|^[*+-] |XXX|TODO")
_COMMENT = re.compile(r"^[ \t]*#.*(?:\n[ \t]*#.*)+", re.MULTILINE)
_HASHES = re.compile(r"^[ \t]*#+[!:]?", re.MULTILINE)


@cache
def _python_books(split: Split) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Topics and modules of a split with their sentences. Only the module that holds the topics is imported."""
    from pydoc_data.topics import topics

    texts: dict[str, Iterable[str]] = {f"topic {name}": (text,) for name, text in topics.items()}
    library = Path(sysconfig.get_paths()["stdlib"])
    for folder, subfolders, files in os.walk(library):
        subfolders[:] = [name for name in subfolders if name not in _SKIPPED_FOLDERS]
        for path in (Path(folder, name) for name in files if name.endswith(".py")):
            texts[f"module {'.'.join(path.relative_to(library).with_suffix('').parts)}"] = _docstrings_and_comments(path)
    names = [name for name in texts if hashed_split(name, validation=0.1, test=0.45) == split]
    names.sort(key=lambda name: (stable_fraction(name), name))
    return tuple((name, tuple(_prose(texts[name]))) for name in names)


def _docstrings_and_comments(path: Path) -> Iterator[str]:
    source = path.read_bytes()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) and (text := ast.get_docstring(node)):
            yield text
    for comment in _COMMENT.findall(source.decode("utf-8", errors="ignore")):
        yield _HASHES.sub("", comment)


def _prose(texts: Iterable[str]) -> Iterator[str]:
    """Sentences of documentation that read like prose: no code, examples, tables or signatures. Each occurs once per book."""
    seen = set()
    for text in texts:
        for sentence in split_sentences(textwrap.dedent(text)):
            if sentence not in seen and not _CODE.search(sentence) and sentence[0].isupper():
                seen.add(sentence)
                yield sentence
