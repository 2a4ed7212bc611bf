"""The vectors of an index that lie in a vector database: whose they are, which of them are whole, and which may be removed.

The folder of the index keeps everything else. Chunk i of shard n is row ``n * shard_chunks + i`` of the store; numbers of shards are never
used twice, so a change adds rows and never overwrites one that a reader may ask for. The store's record names the index, its shards with
the SHA-256 of their vectors, and the state of the folder that it belongs to. The state of a change is noted before meta.json is replaced,
and again afterwards. So a change that is killed at any moment leaves a folder and a store that know each other.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import threading
import weakref
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property

import numpy as np
from jaxtyping import Float

from qrag_jax.config.parse import decode
from qrag_jax.config.trees import parse_json
from qrag_jax.retrieve.stores.places import checked_place, open_store
from qrag_jax.retrieve.stores.protocol import Best, Query, Span, VectorStore

FORMAT = "qrag-jax-store 1"
AGAIN = "build the index again in another folder"


@dataclass(frozen=True)
class StoreRef:
    """A store as meta.json names it: a :func:`~qrag_jax.retrieve.stores.places.checked_place`, and the name of the index there."""

    place: str
    name: str

    @classmethod
    def new(cls, place: str) -> StoreRef:
        """Raises ValueError as :func:`~qrag_jax.retrieve.stores.places.checked_place` does."""
        return cls(checked_place(place), f"qrag_{secrets.token_hex(8)}")


@dataclass(frozen=True)
class HeldShard:
    """The vectors of shard ``number``: how many, and the hex SHA-256 of their bytes as little-endian float32."""

    number: int
    chunks: int
    sha256: str


@dataclass(frozen=True)
class _Record:
    """``state``: the checksum of the meta.json that the store belongs to; ``coming``: that of the one that a change is about to write."""

    index: str
    width: int
    state: str = ""
    coming: str = ""
    shards: Mapping[int, HeldShard] = field(default_factory=dict)

    def text(self) -> str:
        shards = [asdict(self.shards[number]) for number in sorted(self.shards)]
        return json.dumps({"format": FORMAT, **asdict(replace(self, shards={})), "shards": shards})

    @classmethod
    def of(cls, text: str) -> _Record:
        """Raises ValueError on anything that :meth:`text` did not write."""
        tree = parse_json(text.encode())
        if not isinstance(tree, dict) or tree.pop("format", None) != FORMAT or not isinstance(tree.get("shards"), list):
            raise ValueError(f"is not of the format {FORMAT!r}")
        shards = [decode(HeldShard, one, "shard") for one in tree.pop("shards")]
        fields = {name: (int if name == "width" else str) for name in ("index", "width", "state", "coming")}
        if set(tree) != set(fields) or not all(type(tree[name]) is kind for name, kind in fields.items()):
            raise ValueError("has other fields than this qrag-jax writes")
        return cls(**tree, shards={shard.number: shard for shard in shards})


class _Opened:
    """A store that is open in this process, closed when nobody has it any more. All who use it share it: some databases can be opened only
    once."""

    def __init__(self, store: VectorStore) -> None:
        self.store, self.lock = store, threading.RLock()
        weakref.finalize(self, store.close)


_open: weakref.WeakValueDictionary[tuple[StoreRef, int], _Opened] = weakref.WeakValueDictionary()
_opening = threading.Lock()


def _opened(ref: StoreRef, width: int) -> _Opened:
    with _opening:
        found = _open.get((ref, width))
        if found is None:
            found = _open[ref, width] = _Opened(open_store(ref.place, ref.name, width))
        return found


class HeldVectors:
    """The vectors of one index in a store, which is opened when it is first needed. Threads may share it."""

    def __init__(self, ref: StoreRef, width: int, shard_chunks: int) -> None:
        self.ref, self.width, self.shard_chunks = ref, width, shard_chunks
        self._whole: dict[int, np.ndarray] = {}  # the vectors of the shard that was read last
        self._checked: tuple[str, tuple[HeldShard, ...]] | None = None

    @cached_property
    def _store(self) -> VectorStore:
        return self._opened.store

    @cached_property
    def _opened(self) -> _Opened:
        return _opened(self.ref, self.width)

    @property
    def _lock(self) -> threading.RLock:
        return self._opened.lock

    @property
    def shown(self) -> str:
        return self._store.shown

    def check(self, shards: Sequence[HeldShard]) -> None:
        """Raises ValueError unless the store has these shards of this index, whole."""
        with self._lock:
            text = self._store.read_record()
            wanted = tuple(shards)
            if text is not None and self._checked == (text, wanted):
                return
            record = self._record(text)
            if gone := [shard for shard in wanted if record.shards.get(shard.number) != shard]:
                raise ValueError(
                    f"{self.shown}: does not have the vectors of {len(gone):,} of {len(wanted):,} shards of this index; it was changed "
                    f"after this state of the index was opened or copied. Open the newest state; if there is none, {AGAIN}"
                )
            self._checked = (text or "", wanted)

    def begin(self, state: str) -> None:
        """Before a change of the index whose meta.json has the checksum ``state`` (empty: it is new). Raises ValueError when the store
        belongs to another state of the index: it was changed through a copy of the folder, or the folder is an older copy."""
        with self._lock:
            text = self._store.read_record()
            record = _Record(self.ref.name, self.width) if text is None and not state else self._record(text)
            if state not in (record.state, record.coming):
                raise ValueError(
                    f"{self.shown}: belongs to another state of this index, so it was changed through another copy of this folder; "
                    f"use that copy, or {AGAIN}"
                )

    def put(self, number: int, vectors: Float[np.ndarray, "R D"]) -> HeldShard:
        """Stores the vectors of a shard, replacing what a killed change has left under this number."""
        raw = np.ascontiguousarray(vectors, "<f4")
        shard = HeldShard(number, len(raw), hashlib.sha256(raw.tobytes()).hexdigest())
        start = number * self.shard_chunks
        with self._lock:
            text = self._store.read_record()
            record = _Record(self.ref.name, self.width) if text is None else self._record(text)
            if text is None or number in record.shards:
                record = replace(record, shards={n: one for n, one in record.shards.items() if n != number})
                self._store.write_record(record.text())
            self._store.put(start, start + self.shard_chunks, raw)
            self._store.write_record(replace(record, shards={**record.shards, number: shard}).text())
        return shard

    def announce(self, state: str) -> None:
        """Before meta.json is replaced by one with the checksum ``state``."""
        with self._lock:
            self._store.write_record(replace(self._record(self._store.read_record()), coming=state).text())

    def commit(self, state: str, shards: Sequence[HeldShard], before: Iterable[int] = ()) -> None:
        """After meta.json was replaced: the store belongs to ``state``, which has ``shards``. All other rows are removed but those of the
        shards ``before``, which readers of the state before may still ask for."""
        with self._lock:
            record = self._record(self._store.read_record())
            stay = {shard.number: shard for shard in shards}
            kept = {n: shard for n, shard in record.shards.items() if n in before} | stay
            self._store.write_record(_Record(record.index, record.width, state, "", kept).text())
            self._store.keep([self._rows(number) for number in sorted(kept)])

    def read(self, shard: HeldShard, start: int, end: int) -> Float[np.ndarray, "R D"]:
        """Vectors ``start`` to ``end`` of a shard. Raises ValueError when the store does not have all of them."""
        first = shard.number * self.shard_chunks
        with self._lock:
            found = self._store.read(first + start, first + end)
        if found.shape != (end - start, self.width):
            raise ValueError(f"{self.shown}: has {len(found):,} of {end - start:,} vectors of shard {shard.number}; {AGAIN}")
        return found

    def whole(self, shard: HeldShard) -> Float[np.ndarray, "R D"]:
        """All vectors of a shard; those of the latest one are kept in memory."""
        with self._lock:
            if shard.number not in self._whole:
                self._whole = {shard.number: self.read(shard, 0, shard.chunks)}
            return self._whole[shard.number]

    def verify(self, shard: HeldShard) -> None:
        """Raises ValueError when the vectors of a shard are not those that were written."""
        found = hashlib.sha256(np.ascontiguousarray(self.read(shard, 0, shard.chunks), "<f4").tobytes()).hexdigest()
        if found != shard.sha256:
            raise ValueError(f"{self.shown}: the vectors of shard {shard.number} are not those that were written; {AGAIN}")

    def best(self, queries: Sequence[Query], count: int) -> list[Best]:
        with self._lock:
            return self._store.best(queries, count)

    def _rows(self, number: int) -> Span:
        return number * self.shard_chunks, (number + 1) * self.shard_chunks

    def _record(self, text: str | None) -> _Record:
        if text is None:
            raise ValueError(f"{self.shown}: is not there; the index has its vectors only there: restore it, or {AGAIN}")
        try:
            record = _Record.of(text)
        except (ValueError, TypeError) as error:
            raise ValueError(f"{self.shown}: its record {error}; it is damaged, or comes from a newer version: {AGAIN}") from error
        if (record.index, record.width) != (self.ref.name, self.width):
            raise ValueError(
                f"{self.shown}: holds the vectors of {record.index}, {record.width} wide; this index has those of {self.ref.name}, "
                f"{self.width} wide; {AGAIN}"
            )
        return record
