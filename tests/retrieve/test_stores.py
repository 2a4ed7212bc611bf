"""An index whose vectors lie in a vector database does what one in a folder does, over every database that is installed."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qrag_jax.__main__ import main
from qrag_jax.config import QHeadConfig
from qrag_jax.retrieve.index import Index
from qrag_jax.retrieve.retriever import Retriever
from qrag_jax.retrieve.stores.places import checked_place, open_store
from qrag_jax.retrieve.stores.protocol import Query
from tests.support.index import CHUNKS, small_retriever, write_small_export
from tests.support.small import changed
from tests.support.stores import MEMORY, QUESTION, MemoryStore, postgres, same, write_text

NAME = "qrag_0123456789abcdef"
PACKAGES = {"memory": "numpy", "lancedb": "lancedb", "duckdb": "duckdb", "qdrant": "qdrant_edge", "postgresql": "psycopg"}
KINDS = [pytest.param(kind, marks=pytest.mark.slow if kind == "postgresql" else ()) for kind in PACKAGES]
POSITIONS = ["relative", pytest.param("none", marks=pytest.mark.slow)]
pytestmark = pytest.mark.usefixtures("memory")


@pytest.fixture(scope="module")
def retriever() -> Retriever:
    return small_retriever()


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with postgres() as started:
        yield started.url


@pytest.fixture
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A place for the store of ``request.param``."""
    pytest.importorskip(PACKAGES[request.param])
    return request.getfixturevalue("server") if request.param == "postgresql" else f"{request.param}:{tmp_path / 'store' / 'vectors'}"


every_store = pytest.mark.parametrize("place", KINDS, indirect=True)


@every_store
def test_a_store_keeps_rows_and_finds_the_best(place: str) -> None:
    check_store(place)


def check_store(place: str) -> None:
    width, block = 16, 1024
    draw = np.random.default_rng(0)
    vectors = draw.standard_normal((block + 100, width)).astype(np.float32)
    store = open_store(checked_place(place), NAME, width)
    assert store.read_record() is None
    store.write_record("one")
    store.put(0, block, vectors[:block])
    store.put(block, 2 * block, draw.standard_normal((300, width)).astype(np.float32))  # of a build that was killed
    store.put(block, 2 * block, vectors[block:])
    store.write_record("two")
    store.close()  # it opens again
    assert store.read_record() == "two"
    np.testing.assert_array_equal(store.read(0, 2 * block), vectors)
    np.testing.assert_array_equal(store.read(7, 9), vectors[7:9])
    vectors[500] = vectors[20]  # of equal rows, the first
    store.put(0, block, vectors[:block])
    many = np.arange(0, block, 3)
    ranges = [[[0, 1124]], [[10, 30], [400, 700], [1100, 1124]], [[1123, 1124]], np.stack([many, many + 1], 1), [[15, 25], [495, 505]]]
    queries = [Query(draw.standard_normal(width).astype(np.float32), np.array(one)) for one in ranges]
    queries[-1] = Query(vectors[20] * 9, queries[-1].ranges)
    for query, best in zip(queries, store.best(queries, 5), strict=True):
        rows = np.concatenate([np.arange(*one) for one in query.ranges])
        scores = vectors[rows] @ query.vector
        order = np.lexsort((rows, -scores))[:5]
        assert best.rows.tolist() == rows[order].tolist()
        np.testing.assert_allclose(best.scores, scores[order], rtol=1e-5, atol=1e-6)
    store.keep([(0, 10), (20, 30), (30, 40), (block, 2 * block)])
    np.testing.assert_array_equal(store.read(0, 2 * block), vectors[[*range(10), *range(20, 40), *range(block, block + 100)]])
    store.close()


