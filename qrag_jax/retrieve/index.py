"""An index: the chunks of any amount of text with their vectors, in a folder. It is built once and serves many questions.

    meta.json        its model and sources, its shards, and the size and SHA-256 of every file; written last
    building.json    the same for an unfinished build or addition: the shards that are done
    vectors-, scales-, texts-, offsets-00000...    one file each per shard (:mod:`qrag_jax.retrieve.storage`)

Vectors are un-rotated, so an index does not depend on positions: every question, budget and state reads the same bytes. These bytes are a
function of source, model and settings, however often the build was killed. An addition begins a new shard, so an index that grew has other
shard borders than an index built at once; each is a function of its own history. Memory: one file's text, one shard, and a 16-byte key per
distinct text (about 150 bytes with its entry in a table).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from qrag_jax.config.parse import LARGEST, decode
from qrag_jax.data.text.chunker import ChunkBy
from qrag_jax.retrieve.chunks import Chunk
from qrag_jax.retrieve.embed import ChunkEmbedder, model_hash
from qrag_jax.retrieve.sources import ChunkStream, SourceRecord, notices
from qrag_jax.retrieve.storage import TEMPORARY, Dtype, Shard, StoredRows, check_dtype, merge, record
from qrag_jax.rundir.files import read_json, write_json
from qrag_jax.rundir.lock import LOCK, WRITER, only_writer
from qrag_jax.rundir.log import progress, say

FORMAT, VERSION = "qrag-jax-index", 2
READABLE = (1, 2)  # an index of version 1 does not say what it skipped and how many tokens it has
META, JOURNAL = "meta.json", "building.json"
PIECE = 2048  # texts embedded between two updates of the progress bar


@dataclass(frozen=True)
class IndexModel:
    """The model that embedded the chunks: its :func:`~qrag_jax.retrieve.embed.model_hash`, and the folder of its retriever, if known."""

    hash: str
    chunk_tokens: int
    chunk_by: ChunkBy
    retriever: str | None


@dataclass(frozen=True)
class Meta:
    """The content of meta.json and building.json. ``kept``: number of shards that existed before the unfinished addition.
    ``skipped``: how many files of each suffix were not read."""

    model: IndexModel
    dtype: Dtype
    width: int
    shard_chunks: int
    shards: tuple[Shard, ...] = ()
    sources: tuple[SourceRecord, ...] = ()
    kept: int = 0
    skipped: Mapping[str, int] = field(default_factory=dict)

    def write(self, path: Path) -> None:
        tree = {"format": FORMAT, "version": VERSION, "model": dataclasses.asdict(self.model), "dtype": self.dtype, "width": self.width}
        tree |= {"shard_chunks": self.shard_chunks, "chunks": sum(shard.chunks for shard in self.shards), "kept": self.kept}
        tree |= {"shards": [shard.tree() for shard in self.shards], "sources": [dataclasses.asdict(source) for source in self.sources]}
        tree |= {"skipped": dict(sorted(self.skipped.items()))}
        write_json(path, tree | {"sha256": _checksum(tree)})

    @classmethod
    def read(cls, path: Path) -> Meta:
        """Raises ValueError, naming the file, on anything that :meth:`write` did not write, and on files that are missing or cut short."""
        tree = read_json(path)
        if not isinstance(tree, dict) or tree.get("format") != FORMAT:
            raise ValueError(f"{path}: is not of the format {FORMAT!r}")
        if tree.get("version") not in READABLE:
            raise ValueError(
                f"{path}: version = {tree.get('version')!r}; this qrag-jax reads versions {READABLE[0]} to {VERSION}: "
                "update it, or build the index again"
            )
        if _checksum({name: value for name, value in tree.items() if name != "sha256"}) != tree.get("sha256"):
            raise ValueError(f"{path}: its SHA-256 differs from the one it was written with; it is damaged: build the index again")
        for name, valid, allowed in _FIELDS:
            if (name not in tree and (name, tree["version"]) != ("skipped", 1)) or not valid(tree.get(name, {})):
                raise ValueError(f"{path}: {name} = {str(tree.get(name))[:60]!r}: must be {allowed}; build the index again")
        check_dtype(tree["dtype"])
        try:
            shards = tuple(Shard.from_tree(path.parent, shard, i, tree["width"], tree["dtype"]) for i, shard in enumerate(tree["shards"]))
            model = decode(IndexModel, tree["model"], "model")
            sources = tuple(decode(SourceRecord, source, "sources") for source in tree["sources"])
        except (ValueError, TypeError) as error:  # TypeError: a field is missing
            raise ValueError(str(error) if str(path.parent) in str(error) else f"{path}: {error}") from error
        skipped = tree.get("skipped", {})
        return cls(model, tree["dtype"], tree["width"], tree["shard_chunks"], shards, sources, tree["kept"], skipped)


def _whole(value: Any, least: int) -> bool:
    return type(value) is int and least <= value <= LARGEST


_FIELDS: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
    ("dtype", lambda value: isinstance(value, str), "a name"),
    ("width", lambda value: _whole(value, 1), "a whole number above 0"),
    ("shard_chunks", lambda value: _whole(value, 1), "a whole number above 0"),
    ("kept", lambda value: _whole(value, 0), "a whole number"),
    ("shards", lambda value: isinstance(value, list), "a list"),
    ("sources", lambda value: isinstance(value, list), "a list"),
    ("model", lambda value: isinstance(value, dict), "an object"),
    ("skipped", lambda value: isinstance(value, dict) and all(_whole(count, 1) for count in value.values()), "counts of files by kind"),
)
"""The fields of meta.json that its checksum does not prove: field, whether a value is valid, what is."""


class Index:
    """Chunks and their vectors on disk, written by one process at a time: a :class:`~qrag_jax.retrieve.types.Document`."""

    def __init__(self, path: Path, meta: Meta) -> None:
        self.path, self.meta = path, meta
        self.rows = StoredRows(meta.shards, meta.width)
        self._checked: tuple[Any, Any] = (None, None)

    @classmethod
    def open(cls, path: str | Path, verify: bool = False) -> Index:
        """Reads meta.json and the sizes of the files; needs no model and no device. With ``verify``, calls :meth:`verify`.

        Raises ValueError when the folder is not an index, or an unfinished one, or comes from a newer version, and, naming the file, when a
        file is missing or has another size than when it was written.
        """
        path = Path(path)
        if not (path / META).is_file():
            if (path / JOURNAL).is_file():
                raise ValueError(f"{path}: the build was not finished; run the same build command again to resume it")
            raise ValueError(f"{path}: not an index (it has no {META}); build one with `qrag index build`")
        index = cls(path, Meta.read(path / META))
        if verify:
            index.verify()
        return index

    @classmethod
    def build(
        cls,
        retriever: ChunkEmbedder,
        source: str | Path | Iterable[str],
        path: str | Path,
        *,
        dtype: Dtype = "float32",
        shard_chunks: int = 16384,
        chunk_by: ChunkBy | None = None,
        retriever_path: str | Path | None = None,
    ) -> Index:
        """Cuts a source into chunks, embeds each distinct chunk once, and writes an index.

        If the build is killed at any moment, the same call resumes it and ends with the same bytes. On a finished index, it checks that the
        source is still the same and changes nothing.

        Args:
            retriever: embeds the chunks, of at most its ``data.chunk_tokens`` tokens.
            source: a ``str`` is a text; a ``Path`` is a text file or a folder of .txt and .md files; anything else is ready chunks. See
                :class:`~qrag_jax.retrieve.sources.ChunkStream`.
            path: folder of the index: new, empty, or of an unfinished build.
            dtype: float32 is exact; bfloat16 has half the bytes, int8 a quarter. errors: see :func:`~qrag_jax.retrieve.storage.pack`.
            shard_chunks: chunks per shard. A killed build loses at most one shard.
            chunk_by: how a text is cut (:func:`~qrag_jax.data.text.chunker.chunk_spans`); None: as in training, ``data.chunk_by``.
            retriever_path: written to meta.json, so that later commands find the retriever.

        Raises ValueError on a source that cannot be read, when ``path`` holds something else, and when source, model or settings differ
        from those of the unfinished build; Busy when another process is writing to the folder.
        """
        check_dtype(dtype)
        if shard_chunks < 1:
            raise ValueError(f"shard_chunks = {shard_chunks}: must be 1 or more")
        path, data = Path(path), retriever.config.data
        _check_place(path)
        home = None
        if retriever_path is not None:
            here = Path(retriever_path).expanduser()
            home = str(here.resolve() if here.exists() else retriever_path)  # a URL or a hub name stays as it is
        by = chunk_by or data.chunk_by
        model = IndexModel(model_hash(retriever), data.chunk_tokens, by, home)
        meta = Meta(model, dtype, retriever.embedder.config.width, shard_chunks)
        stream = ChunkStream(source, retriever.tokenizer, data.chunk_tokens, by)
        with only_writer(path):
            whole = (path / META).is_file()
            found = Meta.read(path / (META if whole else JOURNAL)) if _check_place(path) else meta
            if found.shards:
                _check_settings(path, found, meta)
                meta = found
            if whole:
                _unfinished(path, meta)
            return _write(path, replace(meta, kept=0), retriever, stream, whole=whole)

    def add(self, retriever: ChunkEmbedder, source: str | Path | Iterable[str]) -> Index:
        """Adds the chunks of another source (as for :meth:`build`) in new shards, and returns the new index. This object does not change.

        If the addition is killed at any moment, the old index stays valid, and the same call resumes it. Raises ValueError as :meth:`build`
        does, and on a file name that the index has already: a chunk's source would be ambiguous.
        """
        with only_writer(self.path):
            meta = Meta.read(self.path / META)  # another process may have added to it
            _check_model(self.path, meta.model.hash, model_hash(retriever))
            stream = ChunkStream(source, retriever.tokenizer, meta.model.chunk_tokens, meta.model.chunk_by)
            if twice := sorted({name for name, _ in stream.files} & {old.name for old in meta.sources if old.name}):
                raise ValueError(f"{self.path}: has {twice[0]!r} already ({len(twice)} such files); rename the new files, or build again")
            begun = _unfinished(self.path, meta) or replace(meta, kept=len(meta.shards))
            return _write(self.path, begun, retriever, stream)

    def __len__(self) -> int:
        return len(self.rows)

    def chunk(self, i: int) -> Chunk:
        """Text, characters and source of chunk ``i``; reads only this chunk's part of the file. Raises ValueError outside 0..N - 1."""
        if not 0 <= i < len(self):
            raise ValueError(f"chunk {i}: must be in 0..{len(self) - 1}")
        shard, row = self.rows.place(i)
        return shard.chunk(row)

    def check(self, retriever: ChunkEmbedder) -> None:
        """Raises ValueError, naming both models, unless the retriever has the model that embedded this index's chunks."""
        now = (retriever, retriever.params)
        if any(a is not b for a, b in zip(now, self._checked, strict=True)):  # hashing a large model takes seconds
            _check_model(self.path, self.meta.model.hash, model_hash(retriever))
            self._checked = now

    def verify(self) -> None:
        """Reads every file. Raises ValueError, naming the file, when a checksum differs."""
        for shard in progress(self.meta.shards, unit="shard", desc="verifying", leave=False):
            shard.verify()


