"""An index: the chunks of any number of documents with their vectors, in a folder. It serves many questions, and its documents may change.

    meta.json        its model, documents and shards, and the size and SHA-256 of every file (:mod:`qrag_jax.retrieve.meta`); written last
    building.json    the shards that an unfinished change has written
    vectors-, scales-, texts-, offsets-, keys-00000...    one file each per shard (:mod:`qrag_jax.retrieve.storage`)

With a store (:mod:`qrag_jax.retrieve.stores`), the vectors are in a vector database and everything else is in the folder.

Vectors are un-rotated, so its vectors do not depend on positions: every question, budget and state reads the same bytes. These bytes are a
function of source, model and settings, however often the build was killed. An addition begins a new shard, so an index that grew has other
shard borders than an index built at once; each is a function of its own history. Memory: one file's text, one shard, and a 16-byte key per
distinct text (about 150 bytes with its entry in a table).
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections import ChainMap, Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from qrag_jax.config.parse import require
from qrag_jax.data.text.chunker import ChunkBy
from qrag_jax.export.hub import is_named
from qrag_jax.retrieve.changes import Changes, Documents, adding, building, removing, syncing
from qrag_jax.retrieve.checks import begun_in, check_model, check_place, check_unchanged, tidy
from qrag_jax.retrieve.chunks import Chunk
from qrag_jax.retrieve.embed import ChunkEmbedder, model_hash
from qrag_jax.retrieve.encoders import PREFIX
from qrag_jax.retrieve.meta import JOURNAL, META, IndexModel, Meta, Positions, check_positions, stamp
from qrag_jax.retrieve.records import SourceRecord, notices
from qrag_jax.retrieve.sources import ChunkStream, Text
from qrag_jax.retrieve.storage import Dtype, check_dtype
from qrag_jax.retrieve.store_scan import check_constant
from qrag_jax.retrieve.stored_rows import stored_rows
from qrag_jax.retrieve.stores.held import HeldVectors, StoreRef
from qrag_jax.retrieve.team import Team, writers
from qrag_jax.retrieve.types import others
from qrag_jax.retrieve.words import WordIndex, kept_words
from qrag_jax.retrieve.writing import Kept, New, rewrite
from qrag_jax.rundir.hosts import ALONE, Place
from qrag_jax.rundir.log import progress, say

SHORT = 0.1  # seconds before a progress bar is shown: a change that is refused at once shows none
Source = str | Path | Text | Iterable[Any]
"""A ``str`` is a text; a ``Path`` is a file or a folder of files; anything else is documents or ready chunks. See
:class:`~qrag_jax.retrieve.sources.ChunkStream`."""


class Index:
    """Chunks and their vectors on disk, written by one process at a time: a :class:`~qrag_jax.retrieve.types.Document`.

    An object is the index as it was when it was opened: it goes on to give the same answers while another process changes the folder. Open
    the folder again to see the changes. ``changes``: what the call that returned this object changed; None for an index that was opened.
    """

    def __init__(self, path: Path, meta: Meta, changes: Changes | None = None) -> None:
        self.path, self.meta, self.changes = path, meta, changes
        self.rows = stored_rows(meta.shards, meta.width, meta.dtype)
        self._checked: tuple[Any, Any] = (None, None)
        if meta.store is not None:
            meta.store.check(meta.held)
        for shard in meta.shards:  # at once: a change removes the files that only an older meta.json names
            shard.map()

    @classmethod
    def open(cls, path: str | Path, verify: bool = False) -> Index:
        """Reads meta.json and maps the files; needs no model and no device. With ``verify``, calls :meth:`verify`.

        Raises ValueError when the folder is not an index, or an unfinished one, or comes from a newer version, and, naming the file, when a
        file is missing or has another size than when it was written; also when the vectors of an index with a store are not those that it
        was built with. Raises Unreachable when the store cannot be reached.
        """
        path = Path(path)
        while True:
            before = stamp(path)
            if before is None:
                if (path / JOURNAL).is_file():
                    raise ValueError(f"{path}: the build was not finished; run the same build command again to resume it")
                raise ValueError(f"{path}: not an index (it has no {META}); build one with `qrag index build`")
            try:
                index = cls(path, Meta.read(path / META))
                break
            except (ValueError, OSError):
                if stamp(path) == before:  # otherwise, a change removed files of the meta.json that was read
                    raise
        if verify:
            index.verify()
        return index

    @classmethod
    def build(
        cls,
        retriever: ChunkEmbedder,
        source: Source,
        path: str | Path,
        *,
        dtype: Dtype = "float32",
        shard_chunks: int = 16384,
        chunk_by: ChunkBy | None = None,
        positions: Positions = "index",
        retriever_path: str | Path | None = None,
        store: str | None = None,
        place: Place = ALONE,
    ) -> Index:
        """Cuts a source into chunks, embeds each distinct chunk once, and writes an index.

        If the build is killed at any moment, the same call resumes it and ends with the same bytes. On a finished index, it checks that the
        source is still the same and changes nothing.

        Args:
            retriever: embeds the chunks, of at most its ``data.chunk_tokens`` tokens.
            source: a ``str`` is a text; a ``Path`` is a file or a folder of files; anything else is documents or ready chunks. See
                :class:`~qrag_jax.retrieve.sources.ChunkStream`.
            path: folder of the index: new, empty, or of an unfinished build.
            dtype: float32 is exact; bfloat16 has half the bytes, int8 a quarter. errors: see :func:`~qrag_jax.retrieve.storage.pack`.
                int8-exact has float32 rows and int8 codes of them: exact as float32, but a step on the CPU reads mostly the codes.
            shard_chunks: chunks per shard. A killed build loses at most one shard.
            chunk_by: how a text is cut (:func:`~qrag_jax.data.text.chunker.chunk_spans`); None: as in training, ``data.chunk_by``.
            positions: "index": the positions of a search run through the whole index; "document": they restart with each document, which
                has the positions that it would have alone.
            retriever_path: written to meta.json, so that later commands find the retriever.
            store: the vector database for the vectors (:mod:`~qrag_jax.retrieve.stores.places`); None: the folder. It holds float32.
            place: of this process among several that make the same call and share the folder (:mod:`~qrag_jax.retrieve.team`). Each cuts
                the whole source, and embeds its part of the chunks.

        Raises ValueError on a source that cannot be read, when ``path`` holds something else, and when it holds a finished index of another
        source, model or settings; Busy when another process is writing to the folder; Unreachable when the store cannot be reached, or
        another process of ``place`` does not come or dies.
        """
        check_dtype(dtype)
        check_positions(positions)
        ref = None if store is None else StoreRef.new(store)
        if ref is not None:
            require(place.count == 1, "store", store, "left out with several processes: a database is filled by one")
            require(dtype == "float32", "dtype", dtype, "float32 with a store")
            check_constant(retriever.config.qhead)
        if shard_chunks < 1:
            raise ValueError(f"shard_chunks = {shard_chunks}: must be 1 or more")
        path, data = Path(path), retriever.config.data
        check_place(path)
        home = None
        if retriever_path is not None:
            here = Path(retriever_path).expanduser()
            home = str(here.resolve() if here.exists() else retriever_path)  # a URL, a hub name or encoder:NAME stays as it is
        by = chunk_by or data.chunk_by
        model = IndexModel(model_hash(retriever), data.chunk_tokens, by, home)
        width = retriever.embedder.config.width
        stream, changes = ChunkStream(source, retriever.tokenizer, data.chunk_tokens, by), Changes()
        meta = Meta(model, dtype, width, shard_chunks, positions=positions)
        if place.number > 0 and (path / META).is_file():
            return _as_it_is(path, check_unchanged(path, meta, stream))
        with writers(path, place) as team:
            check_place(path)
            ref = begun_in(path, ref)
            meta = replace(meta, store=None if ref is None else HeldVectors(ref, width, shard_chunks))
            if (path / META).is_file():
                found = check_unchanged(path, meta, stream)
                tidy(path, found)
                return _as_it_is(path, found)
            return _carry_out(team, meta, building(stream, changes), retriever, changes, stream, stream.skipped, stream.unread)

    def add(self, retriever: ChunkEmbedder, source: Source, *, replace: bool = False, place: Place = ALONE) -> Index:
        """Adds the documents of a source (as for :meth:`build`) after the others, and returns the new index. This object does not change.

        A document that the index has already, with the same text and metadata, is not added again. With ``replace``, one that has changed
        takes the place of the old one, at the end; without, it raises ValueError. If the addition is killed at any moment, the old index
        stays valid, and the same call resumes it. ``place`` and what is raised: as for :meth:`build`.
        """
        self._check_share(place)
        with writers(self.path, place) as team:
            documents, stream, changes = *self._now(retriever, source), Changes()
            plan, before = adding(documents, stream, changes, replacing=replace), documents.meta.skipped
            skipped = {**before, **stream.skipped} if replace else Counter(before) + Counter(stream.skipped)
            others = {name: why for name, why in documents.meta.unread.items() if name not in {file.name for file in stream.files}}
            unread = ChainMap(stream.unread, others)
            return _carry_out(team, documents.meta, plan, retriever, changes, stream, skipped, unread)

    def sync(self, retriever: ChunkEmbedder, source: Source, *, place: Place = ALONE) -> Index:
        """Makes the index hold exactly the documents of a source, in its order, and returns the new index. This object stays as it is.

        New documents are added, changed ones replaced, and those that are gone removed; only texts that the index does not have are
        embedded. If the call is killed at any moment, the old index stays valid, and the same call resumes it. ``place`` and what is
        raised: as for :meth:`build`; also ValueError when a document has no name.
        """
        self._check_share(place)
        with writers(self.path, place) as team:
            documents, stream, changes = *self._now(retriever, source), Changes()
            plan = syncing(documents, stream, changes)
            return _carry_out(team, documents.meta, plan, retriever, changes, stream, stream.skipped, stream.unread)

    def remove(self, names: Sequence[str]) -> Index:
        """Removes documents by their names, and returns the new index; needs no model. This object stays as it is.

        If the call is killed at any moment, the old or the new index is there and valid. Raises ValueError on an unknown name, and when
        nothing would be left.
        """
        if isinstance(names, str):
            raise ValueError(f"names = {names!r}: must be a list of names")
        with writers(self.path, ALONE) as team:
            meta, changes = Meta.read(self.path / META), Changes()
            plan = removing(Documents(self.path, meta), names, changes)
            return _carry_out(team, meta, plan, None, changes, None, meta.skipped, meta.unread)

    def _check_share(self, place: Place) -> None:
        if self.meta.store is not None and place.count > 1:
            raise ValueError(f"{self.path}: its vectors are in {self.meta.place}, which one process fills; run it on one host")

    def _now(self, retriever: ChunkEmbedder, source: Source) -> tuple[Documents, ChunkStream]:
        """The documents in the folder, which another process may have changed since it was opened, and those of a source."""
        meta = Meta.read(self.path / META)
        check_model(self.path, meta.model.hash, model_hash(retriever))
        source = list(source) if isinstance(source, Iterator) else source  # it is read more than once
        return Documents(self.path, meta), ChunkStream(source, retriever.tokenizer, meta.model.chunk_tokens, meta.model.chunk_by)

    def __len__(self) -> int:
        return len(self.rows)

    def chunk(self, i: int) -> Chunk:
        """Text, characters, source and metadata of chunk ``i``; reads only this chunk's part of the file. Raises ValueError outside
        0..N - 1."""
        if not 0 <= i < len(self):
            raise ValueError(f"chunk {i}: must be in 0..{len(self) - 1}")
        shard, row = self.rows.place(i)
        found = self.sources[self._source(i)].metadata
        return replace(shard.chunk(row), metadata=found) if found else shard.chunk(row)

    @property
    def sources(self) -> Sequence[SourceRecord]:
        """The documents, in the order of their chunks."""
        return self.meta.sources

    @cached_property
    def version(self) -> str:
        """A hash of its settings, its documents and the checksums of their chunks: it changes with every change of the index."""
        return self.meta.checksum[:16]

    @cached_property
    def restarts(self) -> tuple[int, ...]:
        """The chunks at which positions begin again, the first of which is 0."""
        return self.meta.restarts

    @cached_property
    def _starts(self) -> tuple[int, ...]:
        return self.meta.starts

    def _source(self, i: int) -> int:
        """The number of the record that chunk ``i`` belongs to."""
        return bisect_right(self._starts, i) - 1

    def equals(self, i: int) -> tuple[int, ...]:
        """The chunks of other documents that have the text of chunk ``i``."""
        shard, row = self.rows.place(i)
        first, second = shard.keys[row]
        starts = [end - one.chunks for one, end in zip(self.rows.shards, self.rows.ends, strict=True)]
        same = [
            start + np.flatnonzero((one.keys[:, 0] == first) & (one.keys[:, 1] == second))
            for one, start in zip(self.rows.shards, starts, strict=True)
        ]
        return tuple(others(self.sources, self._starts, i, np.concatenate(same).tolist()))

    def words(self) -> WordIndex:
        """BM25 of the chunks. Made of all texts when it is first asked for, and kept in the folder; read again by whoever opens the index
        later."""
        return self._words

    @cached_property
    def _words(self) -> WordIndex:
        texts = hashlib.sha256("".join(shard.files["texts"].sha256 for shard in self.rows.shards).encode()).hexdigest()
        rows = progress(range(len(self)), unit="chunk", desc="words", delay=SHORT, leave=False)
        return kept_words(self.path, texts, (shard.chunk(row).text for shard, row in map(self.rows.place, rows)))

    @property
    def home(self) -> str:
        """The place of the retriever that the index was built with. Raises ValueError when it is not recorded or no longer there."""
        recorded = self.meta.model.retriever
        if recorded is None:
            raise ValueError(f"{self.path}: does not say where its retriever is; name it with --retriever")
        if not (recorded.startswith(PREFIX) or is_named(recorded) or Path(recorded).exists()):
            raise ValueError(f"{recorded}: the retriever of {self.path} is no longer there; name it with --retriever")
        return recorded

    def check(self, retriever: ChunkEmbedder) -> None:
        """Raises ValueError, naming both models, unless the retriever has the model that embedded this index's chunks."""
        now = (retriever, retriever.params)
        if any(a is not b for a, b in zip(now, self._checked, strict=True)):  # hashing a large model takes seconds
            check_model(self.path, self.meta.model.hash, model_hash(retriever))
            self._checked = now

    def verify(self) -> None:
        """Reads every file. Raises ValueError, naming the file, when a checksum differs."""
        for shard in progress(self.meta.shards, unit="shard", desc="verifying", leave=False):
            shard.verify()


def _carry_out(
    team: Team,
    meta: Meta,
    plan: Iterable[Kept | New],
    retriever: ChunkEmbedder | None,
    changes: Changes,
    stream: ChunkStream | None,
    skipped: Mapping[str, int],
    unread: Mapping[str, str],
) -> Index:
    """Writes what ``plan`` says in place of ``meta``, and says what a search does not see of the documents that are new."""
    if meta.store is not None:
        meta.store.begin(meta.checksum if meta.shards else "")
    with progress(unit="chunk", desc="index", delay=SHORT) as bar:
        made, changes.embedded = rewrite(team, replace(meta, skipped=skipped), plan, retriever, unread, bar)
    if stream is not None:
        for notice in notices(stream.read, stream.skipped, stream.unread):
            say(notice)
    return Index(team.folder, made, changes)


def _as_it_is(path: Path, meta: Meta) -> Index:
    return Index(path, meta, Changes(unchanged=len({record.name or i for i, record in enumerate(meta.sources)})))
