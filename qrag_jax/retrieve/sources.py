"""The source of a search or an index, as a stream of chunks: a text, a text file, a folder of them, or ready-made chunks.

One rule holds everywhere: a ``str`` is a text, a ``pathlib.Path`` is a file or a folder.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from qrag_jax.data.text.chunker import ChunkBy
from qrag_jax.models.tokenizer import TextTokenizer
from qrag_jax.retrieve.chunks import Chunk, chunk_text
from qrag_jax.rundir.log import say

SUFFIXES = (".txt", ".md")
LONGEST_PATH = 4096
BLOCK = 2048  # ready-made chunks that are counted at once
BYTE_ORDER_MARK = "\ufeff"
DOCUMENTS = (("page_content", "metadata"), ("text", "metadata"), ("content", "meta"))
"""The text and the metadata of a document of LangChain, LlamaIndex and Haystack."""
ORIGINS = ("source", "file_path", "file_name")
"""Metadata that name where a document comes from."""


@dataclass(frozen=True)
class SourceRecord:
    """A source that was read.

    ``name``: the file, relative to the folder (None for a text or ready-made chunks). Then numbers: of its characters, its chunks and
    their ``tokens`` (without special ones); of the chunks that are ``cut`` because they are longer than what is embedded, and of their
    tokens that lie ``outside``; of the chunks that are mostly ``unknown``: half of their tokens or more are not in the vocabulary. The last
    four are None in an index that was written before they were counted.
    """

    name: str | None
    characters: int
    chunks: int
    tokens: int | None = None
    outside: int | None = None
    cut: int | None = None
    unknown: int | None = None

    @classmethod
    def count(cls, name: str | None, characters: int, texts: Sequence[str], tokenizer: TextTokenizer, max_tokens: int) -> SourceRecord:
        """Of chunks that are embedded with at most ``max_tokens`` tokens, special ones included."""
        sizes = np.array([len(ids) for ids in tokenizer.lookup(texts)], int)
        outside = np.maximum(sizes - tokenizer.room(max_tokens), 0)
        unknown = 2 * np.array(tokenizer.unknown(texts), int) >= sizes
        return cls(name, characters, len(texts), int(sizes.sum()), int(outside.sum()), int((outside > 0).sum()), int(unknown.sum()))

    @classmethod
    def total(cls, records: Iterable[SourceRecord]) -> SourceRecord:
        """The sums over all records; None where one of them has None."""
        records = tuple(records)
        every = lambda counts: None if None in counts else sum(counts)
        return cls(
            None,
            sum(record.characters for record in records),
            sum(record.chunks for record in records),
            *(every([getattr(record, name) for record in records]) for name in ("tokens", "outside", "cut", "unknown")),
        )


def notices(records: Iterable[SourceRecord], skipped: Mapping[str, int]) -> list[str]:
    """One line for each thing that a search does not see: tokens that are not embedded, chunks it cannot read, files that were skipped."""
    found = []
    total = SourceRecord.total(records)
    if total.cut:
        found.append(
            f"cut: {total.cut:,} of {total.chunks:,} chunks are longer than what is embedded; {total.outside:,} of {total.tokens:,} tokens "
            "lie outside; build with --chunk-by parts to embed all of a text, or give shorter chunks"
        )
    if total.unknown:
        found.append(
            f"unknown: {total.unknown:,} of {total.chunks:,} chunks are mostly tokens that the retriever's vocabulary does not have "
            "([UNK]); it cannot tell them apart: use a retriever for this language"
        )
    if skipped:
        kinds = ", ".join(f"{kind} {count:,}" for kind, count in sorted(skipped.items(), key=lambda item: (-item[1], item[0])))
        found.append(f"skipped: {kinds}; only {' and '.join(SUFFIXES)} files are read; hidden ones and links out of the folder are not")
    return found


class ChunkStream:
    """The chunks of a source in order, one file in memory at a time; ``read`` grows as its files are finished.

    A ``str`` is a text, which is cut into chunks. A ``Path`` is a file or a folder. In a folder, the .txt and .md files at any depth are
    read, sorted by relative name; names that begin with a dot are left out. ``skipped`` has the number of other files by suffix. Files are
    UTF-8 with universal newlines: a chunk's characters count in ``Path.read_text(encoding="utf-8")``; a byte-order mark is in no chunk. A
    file of white space has no chunks. Any other source gives ready-made chunks: texts (a list, a generator, a NumPy array), or documents of
    LangChain, LlamaIndex or Haystack. If a text is the name of an existing file, a message says that it is used as a text.

    Raises ValueError on a source that is missing, empty, or not UTF-8 (naming file and byte), and on empty chunks.
    """

    def __init__(self, source: str | Path | Iterable[Any], tokenizer: TextTokenizer, max_tokens: int, by: ChunkBy) -> None:
        self.source, self.tokenizer, self.max_tokens, self.by = source, tokenizer, max_tokens, by
        self.files, self.skipped = _files(source) if isinstance(source, Path) else ([], {})
        self.read: list[SourceRecord] = []
        self._bytes, self._total = 0, sum(path.stat().st_size for _, path in self.files)
        if isinstance(source, str) and _names_a_file(source):
            say(f"source = {source!r}: taken as a text, because it is a str; to read that file or folder, give pathlib.Path({source!r})")
        if isinstance(source, bytes | bytearray | Mapping) or not isinstance(source, str | Path | Iterable):
            raise ValueError(
                f"source is of type {type(source).__name__}: must be a text (str), a file or folder (Path), chunks, or an index"
            )

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
            check_encodable(self.source, "source")
            chunks = self._cut(None, self.source)
            if not chunks:
                raise ValueError("the text has nothing to search; it is empty or only white space")
            yield from chunks
        else:
            yield from self._given(self.source)

    def _from_files(self) -> Iterator[Chunk]:
        for name, path in self.files:
            chunks = self._cut(name, _read(path))
            self._bytes += path.stat().st_size
            yield from (replace(chunk, source=name) for chunk in chunks)
        if not any(file.chunks for file in self.read):
            raise ValueError(f"{self.source}: no text; it is empty or only white space")

    def _cut(self, name: str | None, text: str) -> list[Chunk]:
        # A space in place of a byte-order mark keeps the places of all characters.
        body = " " + text[1:] if text.startswith(BYTE_ORDER_MARK) else text
        chunks = chunk_text(body, self.tokenizer, self.max_tokens, self.by)
        self.read.append(SourceRecord.count(name, len(text), [chunk.text for chunk in chunks], self.tokenizer, self.max_tokens))
        return chunks

    def _given(self, items: Iterable[Any]) -> Iterator[Chunk]:
        numbered = enumerate(items)
        records: list[SourceRecord] = []
        while block := [_given_chunk(number, item) for number, item in islice(numbered, BLOCK)]:
            texts = [chunk.text for chunk in block]
            records.append(SourceRecord.count(None, sum(map(len, texts)), texts, self.tokenizer, self.max_tokens))
            yield from block
        if not records:
            raise ValueError("source holds no chunks: nothing to index")
        self.read.append(SourceRecord.total(records))


def _given_chunk(number: int, item: Any) -> Chunk:
    origin: str | None = None
    text = item
    for text_name, metadata_name in DOCUMENTS:
        metadata = getattr(item, metadata_name, None)
        if isinstance(metadata, Mapping) and hasattr(item, text_name):
            text = getattr(item, text_name)
            origin = next((str(metadata[name]) for name in ORIGINS if metadata.get(name)), None)
            break
    if isinstance(text, Path):
        raise ValueError(f"chunk {number} = {str(text)!r} is a Path: give one file or one folder as the source, or the texts of the files")
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"chunk {number} = {text!r}: must be a text that is not empty, or a document with such a text")
    check_encodable(text, f"chunk {number}")
    return Chunk(str(text), source=None if origin is None else printable_name(origin))


def printable_name(name: str) -> str:
    """The name of a file, in which bytes that are not UTF-8 are written as \\x and two digits."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def check_encodable(text: str, what: str) -> None:
    """Raises ValueError on half of a surrogate pair: no tokenizer takes it."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{what}: character {error.start} is half of a surrogate pair, which no file can hold") from error


def _names_a_file(text: str) -> bool:
    try:
        return len(text) <= LONGEST_PATH and "\n" not in text and bool(text.strip()) and Path(text).exists()
    except (OSError, ValueError):  # too long for the file system, or a NUL in it
        return False


def _files(source: Path) -> tuple[list[tuple[str, Path]], dict[str, int]]:
    """The files to read with their names, and the number of the others by suffix."""
    if source.is_file():
        return [(printable_name(source.name), source)], {}
    if not source.is_dir():
        raise ValueError(f"{source}: no such file or folder; expected a text file or a folder of {' and '.join(SUFFIXES)} files")
    files: list[tuple[str, Path]] = []
    skipped: Counter[str] = Counter()
    root = source.resolve()
    for path in source.rglob("*"):
        name = path.relative_to(source)
        if not path.is_file():
            continue
        if any(part.startswith(".") for part in name.parts):
            skipped["hidden"] += 1
        elif not path.resolve().is_relative_to(root):
            skipped["link out of the folder"] += 1
        elif path.suffix.lower() in SUFFIXES:
            files.append((printable_name(name.as_posix()), path))
        else:
            skipped[printable_name(path.suffix.lower()) or "no suffix"] += 1
    if not files:
        raise ValueError(f"{source}: holds no {' or '.join(SUFFIXES)} file")
    return sorted(files), dict(skipped)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path}: byte {error.start} is 0x{error.object[error.start]:02x}, which is not UTF-8; convert the file to UTF-8"
        ) from error
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from error