@every_store
def test_a_table_is_searched_while_another_of_the_same_place_is_written(place: str) -> None:
    draw, block = np.random.default_rng(0), 1024
    vectors = draw.standard_normal((block, 16)).astype(np.float32)
    read, written = (open_store(checked_place(place), name, 16) for name in ("qrag_0000000000000001", "qrag_0000000000000002"))
    read.write_record("one")
    read.put(0, block, vectors)
    read.keep([(0, block)])
    query = Query(vectors[3], np.array([[0, block]]))
    best = lambda: [one.rows.tolist() for one in read.best([query], 5)]
    expected, done = best(), threading.Event()

    def search() -> int:
        count = 0
        while not done.is_set() or not count:
            assert best() == expected
            count += 1
        return count

    with ThreadPoolExecutor(2) as pool:
        searching = [pool.submit(search) for _ in range(2)]
        try:
            written.write_record("two")
            for start in range(0, 8 * block, block):
                written.put(start, start + block, vectors)
            written.keep([(0, 8 * block)])
        finally:
            done.set()
        assert all(one.result() for one in searching)
    assert best() == expected
    assert len(written.read(0, 8 * block)) == 8 * block
    read.close()
    written.close()


def test_another_process_may_write_a_duckdb_file_whose_indexes_were_dropped(tmp_path: Path) -> None:
    duckdb = pytest.importorskip("duckdb")
    store = open_store(f"duckdb:{tmp_path / 'v.db'}", NAME, 16)
    store.write_record("one")
    assert store.read_record() == "one"
    write = [sys.executable, "-c", f"import duckdb; duckdb.connect({str(tmp_path / 'v.db')!r})"]
    held = subprocess.run(write, capture_output=True, text=True)
    assert "Conflicting lock" in held.stderr
    del store
    gc.collect()
    subprocess.run(write, check=True)
    duckdb.connect(str(tmp_path / "v.db")).close()


