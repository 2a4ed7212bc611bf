"""The source of a search or an index, as a stream of chunks: a text, a text file, a folder of them, or ready-made chunks.

One rule holds everywhere: a ``str`` is a text, a ``pathlib.Path`` is a file or a folder.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from qrag_jax.data.text.chunker import ChunkBy
from qrag_jax.models.tokenizer import TextTokenizer
from qrag_jax.retrieve.chunks import Chunk, chunk_text
from qrag_jax.retrieve.metadata import SIDECAR, Metadata, file_metadata, plain
from qrag_jax.retrieve.records import SUFFIXES, SourceRecord
from qrag_jax.rundir.log import say

LONGEST_PATH = 4096
BLOCK = 2048  # ready-made chunks of a document that are counted at once
BYTE_ORDER_MARK = "\ufeff"
DOCUMENTS = (("page_content", "metadata"), ("text", "metadata"), ("content", "meta"))
"""The text and the metadata of a document of LangChain, LlamaIndex and Haystack."""
ORIGINS = ("source", "file_path", "file_name")
"""Metadata that name where a document comes from."""


@dataclass(frozen=True)
class Text:
    """A text with its name and its metadata, as one document of a source: it is cut into chunks. Raises ValueError on anything else."""

    text: str
    name: str | None = None
    metadata: Metadata = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        if not isinstance(self.text, str) or not (self.name is None or (isinstance(self.name, str) and self.name.strip())):
            raise ValueError(f"Text(name = {self.name!r}): its text and its name must be texts, and the name not empty (or None)")
        if not isinstance(self.metadata, Mapping):
            raise ValueError(f"Text(name = {self.name!r}): metadata must be a dict, such as {{'year': 2024}}")


class SourceFile(NamedTuple):
    """A text file, its name in the index, and the JSON file with its metadata, if there is one."""

    name: str
    path: Path
    sidecar: Path | None


@dataclass(frozen=True)
class Reading:
    """A document, read but not yet cut. ``goes_on``: it is the next block of the one before it; ``digest`` covers all blocks so far."""

    name: str | None
    digest: str
    metadata: Metadata
    cut: Callable[[], tuple[SourceRecord, list[Chunk]]]
    goes_on: bool = False


class ChunkStream:
    """The chunks of a source in order, one file in memory at a time; ``read`` grows as its documents are cut.

    A ``str`` is a text, which is cut into chunks. A ``Path`` is a file or a folder. In a folder, the .txt and .md files at any depth are
    read, sorted by relative name; names that begin with a dot are left out. ``skipped`` has the number of other files by suffix. Files are
    UTF-8 with universal newlines: a chunk's characters count in ``Path.read_text(encoding="utf-8")``; a byte-order mark and front matter
    are in no chunk. A file of white space has no chunks. The metadata of a file are those of
    :func:`~qrag_jax.retrieve.metadata.file_metadata`. Any other source gives documents in order (a list, a generator, a NumPy array): a
    :class:`Text` is cut; a ``str``, or a document of LangChain, LlamaIndex or Haystack, is one ready-made chunk, and consecutive ones with
    the same source and metadata are one document. If a text is the name of an existing file, a message says that it is used as a text.

    Raises ValueError on a source that is missing, empty, or not UTF-8 (naming file and byte), and on empty chunks.
    """

    def __init__(self, source: str | Path | Text | Iterable[Any], tokenizer: TextTokenizer, max_tokens: int, by: ChunkBy) -> None:
        self.source = [source] if isinstance(source, Text) else source
        self.tokenizer, self.max_tokens, self.by = tokenizer, max_tokens, by
        self.files, self.skipped = _files(source) if isinstance(source, Path) else ([], {})
        self.read: list[SourceRecord] = []
        self._bytes, self._total = 0, sum(file.path.stat().st_size for file in self.files)
        if isinstance(source, str) and _names_a_file(source):
            say(f"source = {source!r}: taken as a text, because it is a str; to read that file or folder, give pathlib.Path({source!r})")
        if isinstance(source, bytes | bytearray | Mapping) or not isinstance(source, str | Path | Text | Iterable):
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
        for reading in self.readings():
            yield from reading.cut()[1]

    def readings(self) -> Iterator[Reading]:
        """The documents in order. Raises ValueError at the end if all were cut and none has a chunk."""
        count = 0
        for reading in self._readings():
            count += not reading.goes_on
            yield reading
        if len(self.read) == count and not any(record.chunks for record in self.read):
            if isinstance(self.source, Path):
                raise ValueError(f"{self.source}: no text; it is empty or only white space")
            if isinstance(self.source, str):
                raise ValueError("the text has nothing to search; it is empty or only white space")
            raise ValueError("source holds no chunks: nothing to index")

    def _readings(self) -> Iterator[Reading]:
        if isinstance(self.source, Path):
            yield from map(self.reading, self.files)
        elif isinstance(self.source, str):
            check_encodable(self.source, "source")
            yield self._text(None, self.source, {}, 0)
        else:
            yield from self._given(self.source)

    def reading(self, file: SourceFile) -> Reading:
        """One of the files of a folder."""
        text = _read(file.path)
        found, front = file_metadata(file.path, text, file.sidecar)
        return self._text(file.name, text, found, front, file.path.stat().st_size)

    def _text(self, name: str | None, text: str, found: Metadata, front: int, size: int = 0) -> Reading:
        """A text that is to be cut; its first ``front`` characters, and a byte-order mark, are in no chunk."""
        digest = hashlib.sha256(text.encode()).hexdigest()

        def cut() -> tuple[SourceRecord, list[Chunk]]:
            # Spaces in place of a byte-order mark and front matter keep the places of all characters.
            hidden = max(front, int(text.startswith(BYTE_ORDER_MARK)))
            chunks = chunk_text(" " * hidden + text[hidden:], self.tokenizer, self.max_tokens, self.by)
            self._bytes += size
            chunks = [replace(chunk, source=name, metadata=found) for chunk in chunks]
            return self._counted(name, len(text), chunks, digest, found, False), chunks

        return Reading(name, digest, found, cut)

    def _given(self, items: Iterable[Any]) -> Iterator[Reading]:
        """Documents from Python; a long one comes in several blocks."""
        chunks: list[Chunk] = []
        hasher, goes_on = hashlib.sha256(), False
        for number, item in enumerate(items):
            one = None if isinstance(item, Text) else _given_chunk(number, item)
            last = chunks[-1] if chunks else None
            same = last is not None and one is not None and (last.source, last.metadata) == (one.source, one.metadata)
            if chunks and (not same or len(chunks) == BLOCK):
                yield self._ready(tuple(chunks), hasher.hexdigest(), goes_on)
                chunks, goes_on = [], same
            if not same:
                hasher = hashlib.sha256(b"chunks")
            if one is not None:
                hasher.update(f" {len(one.text)} {one.text}".encode())
                chunks.append(one)
            elif isinstance(item, Text):
                check_encodable(item.text, f"Text {number}")
                name = None if item.name is None else printable_name(item.name)
                yield self._text(name, item.text, plain(item.metadata, f"Text {number}"), 0)
        if chunks:
            yield self._ready(tuple(chunks), hasher.hexdigest(), goes_on)

    def _ready(self, chunks: tuple[Chunk, ...], digest: str, goes_on: bool) -> Reading:
        name, found = chunks[0].source, chunks[0].metadata
        characters = sum(len(chunk.text) for chunk in chunks)
        return Reading(
            name, digest, found, lambda: (self._counted(name, characters, chunks, digest, found, goes_on), list(chunks)), goes_on
        )

    def _counted(
        self, name: str | None, characters: int, chunks: Sequence[Chunk], digest: str, found: Metadata, goes_on: bool
    ) -> SourceRecord:
        record = SourceRecord.count(name, characters, [chunk.text for chunk in chunks], self.tokenizer, self.max_tokens)
        record = replace(record, digest=digest, metadata=found)
        if goes_on:
            self.read[-1] = self.read[-1].followed_by(record)
        else:
            self.read.append(record)
        return record


def _given_chunk(number: int, item: Any) -> Chunk:
    origin: str | None = None
    text, found = item, {}
    for text_name, metadata_name in DOCUMENTS:
        metadata = getattr(item, metadata_name, None)
        if isinstance(metadata, Mapping) and hasattr(item, text_name):
            text = getattr(item, text_name)
            key = next((name for name in ORIGINS if metadata.get(name)), None)
            origin = None if key is None else str(metadata[key])
            found = plain({name: value for name, value in metadata.items() if name != key}, f"chunk {number}")
            break
    if isinstance(text, Path):
        raise ValueError(f"chunk {number} = {str(text)!r} is a Path: give one file or one folder as the source, or the texts of the files")
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"chunk {number} = {text!r}: must be a text that is not empty, or a document with such a text")
    check_encodable(text, f"chunk {number}")
    return Chunk(str(text), source=None if origin is None else printable_name(origin), metadata=found)


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


def _files(source: Path) -> tuple[list[SourceFile], dict[str, int]]:
    """The files to read, and the number of the others by suffix."""
    if source.is_file():
        sidecar = source.with_name(source.name + SIDECAR)
        return [SourceFile(printable_name(source.name), source, sidecar if sidecar.is_file() else None)], {}
    if not source.is_dir():
        raise ValueError(f"{source}: no such file or folder; expected a text file or a folder of {' and '.join(SUFFIXES)} files")
    skipped: Counter[str] = Counter()
    seen: list[Path] = []
    root = source.resolve()
    for path in source.rglob("*"):
        if not path.is_file():
            continue
        if any(part.startswith(".") for part in path.relative_to(source).parts):
            skipped["hidden"] += 1
        elif not path.resolve().is_relative_to(root):
            skipped["link out of the folder"] += 1
        else:
            seen.append(path)
    texts = {path for path in seen if path.suffix.lower() in SUFFIXES}
    sidecars = {path for path in seen if path.suffix == SIDECAR and path.with_suffix("") in texts}
    skipped.update(printable_name(path.suffix.lower()) or "no suffix" for path in seen if path not in texts | sidecars)
    files = []
    for path in texts:
        sidecar = path.with_name(path.name + SIDECAR)
        files.append(SourceFile(printable_name(path.relative_to(source).as_posix()), path, sidecar if sidecar in sidecars else None))
    if not files:
        raise ValueError(f"{source}: holds no {' or '.join(SUFFIXES)} file")
    return sorted(files, key=lambda file: (file.name, file.path)), dict(skipped)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path}: byte {error.start} is 0x{error.object[error.start]:02x}, which is not UTF-8; convert the file to UTF-8"
        ) from error
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from error
