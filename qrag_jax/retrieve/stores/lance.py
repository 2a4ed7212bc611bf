"""LanceDB: tables in a folder, or in an object store (lancedb:s3://BUCKET/PATH), read and written by this process.

All queries of a step are scored in one pass over the rows: LanceDB's own search reads them once for each query.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import lancedb
import numpy as np
import pyarrow as pa
from jaxtyping import Float

from qrag_jax.retrieve.stores.protocol import Best, Query, Span
from qrag_jax.retrieve.stores.scoring import BATCH, Rows, arrow_column, arrow_rows, best_of, in_order, span_of
from qrag_jax.rundir.files import disk_error
from qrag_jax.rundir.log import CannotWrite

T = TypeVar("T")


class Lance:
    """A :class:`~qrag_jax.retrieve.stores.protocol.VectorStore`. No vector index is made, so its search is exact."""

    def __init__(self, uri: str, name: str, width: int) -> None:
        self._uri, self._name, self._width = uri, name, width
        self.shown = f"table {name} of lancedb:{uri}"
        self._open: Any = None
        self._tables: dict[str, Any] = {}

    def read_record(self) -> str | None:
        if "://" not in self._uri and not Path(self._uri).is_dir():
            return None

        def read() -> str | None:
            table = self._table(f"{self._name}_record")
            return None if table is None else str(table.to_arrow().column("record")[0])

        return self._run(read)

    def write_record(self, record: str) -> None:
        def write() -> None:
            if self._table(self._name) is None:
                schema = pa.schema([("row", pa.int64()), ("embedding", pa.list_(pa.float32(), self._width))])
                self._tables[self._name] = self._database.create_table(self._name, schema=schema, exist_ok=True)
            name = f"{self._name}_record"
            mode = "create" if self._table(name) is None else "overwrite"
            self._tables[name] = self._database.create_table(name, pa.table({"record": [record]}), mode=mode)

        self._run(write)

    def put(self, start: int, end: int, vectors: Float[np.ndarray, "R D"]) -> None:
        new = pa.table({"row": np.arange(start, start + len(vectors)), "embedding": arrow_column(vectors)})

        def write() -> None:
            self._rows().delete(_within([[start, end]]))
            self._rows().add(new)

        self._run(write)

    def keep(self, ranges: Sequence[Span]) -> None:
        def write() -> None:
            edges = [0, *(edge for span in _joined(ranges) for edge in span), 2**62]
            gone = [span for span in zip(edges[::2], edges[1::2], strict=True) if span[0] < span[1]]
            self._rows().delete(_within(gone))
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "optimize", UserWarning)  # a reader that this disturbs tries again
                self._rows().optimize(cleanup_older_than=timedelta(0))

        self._run(write)

    def read(self, start: int, end: int) -> Float[np.ndarray, "R D"]:
        return self._run(lambda: in_order(self._scan([[start, end]], end - start), self._width))

    def best(self, queries: Sequence[Query], count: int) -> list[Best]:
        def search() -> list[Best]:
            span = span_of(queries)
            return best_of(self._scan([span], span[1] - span[0]), queries, count)

        return self._run(search)

    def close(self) -> None:
        self._tables.clear()
        self._open = None

    def _scan(self, ranges: Sequence[Sequence[int]], most: int) -> Iterator[Rows]:
        found = self._rows().search().where(_within(ranges)).select(["row", "embedding"]).limit(most).to_batches(BATCH)
        return arrow_rows(found, self._width)

    @property
    def _database(self) -> Any:
        if self._open is None:
            self._open = lancedb.connect(self._uri, read_consistency_interval=timedelta(0))
        return self._open

    def _table(self, name: str) -> Any:
        if name not in self._tables:
            try:
                self._tables[name] = self._database.open_table(name)
            except (ValueError, FileNotFoundError):  # there is no such table
                return None
        return self._tables[name]

    def _rows(self) -> Any:
        table = self._table(self._name)
        if table is None:
            raise ValueError(f"{self.shown}: is not there")
        return table

    def _run(self, work: Callable[[], T]) -> T:
        for last in (False, True):
            try:
                return work()
            except (RuntimeError, OSError, ValueError) as error:
                self.close()  # another process may have removed an older version of the table meanwhile
                if last:
                    self._raise(error)
        raise AssertionError

    def _raise(self, error: Exception) -> NoReturn:
        if (told := disk_error(error)) is not None or "No space left" in str(error):
            raise CannotWrite(f"{self.shown}: cannot be written to ({told or 'the disk is full'})") from error
        raise ValueError(f"{self.shown}: {' '.join(str(error).split())[:300]}") from error


def _within(ranges: Sequence[Sequence[int]]) -> str:
    return " OR ".join(f"(row >= {start} AND row < {end})" for start, end in ranges)


def _joined(ranges: Sequence[Span]) -> list[Span]:
    """Ranges of which none ends where the next begins."""
    joined: list[Span] = []
    for start, end in ranges:
        if joined and joined[-1][1] == start:
            joined[-1] = (joined[-1][0], end)
        else:
            joined.append((start, end))
    return joined
