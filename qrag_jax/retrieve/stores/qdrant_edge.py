"""Qdrant inside this process (Qdrant Edge): a folder for each index. One process at a time has it open, also to read.

Every search is exact: no HNSW graph is built.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import qdrant_edge as qe
from jaxtyping import Float

from qrag_jax.retrieve.stores.protocol import Best, Query, Span
from qrag_jax.retrieve.stores.scoring import TIES, Rows, best_of, in_order, span_of, top_of
from qrag_jax.rundir.files import write_text
from qrag_jax.rundir.log import Unreachable

T = TypeVar("T")
SENT = 2048  # rows sent or read at once
MOST = 1024  # ranges in one condition; of more, all rows in their span are read and scored here
RECORD = "qrag.json"
NEVER = 2**40  # kilobytes of vectors before a graph is built


class QdrantEdge:
    """A :class:`~qrag_jax.retrieve.stores.protocol.VectorStore`. The record is a file beside Qdrant's own, in the folder ``path``/NAME."""

    def __init__(self, path: str, name: str, width: int) -> None:
        self._folder, self._width = Path(path, name), width
        self.shown = f"{name} in qdrant:{path}"
        self._open: qe.EdgeShard | None = None

    def read_record(self) -> str | None:
        place = self._folder / RECORD
        return place.read_text(encoding="utf-8") if place.is_file() else None

    def write_record(self, record: str) -> None:
        if not (self._folder / RECORD).is_file():
            self.close()
            shutil.rmtree(self._folder, ignore_errors=True)  # of a build that was killed as it made this folder
            self._folder.mkdir(parents=True)
            self._run(self._make)
        self._run(lambda: self._shard().flush())
        write_text(self._folder / RECORD, record)

    def put(self, start: int, end: int, vectors: Float[np.ndarray, "R D"]) -> None:
        def write() -> None:
            self._shard().update(qe.UpdateOperation.delete_points_by_filter(qe.Filter(must=[_within(start, end)])))
            for first in range(0, len(vectors), SENT):
                part = enumerate(vectors[first : first + SENT].tolist(), start + first)
                points = [qe.Point(row, vector, {"row": row}) for row, vector in part]
                self._shard().update(qe.UpdateOperation.upsert_points(points))

        self._run(write)

    def keep(self, ranges: Sequence[Span]) -> None:
        gone = qe.Filter(must_not=[_within(*span) for span in ranges])

        def write() -> None:
            self._shard().update(qe.UpdateOperation.delete_points_by_filter(gone))
            self._shard().optimize()
            self._shard().flush()

        self._run(write)

    def read(self, start: int, end: int) -> Float[np.ndarray, "R D"]:
        return self._run(lambda: in_order(self._rows((start, end)), self._width))

    def best(self, queries: Sequence[Query], count: int) -> list[Best]:
        return self._run(lambda: self._search(queries, count))

    def close(self) -> None:
        if self._open is not None:
            self._open.close()
            self._open = None

    def _search(self, queries: Sequence[Query], count: int) -> list[Best]:
        few = [query for query in queries if len(query.ranges) <= MOST]
        requests = [
            qe.QueryRequest(
                limit=count + TIES,
                query=qe.Query.Nearest(query.vector.tolist()),
                filter=qe.Filter(should=[_within(*span) for span in query.ranges.tolist()]),
                params=qe.SearchParams(exact=True),
            )
            for query in few
        ]
        batches = iter(self._shard().query_batch(qe.QueryBatchRequest(requests)) if requests else [])
        many = [query for query in queries if len(query.ranges) > MOST]
        rest = iter(best_of(self._rows(span_of(many)), many, count) if many else [])
        return [next(rest) if len(query.ranges) > MOST else _best(next(batches), count) for query in queries]

    def _rows(self, span: Span) -> Iterator[Rows]:
        inside, offset = qe.Filter(must=[_within(*span)]), None
        while True:
            records, offset = self._shard().scroll(qe.ScrollRequest(offset=offset, limit=SENT, filter=inside, with_vector=True))
            if records:
                yield np.array([one.id for one in records], np.int64), np.array([one.vector for one in records], np.float32)
            if offset is None:
                return

    def _make(self) -> None:
        none = qe.HnswIndexConfig(m=0, ef_construct=4, full_scan_threshold=NEVER)
        vectors = qe.EdgeVectorParams(size=self._width, distance=qe.Distance.Dot, hnsw_config=none)
        config = qe.EdgeConfig(vectors=vectors, optimizers=qe.EdgeOptimizersConfig(indexing_threshold=NEVER))
        self._open = qe.EdgeShard.create(str(self._folder), config)
        self._open.update(qe.UpdateOperation.create_field_index("row", qe.PayloadSchemaType.Integer))

    def _shard(self) -> qe.EdgeShard:
        if self._open is None:
            self._open = qe.EdgeShard.load(str(self._folder))
        return self._open

    def _run(self, work: Callable[[], T]) -> T:
        try:
            return work()
        except Exception as error:  # the only class that Qdrant Edge raises
            self.close()
            text = " ".join(str(error).split())[:300]
            if "WouldBlock" in text:
                raise Unreachable(f"{self.shown}: another process has it open; only one can, so end that one first") from error
            raise ValueError(f"{self.shown}: {text}") from error


def _within(start: int, end: int) -> qe.FieldCondition:
    return qe.FieldCondition("row", range=qe.RangeFloat(gte=start, lt=end))


def _best(points: Sequence[Any], count: int) -> Best:
    return top_of(np.array([point.id for point in points], np.int64), np.array([point.score for point in points], np.float32), count)