def _write(path: Path, meta: Meta, retriever: ChunkEmbedder, stream: ChunkStream, *, whole: bool = False) -> Index:
    """Keeps ``meta.shards[:meta.kept]``, then makes a shard from every ``shard_chunks`` chunks of the stream. Shards that ``meta`` lists
    already are compared with the stream; the others are written. With ``whole``, ``meta`` must list all of them."""
    for leftover in path.glob(TEMPORARY):
        if leftover.name not in (LOCK, WRITER):
            leftover.unlink()
    shards = list(meta.shards[: meta.kept])
    known: dict[bytes, int] = {}  # the first row of each text
    for row, text in enumerate(chunk.text for shard in shards for chunk in map(shard.chunk, range(shard.chunks))):
        known.setdefault(_key(text), row)
    chunks, start = iter(stream), sum(shard.chunks for shard in shards)
    with progress(unit="chunk", desc="index") as bar:
        while group := list(islice(chunks, meta.shard_chunks)):
            bar.total = stream.expected
            keys, lines = [_key(chunk.text) for chunk in group], [record(chunk) for chunk in group]
            if len(shards) < len(meta.shards):
                shard = meta.shards[len(shards)]
                if shard.files["texts"].sha256 != hashlib.sha256(b"".join(lines)).hexdigest():
                    raise ValueError(_changed(path, meta, len(shards), whole))
                shard.verify()
                bar.update(len(group))
            elif whole:
                raise ValueError(_changed(path, meta, len(shards), whole))
            else:
                if len(shards) == meta.kept:
                    meta.write(path / JOURNAL)
                old = {i: known[key] for i, key in enumerate(keys) if key in known}
                fresh = {key: chunk.text for key, chunk in zip(keys, group, strict=True) if key not in known}
                place = {key: row for row, key in enumerate(fresh)}
                bar.update(len(group) - len(fresh))
                vectors = np.concatenate([np.empty((0, meta.width), np.float32), *_embed(retriever, list(fresh.values()), bar)])
                new = {i: place[key] for i, key in enumerate(keys) if key in place}
                raw, scales = merge(StoredRows(shards, meta.width), old, vectors, new, len(group), meta.dtype)
                shard = Shard.write(path, len(shards), lines, raw, scales, meta.dtype)
                replace(meta, shards=(*shards, shard)).write(path / JOURNAL)
            for row, key in enumerate(keys, start):
                known.setdefault(key, row)
            shards.append(shard)
            start += len(group)
        bar.total = stream.expected
    if len(shards) < len(meta.shards):
        raise ValueError(_changed(path, meta, len(shards), whole))
    if not whole:
        skipped = Counter(meta.skipped) + Counter(stream.skipped)
        replace(meta, shards=tuple(shards), sources=meta.sources + tuple(stream.read), kept=0, skipped=skipped).write(path / META)
        for notice in notices(stream.read, stream.skipped):
            say(notice)
        (path / JOURNAL).unlink(missing_ok=True)
    return Index.open(path)


