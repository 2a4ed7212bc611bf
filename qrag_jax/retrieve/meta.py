"""meta.json of an index: its model, settings, shards and documents."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, Literal, get_args

from qrag_jax.config.parse import LARGEST, decode, require
from qrag_jax.data.text.chunker import ChunkBy
from qrag_jax.retrieve.records import SourceRecord
from qrag_jax.retrieve.storage import Dtype, Shard, check_dtype
from qrag_jax.retrieve.stores.held import HeldShard, HeldVectors, StoreRef
from qrag_jax.retrieve.stores.places import checked_place
from qrag_jax.rundir.files import read_json, write_json

FORMAT, VERSION = "qrag-jax-index", 6
READABLE = (1, 2, 3, 4, 5, 6)
"""1 does not say what it skipped and how many tokens it has. 1 and 2 have no digests, no metadata and no keys of texts. 1 to 3 do not say
where positions restart: they run through the whole index. 1 to 4 do not say which files could not be read. 6 has dtype int8-exact, or its
vectors in a store."""
USUAL = 5
"""The version that is written for other indexes, so that earlier releases read them."""
META, JOURNAL = "meta.json", "building.json"
FOLDER = "the folder"
Positions = Literal["index", "document"]
"""Positions run through the whole index, or restart with each document."""
AGAIN = "build the index again in another folder"


@dataclass(frozen=True)
class IndexModel:
    """The model that embedded the chunks: its :func:`~qrag_jax.retrieve.embed.model_hash`, and the folder of its retriever, if known."""

    hash: str
    chunk_tokens: int
    chunk_by: ChunkBy
    retriever: str | None


@dataclass(frozen=True)
class Meta:
    """The content of meta.json and building.json.

    ``shards`` in order, and the documents whose chunks they hold, in the same order. ``skipped``: how many files of each suffix were not
    read. ``unread``: the other files that could not be read, or not whole, and why. ``written``: the number of the next shard; it grows
    with every change, so no name of a file is used twice. ``positions``: where the positions of a search restart. ``store``: where the
    vectors are, if they are not in the folder.
    """

    model: IndexModel
    dtype: Dtype
    width: int
    shard_chunks: int
    shards: tuple[Shard, ...] = ()
    sources: tuple[SourceRecord, ...] = ()
    skipped: Mapping[str, int] = field(default_factory=dict)
    written: int = 0
    positions: Positions = "index"
    unread: Mapping[str, str] = field(default_factory=dict)
    store: HeldVectors | None = None

    @property
    def place(self) -> str:
        """Where the vectors are: the place of the store, or :data:`FOLDER`."""
        return FOLDER if self.store is None else self.store.ref.place

    @property
    def held(self) -> list[HeldShard]:
        """The shards whose vectors are in the store."""
        return [shard.held for shard in self.shards if shard.held is not None]

    @property
    def starts(self) -> tuple[int, ...]:
        """The first chunk of each of ``sources``, and at the end the number of chunks."""
        return tuple(accumulate((record.chunks for record in self.sources), initial=0))

    @property
    def restarts(self) -> tuple[int, ...]:
        """The chunks at which positions restart. Consecutive records with the same name are parts of one document."""
        if self.positions == "index":
            return (0,)
        names = [None, *(record.name for record in self.sources)]
        parts = zip(self.sources, self.starts, pairwise(names), strict=False)
        found = [start for record, start, (before, name) in parts if record.chunks and (name is None or name != before)]
        return tuple(found)

    @property
    def checksum(self) -> str:
        """Hex SHA-256 of its content."""
        return checksum(self._tree())

    def write(self, path: Path) -> None:
        tree = self._tree()
        write_json(path, tree | {"sha256": checksum(tree)})

    def _tree(self) -> dict[str, Any]:
        usual = self.store is None and self.dtype != "int8-exact"
        tree: dict[str, Any] = {"format": FORMAT, "version": USUAL if usual else VERSION}
        tree |= {} if usual else {"store": None if self.store is None else dataclasses.asdict(self.store.ref)}
        tree |= {"model": dataclasses.asdict(self.model), "dtype": self.dtype, "width": self.width}
        tree |= {"shard_chunks": self.shard_chunks, "positions": self.positions, "written": self.written}
        tree |= {"chunks": sum(shard.chunks for shard in self.shards)}
        tree |= {"shards": [shard.tree() for shard in self.shards], "sources": [source.tree() for source in self.sources]}
        return tree | {"skipped": dict(sorted(self.skipped.items())), "unread": dict(sorted(self.unread.items()))}

    @classmethod
    def read(cls, path: Path) -> Meta:
        """Raises ValueError, naming the file, on anything that :meth:`write` did not write, and on files that are missing or cut short."""
        tree = read_json(path)
        if not isinstance(tree, dict) or tree.get("format") != FORMAT:
            raise ValueError(f"{path}: is not of the format {FORMAT!r}")
        version = tree.get("version")
        if version not in READABLE:
            raise ValueError(
                f"{path}: version = {version!r}; this qrag-jax reads versions {READABLE[0]} to {VERSION}: update it, or {AGAIN}"
            )
        if checksum({name: value for name, value in tree.items() if name != "sha256"}) != tree.get("sha256"):
            raise ValueError(f"{path}: its SHA-256 differs from the one it was written with; it is damaged: {AGAIN}")
        for name, since, valid, allowed in _FIELDS:
            if version >= since and (name not in tree or not valid(tree[name])):
                raise ValueError(f"{path}: {name} = {str(tree.get(name))[:60]!r}: must be {allowed}; {AGAIN}")
        check_dtype(tree["dtype"])
        try:
            store = _store(tree) if version >= 6 and tree["store"] is not None else None
            place = (tree["width"], tree["dtype"], store)
            shards = tuple(Shard.from_tree(path.parent, shard, i, *place) for i, shard in enumerate(tree["shards"]))
            model = decode(IndexModel, tree["model"], "model")
            sources = tuple(map(SourceRecord.from_tree, tree["sources"]))
        except (ValueError, TypeError) as error:  # TypeError: a field is missing
            raise ValueError(str(error) if str(path.parent) in str(error) else f"{path}: {error}") from error
        chunks = sum(shard.chunks for shard in shards)
        if path.name == META and sum(source.chunks for source in sources) != chunks:
            raise ValueError(f"{path}: its sources do not have the {chunks} chunks of its shards; it is damaged: {AGAIN}")
        settings = (tree["dtype"], tree["width"], tree["shard_chunks"])
        written = max([tree.get("written", 0), *(shard.number + 1 for shard in shards)])
        said = (tree.get("positions", "index"), tree.get("unread", {}))
        return cls(model, *settings, shards, sources, tree.get("skipped", {}), written, *said, store)


def stamp(path: Path) -> tuple[int, int, int] | None:
    """What differs between the index in a folder and the one that a change makes of it; None if there is none."""
    try:
        found = (path / META).stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


def checksum(tree: Any) -> str:
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()


def _store(tree: Mapping[str, Any]) -> HeldVectors:
    """Raises ValueError when the place of the vectors is not one that this version can open."""
    ref = decode(StoreRef, tree["store"], "store")
    checked_place(ref.place)
    if not re.fullmatch(r"qrag_[0-9a-f]{16}", ref.name) or tree["dtype"] != "float32":
        raise ValueError(f"store = {ref.name!r} of {tree['dtype']}: must be a name and a type that this package has written")
    return HeldVectors(ref, tree["width"], tree["shard_chunks"])


def check_positions(value: str) -> None:
    require(value in get_args(Positions), "positions", value, " or ".join(get_args(Positions)))


def _whole(value: Any, least: int) -> bool:
    return type(value) is int and least <= value <= LARGEST


_FIELDS: tuple[tuple[str, int, Callable[[Any], bool], str], ...] = (
    ("dtype", 1, lambda value: isinstance(value, str), "a name"),
    ("width", 1, lambda value: _whole(value, 1), "a whole number above 0"),
    ("shard_chunks", 1, lambda value: _whole(value, 1), "a whole number above 0"),
    ("shards", 1, lambda value: isinstance(value, list), "a list"),
    ("sources", 1, lambda value: isinstance(value, list), "a list"),
    ("model", 1, lambda value: isinstance(value, dict), "an object"),
    ("skipped", 2, lambda value: isinstance(value, dict) and all(_whole(count, 1) for count in value.values()), "counts of files by kind"),
    ("positions", 4, lambda value: value in get_args(Positions), " or ".join(get_args(Positions))),
    (
        "unread",
        5,
        lambda value: isinstance(value, dict) and all(isinstance(why, str) for why in value.values()),
        "reasons of files by name",
    ),
    ("store", 6, lambda value: value is None or isinstance(value, dict), "a place and a name, or null"),
    ("written", 3, lambda value: _whole(value, 0), "a whole number"),
)
"""The fields of meta.json that its checksum does not prove: field, the version it came with, whether a value is valid, what is."""
