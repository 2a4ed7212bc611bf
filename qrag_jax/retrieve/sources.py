"""The source of a search or an index, as a stream of chunks: a text, a text file, a folder of them, or ready-made chunks.

One rule holds everywhere: a ``str`` is a text, a ``pathlib.Path`` is a file or a folder.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sized
from dataclasses import dataclass, replace
from pathlib import Path

from qrag_jax.data.text.chunker import ChunkBy
from qrag_jax.models.tokenizer import TextTokenizer
from qrag_jax.retrieve.chunks import Chunk, chunk_text
from qrag_jax.rundir.log import say

SUFFIXES = (".txt", ".md")
LONGEST_PATH = 4096


@dataclass(frozen=True)
class SourceRecord:
    """A source that was read: the name of the file, relative to the folder (None for a text or ready-made chunks), and the numbers of its
    characters and chunks."""

    name: str | None
    characters: int
    chunks: int


class ChunkStream:
    """The chunks of a source in order, one file in memory at a time; ``read`` grows as its files are finished.

    A ``str`` is a text, which is cut into chunks. A ``Path`` is a file or a folder. In a folder, the .txt and .md files at any depth are
    read, sorted by relative name; names that begin with a dot are left out. Files are UTF-8 with universal newlines: a chunk's characters
    count in ``Path.read_text(encoding="utf-8")``. A file of white space has no chunks. Any other source is a sequence of ready-made chunks.
    If a text is the name of an existing file, a message says that it is used as a text.

    Raises ValueError on a source that is missing, empty, or not UTF-8 (naming file and byte), and on empty chunks.
    """

    def __init__(self, source: str | Path | Iterable[str], tokenizer: TextTokenizer, max_tokens: int, by: ChunkBy) -> None:
        self.source, self.tokenizer, self.max_tokens, self.by = source, tokenizer, max_tokens, by
        self.files = _files(source) if isinstance(source, Path) else []
        self.read: list[SourceRecord] = []
        self._bytes, self._total = 0, sum(path.stat().st_size for _, path in self.files)
        if isinstance(source, str) and _names_a_file(source):
            say(f"source = {source!r}: taken as a text, because it is a str; to read that file or folder, give pathlib.Path({source!r})")

    @property
    def expected(self) -> int | None:
        """Number of chunks: known for a list, else estimated from the files read so far (exact after the last one); None: unknown."""
        if isinstance(self.source, Path):
            return round(sum(file.chunks for file in self.read) / self._bytes * self._total) if self._bytes else None
        if isinstance(self.source, str):
            return self.read[0].chunks if self.read else None
        return len(self.source) if isinstance(self.source, Sized) else None

    def __iter__(self) -> Iterator[Chunk]:
        if isinstance(self.source, Path):
            yield from self._from_files()
        elif isinstance(self.source, str):
            _check_encodable(self.source, "source")
            chunks = chunk_text(self.source, self.tokenizer, self.max_tokens, self.by)
            self.read.append(SourceRecord(None, len(self.source), len(chunks)))
            yield from chunks
        else:
            yield from self._given(self.source)

    def _from_files(self) -> Iterator[Chunk]:
        for name, path in self.files:
            text = _read(path)
            chunks = chunk_text(text, self.tokenizer, self.max_tokens, self.by) if text.strip() else []
            self.read.append(SourceRecord(name, len(text), len(chunks)))
            self._bytes += path.stat().st_size
            yield from (replace(chunk, source=name) for chunk in chunks)
        if not any(file.chunks for file in self.read):
            raise ValueError(f"{self.source}: no text; it is empty or only white space")

    def _given(self, chunks: Iterable[str]) -> Iterator[Chunk]:
        characters = count = 0
        for text in chunks:
            if not isinstance(text, str) or not text.strip():
                raise ValueError(f"chunk {count} = {text!r}: must be a text that is not empty")
            _check_encodable(text, f"chunk {count}")
            characters, count = characters + len(text), count + 1
            yield Chunk(text)
        if not count:
            raise ValueError("source holds no chunks: nothing to index")
        self.read.append(SourceRecord(None, characters, count))


def _check_encodable(text: str, what: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{what}: character {error.start} is half of a surrogate pair, which no file can hold") from error


def _names_a_file(text: str) -> bool:
    try:
        return len(text) <= LONGEST_PATH and "\n" not in text and bool(text.strip()) and Path(text).exists()
    except (OSError, ValueError):  # too long for the file system, or a NUL in it
        return False


def _files(source: Path) -> list[tuple[str, Path]]:
    if source.is_file():
        return [(source.name, source)]
    if not source.is_dir():
        raise ValueError(f"{source}: no such file or folder; expected a text file or a folder of {' and '.join(SUFFIXES)} files")
    found = ((path.relative_to(source), path) for path in source.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    files = sorted((name.as_posix(), path) for name, path in found if not any(part.startswith(".") for part in name.parts))
    root = source.resolve()
    outside = [name for name, path in files if not path.resolve().is_relative_to(root)]
    if outside:
        say(f"{source}: left out {len(outside)} links that lead out of the folder, such as {outside[0]}; give what they lead to instead")
        files = [(name, path) for name, path in files if name not in set(outside)]
    if not files:
        raise ValueError(f"{source}: holds no {' or '.join(SUFFIXES)} file")
    return files


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path}: byte {error.start} is 0x{error.object[error.start]:02x}, which is not UTF-8; convert the file to UTF-8"
        ) from error
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from error