def _unfinished(path: Path, meta: Meta) -> Meta | None:
    """The unfinished addition to a complete index, if there is one. Removes a journal that a finished build or addition left behind when
    it was killed."""
    journal = path / JOURNAL
    if not journal.is_file():
        return None
    begun = Meta.read(journal)
    if begun.kept == len(meta.shards) and [shard.tree() for shard in begun.shards[: begun.kept]] == [shard.tree() for shard in meta.shards]:
        return begun
    journal.unlink()
    return None


def _embed(retriever: ChunkEmbedder, texts: list[str], bar: Any) -> Iterator[Float[np.ndarray, "U D"]]:
    for start in range(0, len(texts), PIECE):
        piece = texts[start : start + PIECE]
        vectors = retriever.embed_chunks(piece)
        if not np.isfinite(vectors).all():
            bad = int(np.argmin(np.isfinite(vectors).all(axis=1)))
            raise ValueError(f"the vector of {piece[bad][:60]!r} is not finite: the retriever's parameters are damaged")
        bar.update(len(piece))
        yield vectors


def _key(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def _checksum(tree: Any) -> str:
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()


def _check_place(path: Path) -> bool:
    """Whether the folder holds an index, finished or not. Raises ValueError if it holds something else."""
    if (path / META).is_file() or (path / JOURNAL).is_file():
        return True
    if path.exists() and not (path.is_dir() and all(file.match(TEMPORARY) for file in path.iterdir())):
        raise ValueError(f"{path}: exists and is not an index; choose another folder or remove it")
    return False


def _check_settings(path: Path, found: Meta, meta: Meta) -> None:
    """Raises ValueError unless an index, or an unfinished build, has the model and settings of ``meta``."""
    _check_model(path, found.model.hash, meta.model.hash)
    pairs = [(name, getattr(found, name), getattr(meta, name)) for name in ("dtype", "shard_chunks")]
    pairs += [(name, getattr(found.model, name), getattr(meta.model, name)) for name in ("chunk_by", "chunk_tokens")]
    for name, old, new in pairs:
        if old != new:
            raise ValueError(f"{path}: was begun with {name} = {old}, now {new}; build with {old}, or remove the folder")


def _check_model(path: Path, index: str, retriever: str) -> None:
    if index != retriever:
        raise ValueError(
            f"{path}: was built with model {index[:12]}, but this retriever is model {retriever[:12]}; "
            "vectors of two models cannot be mixed: use the retriever it was built with, or build another index"
        )


def _changed(path: Path, meta: Meta, number: int, whole: bool) -> str:
    first = (number - meta.kept) * meta.shard_chunks
    if whole:
        return f"{path}: holds an index of another source (it differs at chunk {first} or after); use add, or choose another folder"
    remove = path / JOURNAL if meta.kept else path
    return f"{path}: the source has changed since {JOURNAL} was written (at chunk {first} or after); to begin anew, remove {remove}"
