"""What an index is made of, as a stream of chunks: a text file, a folder of them, or chunks given as such."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sized
from dataclasses import dataclass
from pathlib import Path

from qrag_jax.models.tokenizer import TextTokenizer
from qrag_jax.retrieve.chunks import Chunk, ChunkBy, chunk_text

SUFFIXES = (".txt", ".md")


@dataclass(frozen=True)
class SourceRecord:
    """A file that was read (``name`` is relative to the folder; None for given chunks), its characters, and the chunks they became."""

    name: str | None
    characters: int
    chunks: int


class ChunkStream:
    """The chunks of a source in order, one file in memory at a time; ``read`` grows as its files are finished.

    Of a folder the .txt and .md files at any depth are read, by relative name; names that begin with a dot are left out. Text is UTF-8
    with universal newlines: a chunk's characters are those of ``Path.read_text(encoding="utf-8")``. A file of white space has no chunks.
    Raises ValueError on a source that is missing, empty, or not UTF-8, naming file and byte, and on empty chunks.
    """

    def __init__(self, source: Path | Iterable[str], tokenizer: TextTokenizer, max_tokens: int, by: ChunkBy) -> None:
        if isinstance(source, str):
            raise ValueError(f"source = {source[:40]!r}: give a pathlib.Path of a file or a folder, or a list of chunks")
        self.source, self.tokenizer, self.max_tokens, self.by = source, tokenizer, max_tokens, by
        self.files = _files(source) if isinstance(source, Path) else []
        self.read: list[SourceRecord] = []
        self._bytes, self._total = 0, sum(path.stat().st_size for _, path in self.files)

    @property
    def expected(self) -> int | None:
        """How many chunks there are: known for a list, else estimated from the files read so far (exact after the last); None: no idea."""
        if not isinstance(self.source, Path):
            return len(self.source) if isinstance(self.source, Sized) else None
        if not self._bytes:
            return None
        return round(sum(file.chunks for file in self.read) / self._bytes * self._total)

    def __iter__(self) -> Iterator[Chunk]:
        if not isinstance(self.source, Path):
            yield from self._given(self.source)
            return
        for name, path in self.files:
            text = _read(path)
            chunks = chunk_text(text, self.tokenizer, self.max_tokens, self.by) if text.strip() else []
            self.read.append(SourceRecord(name, len(text), len(chunks)))
            self._bytes += path.stat().st_size
            yield from (Chunk(chunk.text, chunk.start, chunk.end, name) for chunk in chunks)
        if not any(file.chunks for file in self.read):
            raise ValueError(f"{self.source}: no text to index; it is empty or only white space")

    def _given(self, chunks: Iterable[str]) -> Iterator[Chunk]:
        characters = count = 0
        for text in chunks:
            if not isinstance(text, str) or not text.strip():
                raise ValueError(f"chunk {count} = {text!r}: must be a text that is not empty")
            try:
                text.encode()
            except UnicodeEncodeError as error:
                raise ValueError(f"chunk {count}: character {error.start} is half of a surrogate pair, which no file can hold") from error
            characters, count = characters + len(text), count + 1
            yield Chunk(text)
        if not count:
            raise ValueError("source holds no chunks: nothing to index")
        self.read.append(SourceRecord(None, characters, count))


def _files(source: Path) -> list[tuple[str, Path]]:
    if source.is_file():
        return [(source.name, source)]
    if not source.is_dir():
        raise ValueError(f"{source}: no such file or folder; expected a text file or a folder of {' and '.join(SUFFIXES)} files")
    found = ((path.relative_to(source), path) for path in source.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    files = sorted((name.as_posix(), path) for name, path in found if not any(part.startswith(".") for part in name.parts))
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
