"""The source of a search or an index, as a stream of chunks: a text, a file, a folder of files, or ready-made chunks.

One rule holds everywhere: a ``str`` is a text, a ``pathlib.Path`` is a file or a folder.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from qrag_jax.data.text.chunker import ChunkBy
from qrag_jax.models.tokenizer import TextTokenizer
from qrag_jax.retrieve.chunks import Chunk, chunk_text
from qrag_jax.retrieve.folder import SourceFile, list_files, printable_name
from qrag_jax.retrieve.formats.passages import Passage, Unreadable
from qrag_jax.retrieve.formats.process import FileReader
from qrag_jax.retrieve.metadata import Metadata, file_metadata, plain
from qrag_jax.retrieve.records import SHOWN, SourceRecord
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


@dataclass(frozen=True)
class Reading:
    """A document or one of its passages, read but not yet cut. ``goes_on``: it is the next block of the one before it; ``digest`` covers
    all blocks so far."""

    name: str | None
    digest: str
    metadata: Metadata
    cut: Callable[[], tuple[SourceRecord, list[Chunk]]]
    goes_on: bool = False


class ChunkStream:
    """The chunks of a source in order, one file in memory at a time; ``read`` grows as its documents are cut.

    A ``str`` is a text, which is cut into chunks. A ``Path`` is a file or a folder. In a folder, the files at any depth whose suffix is in
    :data:`~qrag_jax.retrieve.formats.table.READERS` are read, sorted by relative name; names that begin with a dot are left out.
    ``skipped`` has the number of other files by suffix; ``unread``, which grows, has the reason for each file that could not be read.
    A chunk never crosses the border of a passage (a page, a section, a row), whose place is in its metadata. Its characters count in the
    text of the whole file: for .txt and .md, what ``Path.read_text(encoding="utf-8")`` gives; for others the extracted text
    (:class:`~qrag_jax.retrieve.formats.passages.Passage`). A byte-order mark and front matter are in no chunk. A text file of white space
    has no chunks. The metadata of a file are those of :func:`~qrag_jax.retrieve.metadata.file_metadata`. Any other source gives documents
    in order (a list, a generator, a NumPy array): a :class:`Text` is cut; a ``str``, or a document of LangChain, LlamaIndex or Haystack,
    is one ready-made chunk, and consecutive ones with the same source and metadata are one document. If a text is the name of an existing
    file, a message says that it is used as a text.

    Raises ValueError on a source that is missing, empty, or of which nothing can be read, and on empty chunks.
    """

    def __init__(self, source: str | Path | Text | Iterable[Any], tokenizer: TextTokenizer, max_tokens: int, by: ChunkBy) -> None:
        self.source = [source] if isinstance(source, Text) else source
        self.tokenizer, self.max_tokens, self.by = tokenizer, max_tokens, by
        self.files, self.skipped = list_files(source) if isinstance(source, Path) else ([], {})
        self.unread: dict[str, str] = {}
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

    def readings(self, wanted: Callable[[str | None], bool] = lambda name: True) -> Iterator[Reading]:
        """The documents in order, or of a folder their passages; only those whose name is ``wanted``. Raises ValueError at the end if all
        were cut and none has a chunk."""
        count = before = len(self.read)
        for reading in self._readings(wanted):
            count += not reading.goes_on
            yield reading
        if count == len(self.read) and (count > before or not self.files) and not any(record.chunks for record in self.read):
            if isinstance(self.source, Path):
                raise ValueError(f"{self.source}: no text; it is empty or only white space")
            if isinstance(self.source, str):
                raise ValueError("the text has nothing to search; it is empty or only white space")
            raise ValueError("source holds no chunks: nothing to index")

    def _readings(self, wanted: Callable[[str | None], bool]) -> Iterator[Reading]:
        if isinstance(self.source, Path):
            for _, readings in self.documents(wanted):
                yield from readings
        elif isinstance(self.source, str):
            check_encodable(self.source, "source")
            yield self._text(None, Passage(self.source), {})
        else:
            yield from (reading for reading in self._given(self.source) if wanted(reading.name))

    def documents(self, wanted: Callable[[str | None], bool] = lambda name: True) -> Iterator[tuple[str, list[Reading]]]:
        """The files of a folder whose names are ``wanted``, each with its passages: none if it cannot be read.

        Raises ValueError at the end if no file can be read.
        """
        failed: list[str] = []
        with FileReader() as reader:
            for file in self.files:
                if wanted(file.name):
                    readings = self._passages(file, reader)
                    failed += [] if readings else [file.name]
                    yield file.name, readings
        if failed and len(failed) == len(self.files):
            others = f", and {len(failed) - 1:,} other file{'s' * (len(failed) > 2)} cannot be read" if len(failed) > 1 else ""
            name = self.source if len(failed) == 1 else f"{self.source}: {failed[0]}"
            raise ValueError(f"{name}: {self.unread[failed[0]]}{others}")

    def _passages(self, file: SourceFile, reader: FileReader) -> list[Reading]:
        try:
            passages = reader.read(file.path)
        except Unreadable as reason:
            self.unread[file.name] = str(reason)
            return []
        found, front = file_metadata(file.path, passages[0].text, file.sidecar)
        if clashing := sorted(set(found).intersection(*(passage.place for passage in passages))):
            say(f"{file.path}: its metadata {clashing[0]!r} are not used; here they are the place of each passage")
        if pictures := [str(passage.place["page"]) for passage in passages if "page" in passage.place and not passage.text]:
            more = f" and {len(pictures) - SHOWN:,} more" if len(pictures) > SHOWN else ""
            self.unread[file.name] = f"pages that are pictures without text ({', '.join(pictures[:SHOWN])}{more}); OCR makes them readable"
        if faults := [passage.fault for passage in passages if passage.fault]:
            self.unread[file.name] = "; ".join(faults)
        first = passages[0]
        texts = [one for one in passages if one.text[front if one is first else 0 :].strip()] or [first]
        return [
            self._text(
                file.name, one, {**found, **one.place}, front if one is first else 0, file.path.stat().st_size if one is texts[-1] else 0
            )
            for one in texts
        ]

    def _text(self, name: str | None, passage: Passage, found: Metadata, hidden: int = 0, size: int = 0) -> Reading:
        """A passage that is to be cut; its first ``hidden`` characters, and a byte-order mark, are in no chunk. ``size``: the bytes of the
        file that is read when this is cut."""
        text, first = passage.text, passage.start
        hidden = max(hidden, int(text.startswith(BYTE_ORDER_MARK)))
        # A passage that has moved has changed, because its chunks say where they are.
        digest = hashlib.sha256((f"{first} " if first else "").encode() + text.encode()).hexdigest()

        def cut() -> tuple[SourceRecord, list[Chunk]]:
            # Spaces in place of what is hidden keep the places of all characters.
            chunks = chunk_text(" " * hidden + text[hidden:], self.tokenizer, self.max_tokens, self.by)
            self._bytes += size
            chunks = [
                replace(chunk, start=first + (chunk.start or 0), end=first + (chunk.end or 0), source=name, metadata=found)
                for chunk in chunks
            ]
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
                yield self._text(name, Passage(item.text), plain(item.metadata, f"Text {number}"))
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