@every_store
@pytest.mark.parametrize("positions", POSITIONS)
def test_an_index_in_a_store_is_the_index_in_a_folder(
    positions: str, place: str, retriever: Retriever, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Build, ask, add, sync, remove: the same chunks, picks and values after each."""
    monkeypatch.setattr(retriever, "config", changed(retriever.config, qhead={"positions": positions}))
    folder = write_text(tmp_path / "text")
    build: Callable[..., Index] = lambda name, **more: Index.build(retriever, folder, tmp_path / name, shard_chunks=8, **more)
    both = [build("folder"), build("store", store=place)]
    assert not list((tmp_path / "store").glob("vectors-*")), "they are in the store only"
    same(retriever, both)
    both = [Index.open(index.path, verify=True) for index in both]
    same(retriever, both)
    more = write_more(tmp_path / "more")
    both = [index.add(retriever, more) for index in both]
    same(retriever, both)
    (folder / "b.txt").write_text("Sandra went to the hallway.")
    (folder / "c.TXT").unlink()
    write_more(folder)
    both = [index.sync(retriever, folder) for index in both]
    assert str(both[0].changes) == str(both[1].changes)
    same(retriever, both)
    both = [index.remove(["b.txt"]) for index in both]
    same(retriever, both)
    assert build_again(both[1], retriever) == "is an index of another source"
    same(retriever, [Index.open(index.path, verify=True) for index in both])


def write_more(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "new.md").write_text(" ".join(CHUNKS[:12]))
    return folder


def build_again(index: Index, retriever: Retriever) -> str:
    try:
        Index.build(retriever, CHUNKS, index.path, shard_chunks=8, store=index.meta.store and index.meta.store.ref.place)
    except ValueError as error:
        return "is an index of another source" if "holds an index of another source" in str(error) else str(error)
    return "built"


def test_a_reader_keeps_its_state_through_one_change(retriever: Retriever, tmp_path: Path) -> None:
    index = Index.build(retriever, write_text(tmp_path / "text"), tmp_path / "index", shard_chunks=8, store=MEMORY)
    before = retriever.search(QUESTION, index, 3)
    newer = index.remove(["b.txt"])
    assert retriever.search(QUESTION, index, 3) == before
    newest = newer.remove(["c.TXT"])
    with pytest.raises(ValueError, match="Open the newest state"):
        retriever.search(QUESTION, index, 3)
    assert len(MemoryStore.kept[index.meta.store.ref.place.partition(":")[2], index.meta.store.ref.name]["rows"]) >= len(newest)
    again = newest.sync(retriever, tmp_path / "text").sync(retriever, tmp_path / "text")
    rows = MemoryStore.kept["/nowhere", again.meta.store.ref.name]["rows"]
    assert len(rows) == len(again), "a change that changes nothing removes what is left of earlier states"


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("mongodb://host/db", "known: postgresql"),
        ("duckdb", "must be postgresql://HOST"),
        ("duckdb:", "must be postgresql://HOST"),
        ("postgresql:host", "must be postgresql://HOST"),
        ("postgresql://me:secret@host/db", "PGPASSWORD"),
        ("postgresql://me@host/db?password=secret", "PGPASSWORD"),
        ("postgres://me@host/db?sslpassword=secret", "PGPASSWORD"),
        ("qdrant:http://key:secret@host:6333", "QDRANT_API_KEY"),
        ("qdrant:https://host:6333?api_key=secret", "QDRANT_API_KEY"),
        ("lancedb:s3://key:secret@bucket", "environment"),
    ],
)
def test_places_that_cannot_be_are_refused(place: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        checked_place(place)
    assert "secret" not in str(error.value)


def test_places_are_recorded_as_they_are_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert checked_place("duckdb:a/b.db") == f"duckdb:{tmp_path}/a/b.db"
    assert checked_place("lancedb:s3://bucket/path") == "lancedb:s3://bucket/path"
    assert checked_place("postgres://me@host:5433/db") == "postgresql://me@host:5433/db"
    assert checked_place("qdrant:http://host:6333") == "qdrant:http://host:6333"


def test_continuous_positions_are_refused_before_anything_is_embedded(
    retriever: Retriever, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = changed(retriever.config, qhead={"position_resolution": "continuous"})
    assert isinstance(config.qhead, QHeadConfig)
    monkeypatch.setattr(retriever, "config", config)
    with pytest.raises(ValueError, match="continuous positions"):
        Index.build(retriever, CHUNKS[:8], tmp_path / "index", store=MEMORY)
    assert not (tmp_path / "index").exists()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Local mode performs exact")
def test_the_client_of_a_qdrant_server_does_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """The calls of a server, answered by the client's own model of one."""
    qdrant = pytest.importorskip("qrag_jax.retrieve.stores.qdrant")
    client = qdrant.QdrantClient(":memory:")
    monkeypatch.setattr(qdrant.QdrantServer, "_connect", lambda self: client)
    monkeypatch.setattr(client, "close", lambda: None)
    monkeypatch.setattr(client, "create_payload_index", lambda *_, **__: None)  # which says that it has no effect in memory
    check_store("qdrant:http://host:6333")


@pytest.mark.slow
def test_postgres_takes_no_approximate_index(server: str) -> None:
    """An administrator's HNSW index on the table, which would give other rows, is not used."""
    pytest.importorskip("psycopg")
    draw = np.random.default_rng(0)
    vectors = draw.standard_normal((3000, 32)).astype(np.float32)
    store: Any = open_store(checked_place(server), "qrag_00000000000000aa", 32)
    store.write_record("one")
    store.put(0, 4096, vectors)
    connection = store._connection()
    connection.execute("CREATE INDEX ON qrag_00000000000000aa USING hnsw (embedding vector_ip_ops) WITH (m = 2, ef_construction = 4)")
    connection.execute("SET hnsw.ef_search = 1")
    for _ in range(20):
        vector = draw.standard_normal(32).astype(np.float32)
        (best,) = store.best([Query(vector, np.array([[0, 3000]]))], 3)
        assert best.rows.tolist() == np.argsort(-(vectors @ vector))[:3].tolist()
    store.close()


def test_the_commands_take_a_store(tmp_path: Path) -> None:
    """What a user types: build, info, ask, sync, remove."""
    pytest.importorskip("duckdb")
    export, text, index = write_small_export(tmp_path / "export"), write_text(tmp_path / "text"), tmp_path / "index"
    said: list[str] = []
    run = lambda *words: main([*map(str, words)], said.append)
    assert run("index", "build", text, index, "--retriever", export, "--store", f"duckdb:{tmp_path / 'v.db'}") == 0
    assert json.loads((index / "meta.json").read_text())["version"] == 6
    assert run("index", "info", index, "--verify") == 0
    assert any(f"of duckdb:{tmp_path / 'v.db'}" in line for line in said)
    assert run("ask", index, QUESTION, "--budget", 2, "--filter", "source=a/*") == 0
    assert run("index", "remove", index, "b.txt") == 0
    assert run("index", "sync", text, index) == 0
    assert run("index", "build", text, tmp_path / "other", "--retriever", export, "--store", "postgresql://a:b@h/d") == 64
