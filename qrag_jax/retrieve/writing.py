"""Writes an index anew from documents that stay and documents that come, so that at every moment a whole index is in the folder.

Shards that keep all their chunks stay as they are. The others are written again, under names that were never used before; then meta.json is
replaced, and the files that it no longer names are removed. Vectors of texts that the index had before are copied, never computed again.

building.json lists the shards that an unfinished change has written. They are only a store of vectors and whole shards for the next change,
so what a killed change leaves behind can neither be wrong nor in the way.

Several processes (:mod:`qrag_jax.retrieve.team`) carry out the same plan. Each writes every n-th of the new shards, so a text is embedded
by whoever writes the first shard that has it, among the same texts as by one process alone: the bytes are the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from qrag_jax.retrieve.chunks import Chunk
from qrag_jax.retrieve.embed import ChunkEmbedder
from qrag_jax.retrieve.meta import JOURNAL, META, Meta, stamp
from qrag_jax.retrieve.records import SourceRecord
from qrag_jax.retrieve.storage import TEMPORARY, WORDS, Shard, record, shard_number, text_key
from qrag_jax.retrieve.stored_rows import StoredRows, merge
from qrag_jax.retrieve.team import JOURNALS, Awaited, Team, settings
from qrag_jax.rundir.lock import LOCK, WRITER
from qrag_jax.rundir.log import progress

PIECE = 2048  # texts embedded between two updates of the progress bar


@dataclass(frozen=True)
class Kept:
    """Chunks ``start`` to ``end`` of the index as it is; ``record`` describes them from now on."""

    record: SourceRecord
    start: int
    end: int


@dataclass(frozen=True)
class New:
    """Chunks of a document; ``goes_on``: it is the next block of the document before it."""

    record: SourceRecord
    chunks: Sequence[Chunk]
    goes_on: bool = False


class _Entry(NamedTuple):
    """A chunk of a shard that is to be written: its row among the stored ones, or its text."""

    line: bytes
    key: bytes
    row: int | None
    text: str = ""


def rewrite(
    team: Team, meta: Meta, plan: Iterable[Kept | New], retriever: ChunkEmbedder | None, unread: Mapping[str, str], bar: Any
) -> tuple[Meta, int]:
    """Writes the documents of ``plan`` into the folder, in order, as the index that follows ``meta``: the new meta.json, and the number of
    texts that were embedded (by this process, but by all as process 0 knows it). ``retriever`` may be None if the plan has no
    :class:`New`. ``unread`` may grow while the plan is carried out. The caller is one of the :func:`~qrag_jax.retrieve.team.writers`.

    Raises ValueError when nothing is left, or a vector is not finite; and as :meth:`~qrag_jax.retrieve.team.Team.wait` does.
    """
    writer = _Writer(team, meta, retriever, bar)
    for part in plan:
        writer.take(part)
    return writer.finish(unread), writer.embedded


def clean(path: Path, shards: Iterable[Shard]) -> None:
    """Removes what killed writers left, and the files of all shards but ``shards``. Files that cannot be removed now (some systems keep
    open files) are left to the next change."""
    named = {file.name for shard in shards for file in shard.files.values()}
    for file in path.iterdir():
        leftover = file.match(TEMPORARY) and file.name not in (LOCK, WRITER)
        if leftover or (shard_number(file.name) is not None and file.name not in named):
            with suppress(PermissionError):
                file.unlink(missing_ok=True)  # another process may remove its own


class _Writer:
    """``pool``: all shards whose vectors can be copied: of the index, of an unfinished change, and those written here or elsewhere now."""

    def __init__(self, team: Team, meta: Meta, retriever: ChunkEmbedder | None, bar: Any) -> None:
        self.path, self.team, self.meta, self.retriever, self.bar = team.folder, team, meta, retriever, bar
        self.before = stamp(self.path)
        self.unfinished, self.used = self._take_over() if team.leads else (team.begun(meta), set())
        self.used |= {shard.number for shard in self.unfinished}
        self.begun = {shard.files["texts"].sha256: shard for shard in self.unfinished}
        self.pool = [*meta.shards, *self.unfinished]
        for shard in self.pool:
            shard.map()
        self.old = StoredRows(meta.shards, meta.width)
        self.number = meta.written
        self.dealt = self.embedded = 0
        self.texts = hashlib.sha256()
        self.made: list[Shard] = []
        self.shards: list[Shard] = []
        self.sources: list[SourceRecord] = []
        self.entries: list[_Entry] = []
        self.run = (0, 0)  # kept chunks that are not yet in ``entries`` or ``shards``
        self.several = team.place.count > 1
        if self.several:
            self.known  # noqa: B018 (made now, since the keys of shards that others write are not read)

    def _take_over(self) -> tuple[list[Shard], set[int]]:
        """The sound shards of an unfinished change, now in one journal, and the numbers that no new shard may have."""
        begun, listed = unfinished(self.path, self.meta)
        clean(self.path, (*self.meta.shards, *begun))
        others = list(self.path.glob(JOURNALS))
        if others or self.team.place.count > 1:
            _list_shards(self.meta, begun, self.path / JOURNAL)
        for journal in others:
            journal.unlink()
        self.team.tell(stage="working", shards=len(begun), begun=len(begun))
        return begun, listed if self.meta.store else set()  # a store never gets other rows of the same number

    @cached_property
    def known(self) -> dict[bytes, int]:
        """The first row of each text in the pool."""
        found: dict[bytes, int] = {}
        for row, key in enumerate(key.tobytes() for shard in self.pool for key in shard.keys):
            found.setdefault(key, row)
        return found

    def take(self, part: Kept | New) -> None:
        if isinstance(part, Kept):
            self.sources.append(part.record)
            if part.start != self.run[1]:
                self._end_run()
                self.run = (part.start, part.start)
            self.run = (self.run[0], part.end)
            return
        if part.goes_on:
            self.sources[-1] = self.sources[-1].followed_by(part.record)
        else:
            self.sources.append(part.record)
        if part.chunks:
            self._end_run()
        for chunk in part.chunks:
            self._append(_Entry(record(chunk), text_key(chunk.text), None, chunk.text))

    def _end_run(self) -> None:
        """Shards that lie in the run of kept chunks are taken as they are; of others, chunk by chunk."""
        (start, end), self.run = self.run, (0, 0)
        while start < end:
            shard, row = self.old.place(start)
            count = min(shard.chunks - row, end - start)
            if count == shard.chunks:
                self._flush()
                self.shards.append(shard)
                self.bar.update(count)
            else:
                for i in range(row, row + count):
                    self._append(_Entry(shard.line(i), shard.keys[i].tobytes(), start - row + i))
            start += count

    def _append(self, entry: _Entry) -> None:
        self.entries.append(entry)
        if len(self.entries) == self.meta.shard_chunks:
            self._flush()

    def _flush(self) -> None:
        """Makes a shard of the waiting entries, takes the one that an unfinished change has made of them, or leaves it to its process."""
        entries, self.entries = self.entries, []
        if not entries:
            return
        if self.several:
            self.team.look()
        lines = [entry.line for entry in entries]
        texts = hashlib.sha256(b"".join(lines)).hexdigest()
        self.texts.update(texts.encode())
        done = self.begun.pop(texts, None)
        if done is not None:
            self.shards.append(done)
            self.bar.update(len(entries))
            return
        number, owner = self._next_number(), self.dealt % self.team.place.count
        self.dealt += 1
        if owner == self.team.place.number:
            shard = self._write(entries, lines, number)
        else:
            shard = Awaited(self.team, self.meta, owner, number, len(entries), texts)
            self.bar.update(len(entries))
        if self.several or any(entry.row is None for entry in entries):
            first = sum(shard.chunks for shard in self.pool)
            for row, entry in enumerate(entries, first):
                self.known.setdefault(entry.key, row)
        self.pool.append(shard)
        self.shards.append(shard)
        if owner == self.team.place.number:
            self.made.append(shard)
            self._write_journal()

    def _next_number(self) -> int:
        while self.number in self.used:
            self.number += 1
        self.number += 1
        return self.number - 1

    def _write(self, entries: Sequence[_Entry], lines: Sequence[bytes], number: int) -> Shard:
        if not self.team.journal.is_file():
            self._write_journal()
        old = {i: entry.row for i, entry in enumerate(entries) if entry.row is not None}
        waiting = {i: entry for i, entry in enumerate(entries) if entry.row is None}
        if waiting:
            old |= {i: self.known[entry.key] for i, entry in waiting.items() if entry.key in self.known}
        fresh = {entry.key: entry.text for i, entry in waiting.items() if i not in old}
        place = {key: row for row, key in enumerate(fresh)}
        self.bar.update(len(entries) - len(fresh))
        vectors = np.concatenate([np.empty((0, self.meta.width), np.float32), *self._embed(list(fresh.values()))])
        new = {i: place[entry.key] for i, entry in waiting.items() if i not in old}
        raw, scales = merge(StoredRows(self.pool, self.meta.width), old, vectors, new, len(entries), self.meta.dtype)
        keys = [entry.key for entry in entries]
        shard = Shard.write(self.path, number, lines, keys, raw, scales, self.meta.dtype, self.meta.store)
        shard.map()
        return shard

    def _write_journal(self) -> None:
        shards = [*(self.unfinished if self.team.leads else ()), *self.made]
        _list_shards(self.meta, shards, self.team.journal)
        self.team.tell(shards=len(shards), embedded=self.embedded)

    def _embed(self, texts: list[str]) -> Iterator[Float[np.ndarray, "U D"]]:
        for start in range(0, len(texts), PIECE):
            piece = texts[start : start + PIECE]
            assert self.retriever is not None
            vectors = self.retriever.embed_chunks(piece)
            if not np.isfinite(vectors).all():
                bad = int(np.argmin(np.isfinite(vectors).all(axis=1)))
                raise ValueError(f"the vector of {piece[bad][:60]!r} is not finite: the retriever's parameters are damaged")
            self.embedded += len(piece)
            self.bar.update(len(piece))
            yield vectors

    def finish(self, unread: Mapping[str, str]) -> Meta:
        self._end_run()
        self._flush()
        if not self.shards:
            raise ValueError(f"{self.path}: nothing to search would be left; an index holds at least one chunk")
        if not self.team.leads:
            self.team.tell(stage="done", texts=self.texts.hexdigest())
            self.team.wait(0, lambda _: True if stamp(self.path) != self.before else None)
            return Meta.read(self.path / META)
        for number in range(1, self.team.place.count):
            done = self.team.wait(number, lambda now: now if now is not None and now.stage == "done" else None)
            if done.texts != self.texts.hexdigest():
                raise self.team.differs(number)
            self.embedded += done.embedded
        written = max(self.number, *(number + 1 for number in self.used), 0)
        held = replace(self.meta, shards=tuple(self.shards), sources=tuple(self.sources), written=written)
        made = replace(held, unread=dict(unread))
        if made.store is not None:
            made.store.announce(made.checksum)
        made.write(self.path / META)
        for name in (JOURNAL, WORDS):  # the words are those of the texts before
            (self.path / name).unlink(missing_ok=True)
        for journal in self.path.glob(JOURNALS):
            journal.unlink()
        clean(self.path, made.shards)
        if made.store is not None:
            made.store.commit(made.checksum, made.held, [shard.number for shard in self.meta.shards])
        return made


def _list_shards(meta: Meta, shards: Iterable[Shard], journal: Path) -> None:
    replace(meta, shards=tuple(shards), sources=()).write(journal)


def unfinished(path: Path, meta: Meta) -> tuple[list[Shard], set[int]]:
    """The sound shards of an unfinished change that hold vectors of the same model and type; and the numbers of all its shards."""
    ours = {shard.number for shard in meta.shards}
    listed: dict[int, Shard] = {}
    for journal in sorted((*path.glob(JOURNAL), *path.glob(JOURNALS))):
        with suppress(ValueError):  # a damaged journal, or one of another version: its shards are written again
            begun = Meta.read(journal)
            if settings(begun) == settings(meta):
                listed |= {shard.number: shard for shard in begun.shards if shard.number not in ours}
    found: list[Shard] = []
    if not listed:
        return found, set()
    for shard in progress([listed[number] for number in sorted(listed)], desc="resuming", leave=False):
        with suppress(ValueError):
            shard.verify_files()
            if meta.store is not None and shard.held is not None:
                shard.store = meta.store
                shard.store.check([shard.held])
            found.append(shard)
    return found, set(listed)
