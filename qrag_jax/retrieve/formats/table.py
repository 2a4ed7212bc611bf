"""Which files are read, and how. To add a format, write its reader and add a line here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from qrag_jax.retrieve.formats.archives import read_docx, read_epub
from qrag_jax.retrieve.formats.markup import read_html
from qrag_jax.retrieve.formats.passages import LARGEST, Passage, Unreadable, megabytes
from qrag_jax.retrieve.formats.pdf import read_pdf
from qrag_jax.retrieve.formats.tables import read_csv, read_json, read_json_lines
from qrag_jax.retrieve.formats.text import read_markdown, read_text

READERS: Mapping[str, Callable[[Path], list[Passage]]] = {
    ".csv": read_csv,
    ".docx": read_docx,
    ".epub": read_epub,
    ".htm": read_html,
    ".html": read_html,
    ".json": read_json,
    ".jsonl": read_json_lines,
    ".md": read_markdown,
    ".pdf": read_pdf,
    ".tsv": read_csv,
    ".txt": read_text,
}
"""A reader gives the passages of a file in order, or raises Unreadable or what the library that it uses raises."""
PLAIN = (read_text, read_markdown)
"""They read in this process, at any size. A hostile file of another format can take forever, crash a library in C or fill the memory, so
those are read in a process with limits (:mod:`qrag_jax.retrieve.formats.process`)."""


def is_plain(path: Path) -> bool:
    """Whether a file is plain text; one of an unknown suffix that a user names is taken for it."""
    return READERS.get(path.suffix.lower(), read_text) in PLAIN


def read(path: Path) -> list[Passage]:
    """The passages of a file, at least one. Raises Unreadable, whatever happens."""
    plain = is_plain(path)
    try:
        if not plain and (size := path.stat().st_size) > LARGEST:
            raise Unreadable(f"is {megabytes(size)}; at most {megabytes(LARGEST)} of such a file are read")
        passages = READERS.get(path.suffix.lower(), read_text)(path)
    except Unreadable:
        raise
    except ModuleNotFoundError as error:
        raise Unreadable(f"needs the package {str(error.name).partition('.')[0]}: pip install 'qrag-jax[files]'") from error
    except MemoryError as error:
        raise Unreadable("needs more memory than a file may take") from error
    except Exception as error:  # what libraries raise on damaged files has no common type
        if isinstance(error, OSError) and error.strerror:
            raise Unreadable(f"cannot be read: {error.strerror}") from error
        raise Unreadable(f"is damaged: {' '.join(str(error).split())[:200] or type(error).__name__}") from error
    if not plain and not any(passage.text for passage in passages):
        raise Unreadable(next((one.fault for one in passages if one.fault), "has no text"))
    return passages
