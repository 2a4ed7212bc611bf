"""Which documents stay, come and go when an index is built, extended or brought up to date: the plans that ``writing`` carries out.

A document is known by its name; all records with one name are one document. It has changed if the digest of its text or its metadata have.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from itertools import groupby
from pathlib import Path

from qrag_jax.retrieve.meta import Meta
from qrag_jax.retrieve.records import SourceRecord
from qrag_jax.retrieve.sources import ChunkStream, Reading
from qrag_jax.retrieve.storage import record
from qrag_jax.retrieve.stored_rows import StoredRows
from qrag_jax.retrieve.writing import Kept, New


@dataclass
class Changes:
    """What a change did: numbers of documents, and of the texts that were embedded for it."""

    added: int = 0
    replaced: int = 0
    removed: int = 0
    unchanged: int = 0
    embedded: int = 0

    def __str__(self) -> str:
        counts = f"{self.added:,} added, {self.replaced:,} replaced, {self.removed:,} removed, {self.unchanged:,} unchanged"
        return f"documents: {counts}; texts embedded: {self.embedded:,}"


class Documents:
    """The documents of an index by name, with their records and chunks."""

    def __init__(self, path: Path, meta: Meta) -> None:
        self.path, self.meta = path, meta
        self.rows = StoredRows(meta.shards, meta.width)
        self.kept = [Kept(held, start, start + held.chunks) for held, start in zip(meta.sources, meta.starts, strict=False)]
        self.named: dict[str, list[Kept]] = {}
        for part in self.kept:
            if part.record.name is not None:
                self.named.setdefault(part.record.name, []).append(part)

    def same(self, held: Sequence[Kept], readings: Sequence[Reading]) -> list[Kept] | None:
        """The chunks of a document, if a text that was read has the same, with its metadata as they are now; None if it has others."""
        read = _whole(readings)
        if len(held) != len(read):
            return None
        found = []
        for old, (now, blocks) in zip(held, read, strict=True):
            counted = old.record
            if old.record.digest is None:  # before version 3: compare the chunks; version 1 has no counts of tokens, either
                cut = [block.cut() for block in blocks]
                lines = [record(chunk) for _, chunks in cut for chunk in chunks]
                if len(lines) != old.end - old.start or any(line != self._line(i) for i, line in enumerate(lines, old.start)):
                    return None
                counted = reduce(SourceRecord.followed_by, (one for one, _ in cut))
            elif old.record.digest != now.digest:
                return None
            found.append(replace(old, record=replace(counted, digest=now.digest, metadata=now.metadata)))
        return found

    def _line(self, i: int) -> bytes:
        shard, row = self.rows.place(i)
        return shard.line(row)


def building(stream: ChunkStream, changes: Changes) -> Iterator[New]:
    """Every document of the source."""
    before = None
    for reading in stream.readings():
        changes.added += not reading.goes_on and (reading.name is None or reading.name != before)
        before = reading.name
        yield New(*reading.cut(), reading.goes_on)


def is_index_of(documents: Documents, stream: ChunkStream) -> bool:
    """Whether the index has exactly the documents of the source, with their metadata."""
    place = 0
    for readings in _blocks(stream.readings()):
        held = documents.kept[place : place + 1]
        same = documents.same(held, readings)
        if same is None or (same[0].record.metadata, same[0].record.name) != (held[0].record.metadata, readings[0].name):
            return False
        place += 1
    return place == len(documents.kept)


def adding(documents: Documents, stream: ChunkStream, changes: Changes, *, replacing: bool) -> Iterator[Kept | New]:
    """The documents of the index, then those of the source; those that the index has already stay where they are.

    Raises ValueError, before anything is written, on a document that the index has with another content, unless ``replacing``: then the
    old one is left out.
    """
    stay = _clashes(documents, stream)
    changed = [name for name, kept in stay.items() if kept is None or _metadata(kept) != _metadata(documents.named[name])]
    if changed and not replacing:
        others = f", and {len(changed) - 1:,} more" if len(changed) > 1 else ""
        raise ValueError(
            f"{documents.path}: already has {changed[0]!r}{others}, with other text or metadata; "
            "`qrag index add --replace` replaces what has changed"
        )
    changes.replaced, changes.unchanged = len(changed), len(stay) - len(changed)
    for part in documents.kept:
        name = part.record.name
        if name is None or name not in stay:
            yield part
        elif (kept := stay[name]) is not None:
            yield kept[documents.named[name].index(part)]
    new: set[str] = set()
    for reading in stream.readings(lambda name: name is None or stay.get(name) is None):
        if reading.name is None:
            changes.added += not reading.goes_on
        elif reading.name not in stay and reading.name not in new:
            new.add(reading.name)
            changes.added += 1
        yield New(*reading.cut(), reading.goes_on)


def syncing(documents: Documents, stream: ChunkStream, changes: Changes) -> Iterator[Kept | New]:
    """The documents of the source, in its order. Those that the index has already stay, also those whose file cannot be read now.

    Raises ValueError when the index or the source has documents without a name.
    """
    if any(part.record.name is None for part in documents.kept):
        raise ValueError(
            f"{documents.path}: holds texts that were given without a name, which sync would remove; build another index for the folder"
        )
    changes.removed = len(documents.named)
    for name, readings in _by_name(stream):
        if name is None:
            raise ValueError("sync needs a name for every document of the source: give Text(text, name=...), or metadata with a source")
        held = documents.named.get(name, [])
        if not (held or readings):
            continue
        kept = _now(documents, stream, name, readings) if held else None
        changes.removed -= bool(held)
        if kept is not None:
            changes.replaced += _metadata(kept) != _metadata(held)
            changes.unchanged += _metadata(kept) == _metadata(held)
            yield from kept
            continue
        changes.replaced += bool(held)
        changes.added += not held
        for reading in readings:
            yield New(*reading.cut(), reading.goes_on)


def removing(documents: Documents, names: Sequence[str], changes: Changes) -> Iterator[Kept]:
    """All documents but those of ``names``. Raises ValueError on a name that the index does not have."""
    for name in names:
        if name not in documents.named:
            near = difflib.get_close_matches(name, documents.named, 1)
            raise ValueError(
                f"{documents.path}: has no document {name!r}"
                + (f"; did you mean {near[0]!r}?" if near else "; `qrag index info` lists them")
            )
    gone = set(names)
    changes.removed = len(gone)
    changes.unchanged = len(documents.named) - len(gone) + sum(part.record.name is None for part in documents.kept)
    yield from (part for part in documents.kept if part.record.name not in gone)


def _clashes(documents: Documents, stream: ChunkStream) -> dict[str, list[Kept] | None]:
    """The documents of the source that the index has, too: its chunks, or None if the text has changed."""
    named = documents.named
    return {
        name: _now(documents, stream, name, readings)
        for name, readings in _by_name(stream, lambda name: name in named)
        if name is not None and name in named
    }


def _now(documents: Documents, stream: ChunkStream, name: str, readings: Sequence[Reading]) -> list[Kept] | None:
    """The chunks of a document of the index that stay: all, if it is as it was read, or cannot be read; None if it has changed."""
    if not readings:
        stream.unread[name] += "; the index keeps the text that it had"
        return documents.named[name]
    return documents.same(documents.named[name], readings)


def _by_name(stream: ChunkStream, wanted: Callable[[str | None], bool] = lambda name: True) -> Iterator[tuple[str | None, list[Reading]]]:
    """The documents of a source, each with all its readings (none: its file cannot be read). Files come one by one; other sources are in
    memory anyway."""
    if isinstance(stream.source, Path):
        yield from stream.documents(wanted)
        return
    found: dict[str | None, list[Reading]] = {}
    for reading in stream.readings():
        found.setdefault(reading.name, []).append(reading)
    yield from found.items()


def _blocks(readings: Iterable[Reading]) -> Iterator[list[Reading]]:
    """Readings in groups of those that go on with the first."""
    number = -1

    def count(reading: Reading) -> int:
        nonlocal number
        number += not reading.goes_on
        return number

    yield from (list(group) for _, group in groupby(readings, count))


def _whole(readings: Sequence[Reading]) -> list[tuple[Reading, list[Reading]]]:
    """Each part of a document: its last block, whose digest covers all of them, and all blocks."""
    return [(blocks[-1], blocks) for blocks in _blocks(readings)]


def _metadata(parts: Sequence[Kept]) -> list[object]:
    return [part.record.metadata for part in parts]
