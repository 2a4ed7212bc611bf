"""DuckDB: the vectors of an index in one file, or of several in tables of one. Many processes may read the file, or one may read and write.

All queries of a step are scored in one pass over the rows: with ``array_inner_product``, each would be a statement, which takes longer.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar
from weakref import WeakValueDictionary

import duckdb
import numpy as np
import pyarrow as pa
from jaxtyping import Float

from qrag_jax.retrieve.stores.protocol import Best, Query, Span
from qrag_jax.retrieve.stores.scoring import BATCH, Rows, arrow_column, arrow_rows, best_of, in_order, span_of
from qrag_jax.rundir.log import CannotWrite, Unreachable

T = TypeVar("T")


class _File:
    """This process's connection to a file. DuckDB allows one mode in a process: to write, one that only reads is closed first."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._changed = threading.Condition()
        self._open: duckdb.DuckDBPyConnection | None = None
        self._writes = False
        self._used = 0
        self._closing = False

    @contextmanager
    def connected(self, writes: bool) -> Iterator[duckdb.DuckDBPyConnection]:
        with self._changed:
            self._changed.wait_for(lambda: not self._closing)
            if writes and not self._writes:
                self._close()
            if self._open is None:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                self._open, self._writes = duckdb.connect(str(self._path), read_only=not writes), writes
            self._used += 1
            cursor = self._open.cursor()
        try:
            yield cursor
        finally:
            cursor.close()
            with self._changed:
                self._used -= 1
                self._changed.notify_all()

    def close(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: not self._closing)
            self._close()

    def _close(self) -> None:
        """Waits for those that use the connection; nobody gets it meanwhile."""
        self._closing = True
        try:
            self._changed.wait_for(lambda: not self._used)
        finally:
            self._closing = False
            self._changed.notify_all()
        if self._open is not None:
            self._open.close()
            self._open = None


FILES: WeakValueDictionary[Path, _File] = WeakValueDictionary()
"""The files that are open in this process: when its last index is dropped, so is the connection, and other processes may write."""


class Duck:
    """A :class:`~qrag_jax.retrieve.stores.protocol.VectorStore`."""

    def __init__(self, file: str, name: str, width: int) -> None:
        self._path, self._name, self._width = Path(file).resolve(), name, width
        self.shown = f"table {name} of duckdb:{file}"
        self._file = FILES.setdefault(self._path, _File(self._path))

    def read_record(self) -> str | None:
        if not self._path.exists():
            return None

        def read(connection: duckdb.DuckDBPyConnection) -> str | None:
            tables = {name for (name,) in connection.execute("SELECT table_name FROM duckdb_tables()").fetchall()}
            if not {self._name, "qrag_indexes"} <= tables:
                return None
            found = connection.execute("SELECT record FROM qrag_indexes WHERE name = ?", [self._name]).fetchone()
            return None if found is None else str(found[0])

        return self._run(read)

    def write_record(self, record: str) -> None:
        def write(connection: duckdb.DuckDBPyConnection) -> None:
            connection.execute("CREATE TABLE IF NOT EXISTS qrag_indexes (name TEXT PRIMARY KEY, record TEXT NOT NULL)")
            connection.execute(f"CREATE TABLE IF NOT EXISTS {self._name} (row BIGINT, embedding FLOAT[{self._width}])")
            connection.execute("INSERT OR REPLACE INTO qrag_indexes VALUES (?, ?)", [self._name, record])

        self._run(write, writes=True)

    def put(self, start: int, end: int, vectors: Float[np.ndarray, "R D"]) -> None:
        new = pa.table({"row": np.arange(start, start + len(vectors)), "embedding": arrow_column(vectors)})

        def write(connection: duckdb.DuckDBPyConnection) -> None:
            connection.execute(f"DELETE FROM {self._name} WHERE row >= ? AND row < ?", [start, end])
            connection.register("new_rows", new)
            connection.execute(f"INSERT INTO {self._name} SELECT * FROM new_rows ORDER BY row")
            connection.unregister("new_rows")

        self._run(write, writes=True)

    def keep(self, ranges: Sequence[Span]) -> None:
        kept = pa.table({"first": [start for start, _ in ranges], "last": [end for _, end in ranges]})

        def write(connection: duckdb.DuckDBPyConnection) -> None:
            connection.register("kept", kept)
            connection.execute(
                f"DELETE FROM {self._name} AS t WHERE NOT EXISTS (SELECT 1 FROM kept WHERE t.row >= kept.first AND t.row < kept.last)"
            )
            connection.unregister("kept")

        self._run(write, writes=True)
        self.close()  # others may read now

    def read(self, start: int, end: int) -> Float[np.ndarray, "R D"]:
        return self._run(lambda connection: in_order(self._rows(connection, start, end), self._width))

    def best(self, queries: Sequence[Query], count: int) -> list[Best]:
        return self._run(lambda connection: best_of(self._rows(connection, *span_of(queries)), queries, count))

    def _rows(self, connection: duckdb.DuckDBPyConnection, start: int, end: int) -> Iterator[Rows]:
        found = connection.sql(f"SELECT row, embedding FROM {self._name} WHERE row >= ? AND row < ?", params=[start, end])
        yield from arrow_rows(found.to_arrow_reader(BATCH), self._width)

    def close(self) -> None:
        self._file.close()

    def _run(self, work: Callable[[duckdb.DuckDBPyConnection], T], writes: bool = False) -> T:
        try:
            with self._file.connected(writes) as connection:
                return work(connection)
        except duckdb.IOException as error:
            text = " ".join(str(error).split())
            if "lock" in text.lower():
                raise Unreachable(f"{self.shown}: another process has the file open; DuckDB lets one write or many read") from error
            if "No space left" in text:
                raise CannotWrite(f"{self.shown}: {text}") from error
            raise ValueError(f"{self.shown}: {text}") from error
        except duckdb.Error as error:
            raise ValueError(f"{self.shown}: {' '.join(str(error).split())}") from error
