"""Stores that fail, were changed, or are not those of the index: nothing is lost, and one line says what to do."""

from __future__ import annotations

import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qrag_jax.retrieve.index import Index
from qrag_jax.retrieve.retriever import Retriever
from qrag_jax.retrieve.stores import held, places
from qrag_jax.rundir.log import Unreachable
from tests.support.index import CHUNKS, small_retriever
from tests.support.stores import MEMORY, QUESTION, MemoryStore, postgres, same, write_text

pytestmark = pytest.mark.usefixtures("memory")


@pytest.fixture(scope="module")
def retriever() -> Retriever:
    return small_retriever()


@pytest.mark.parametrize("after", [one if one % 3 == 1 else pytest.param(one, marks=pytest.mark.slow) for one in range(12)])
def test_a_build_that_dies_at_any_call_resumes(after: int, retriever: Retriever, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The store fails at its n-th change, before or after it was made; then the same build ends with the same index."""
    left = [after]

    def dying(name: str, late: bool) -> None:
        original = getattr(MemoryStore, name)

        def call(self: MemoryStore, *args: Any) -> None:
            left[0] -= 1
            if left[0] < 0 and not late:
                raise KeyboardInterrupt
            original(self, *args)
            if left[0] < 0:
                raise KeyboardInterrupt

        monkeypatch.setattr(MemoryStore, name, call)

    for name in ("write_record", "put", "keep"):
        dying(name, late=bool(after % 2))
    folder = write_text(tmp_path / "text")
    build = lambda: Index.build(retriever, folder, tmp_path / "index", shard_chunks=8, store=MEMORY)
    with suppress(KeyboardInterrupt):
        build()
        build().remove(["b.txt"])
    assert left[0] < 0, "it was killed"
    left[0] = 10**6
    index = Index.open(tmp_path / "index") if (tmp_path / "index" / "meta.json").is_file() else build()
    both = [Index.build(retriever, folder, tmp_path / "files", shard_chunks=8), index.sync(retriever, folder).sync(retriever, folder)]
    same(retriever, both)
    (table,) = MemoryStore.kept.values()
    assert len(table["rows"]) == len(both[0]), "and nothing is left of what was killed"


def test_a_copy_that_was_left_behind_is_refused(retriever: Retriever, tmp_path: Path) -> None:
    folder = write_text(tmp_path / "text")
    index = Index.build(retriever, folder, tmp_path / "index", shard_chunks=8, store=MEMORY)
    shutil.copytree(index.path, tmp_path / "copy")
    index.remove(["b.txt"])
    copy = Index.open(tmp_path / "copy")  # its vectors are still there
    with pytest.raises(ValueError, match="changed through another copy of this folder"):
        copy.remove(["c.TXT"])
    Index.open(index.path).remove(["c.TXT"])
    with pytest.raises(ValueError, match=r"does not have the vectors of .* shards"):
        Index.open(tmp_path / "copy")


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (None, "is not there"),
        ("{", "its record .* is damaged"),
        ('{"format": "other"}', "is not of the format"),
        ("other index", "holds the vectors of qrag_ffffffffffffffff"),
    ],
)
def test_a_store_of_something_else_is_refused(record: str | None, message: str, retriever: Retriever, tmp_path: Path) -> None:
    index = Index.build(retriever, CHUNKS[:8], tmp_path / "index", store=MEMORY)
    (at,) = MemoryStore.kept.values()
    at["record"] = at["record"].replace(index.meta.store.ref.name, "qrag_" + "f" * 16) if record == "other index" else record
    with pytest.raises(ValueError, match=message):
        Index.open(index.path)


def test_vectors_that_were_altered_or_lost_are_found(retriever: Retriever, tmp_path: Path) -> None:
    index = Index.build(retriever, CHUNKS[:8], tmp_path / "index", store=MEMORY)
    (at,) = MemoryStore.kept.values()
    at["rows"][3] = at["rows"][3] + 1
    with pytest.raises(ValueError, match="the vectors of shard 0 are not those that were written"):
        Index.open(index.path, verify=True)
    del at["rows"][3]
    with pytest.raises(ValueError, match="has 7 of 8 vectors of shard 0"):
        index.verify()


def test_another_store_than_that_of_the_index_is_refused(retriever: Retriever, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build = lambda **more: Index.build(retriever, CHUNKS[:20], tmp_path / "index", shard_chunks=8, **more)
    with pytest.raises(ValueError, match="dtype = 'int8': must be float32 with a store"):
        build(store=MEMORY, dtype="int8")
    monkeypatch.setattr(held.HeldVectors, "announce", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        build(store=MEMORY)
    for other in ({}, {"store": "memory:/elsewhere"}):
        with pytest.raises(ValueError, match="was begun with --store memory:/nowhere; resume it so"):
            build(**other)
    monkeypatch.undo()
    monkeypatch.setitem(places.STORES, "memory", MemoryStore)
    build(store=MEMORY)
    with pytest.raises(ValueError, match="has its vectors in memory:/nowhere, not in the folder; give --store memory:/nowhere"):
        build()


@pytest.mark.slow
def test_a_qdrant_server_that_is_not_there_is_said(monkeypatch: pytest.MonkeyPatch, retriever: Retriever, tmp_path: Path) -> None:
    pytest.importorskip("qdrant_client")
    with pytest.raises(Unreachable, match=r"collection qrag_.* of qdrant:http://127.0.0.1:9: cannot be reached"):
        Index.build(retriever, CHUNKS[:8], tmp_path / "index", store="qdrant:http://127.0.0.1:9")


@pytest.mark.slow
def test_a_postgres_that_is_killed_in_a_build_and_in_a_search(
    retriever: Retriever, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A build and a search say so in one line. When the server is back, the build resumes and the open index goes on."""
    store = pytest.importorskip("qrag_jax.retrieve.stores.postgres")
    folder = write_text(tmp_path / "text")
    build = lambda: Index.build(retriever, folder, tmp_path / "index", shard_chunks=4, store=server.url)
    with postgres() as server:
        original, sent = store.Vector, []

        def dying(vector: np.ndarray) -> Any:
            sent.append(vector)
            if len(sent) == 11:  # within the third shard
                server.kill()
            return original(vector)

        monkeypatch.setattr(store, "Vector", dying)
        with pytest.raises(Unreachable, match=r"table qrag_.* cannot be reached"):
            build()
        monkeypatch.undo()
        with pytest.raises(Unreachable, match="cannot be reached"):
            build()
        server.start()
        index = build()
        plain = Index.build(retriever, folder, tmp_path / "plain", shard_chunks=4)
        same(retriever, [plain, index])
        found = retriever.stream(QUESTION, index, 4)
        first = next(found)
        server.kill()
        with pytest.raises(Unreachable, match="cannot be reached"):
            next(found)
        server.start()
        assert [pick.chunk for pick in retriever.search(QUESTION, index, 4)] == sorted({first.pick.chunk} | set(picks_of(retriever, plain)))
        server.kill()
        with pytest.raises(Unreachable, match="cannot be reached"):
            index.remove(["b.txt"])
        server.start()
        both = [one.remove(["b.txt"]) for one in (plain, index)]
        same(retriever, [Index.open(one.path, verify=True) for one in both])


def picks_of(retriever: Retriever, index: Index) -> list[int]:
    return [pick.chunk for pick in retriever.search(QUESTION, index, 4)]


def test_duckdb_is_written_by_one_process_at_a_time(tmp_path: Path, retriever: Retriever, monkeypatch: pytest.MonkeyPatch) -> None:
    duck = pytest.importorskip("qrag_jax.retrieve.stores.duck")

    def locked(*_: object, **__: object) -> None:
        raise duck.duckdb.IOException('IO Error: Could not set lock on file "x": Conflicting lock is held in /usr/bin/python (PID 1)')

    monkeypatch.setattr(duck.duckdb, "connect", locked)
    with pytest.raises(Unreachable, match="another process has the file open"):
        Index.build(retriever, CHUNKS[:8], tmp_path / "index", store=f"duckdb:{tmp_path / 'x.db'}")
