"""A Qdrant server: a collection for each index, and one with its record. Every search is exact: no HNSW graph is built."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, TypeVar
from uuid import UUID

import numpy as np
from jaxtyping import Float
from qdrant_client import QdrantClient, models
from qdrant_client.http.exceptions import ApiException, ResponseHandlingException, UnexpectedResponse

from qrag_jax.config.secrets import clean_key
from qrag_jax.retrieve.stores.protocol import Best, Query, Span
from qrag_jax.retrieve.stores.qdrant_edge import MOST
from qrag_jax.retrieve.stores.scoring import TIES, Rows, best_of, in_order, span_of, top_of
from qrag_jax.rundir.log import Unreachable

T = TypeVar("T")
KEY = "QDRANT_API_KEY"
SENT = 1024  # rows sent or read at once
TOGETHER = 128  # queries in one request
SECONDS = 60  # to wait for an answer


class QdrantServer:
    """A :class:`~qrag_jax.retrieve.stores.protocol.VectorStore`. The server's key is read from QDRANT_API_KEY."""

    def __init__(self, url: str, name: str, width: int) -> None:
        self._url, self._name, self._width = url, name, width
        self.shown = f"collection {name} of qdrant:{url}"
        self._open: QdrantClient | None = None

    def read_record(self) -> str | None:
        def read(client: QdrantClient) -> str | None:
            if not (client.collection_exists(self._name) and client.collection_exists(f"{self._name}_record")):
                return None
            found = client.retrieve(f"{self._name}_record", [0])
            return str((found[0].payload or {}).get("record")) if found else None

        return self._run(read)

    def write_record(self, record: str) -> None:
        def write(client: QdrantClient) -> None:
            if not client.collection_exists(self._name):
                client.create_collection(
                    self._name,
                    vectors_config=models.VectorParams(size=self._width, distance=models.Distance.DOT),
                    hnsw_config=models.HnswConfigDiff(m=0),
                )
                client.create_payload_index(self._name, "row", models.PayloadSchemaType.INTEGER, wait=True)
            if not client.collection_exists(f"{self._name}_record"):
                client.create_collection(f"{self._name}_record", vectors_config={})
            client.upsert(f"{self._name}_record", [models.PointStruct(id=0, vector={}, payload={"record": record})], wait=True)

        self._run(write)

    def put(self, start: int, end: int, vectors: Float[np.ndarray, "R D"]) -> None:
        def write(client: QdrantClient) -> None:
            client.delete(self._name, models.FilterSelector(filter=models.Filter(must=[_within(start, end)])), wait=True)
            for first in range(0, len(vectors), SENT):
                part = vectors[first : first + SENT]
                ids: list[int | str | UUID] = list(range(start + first, start + first + len(part)))
                batch = models.Batch(ids=ids, vectors=part.tolist(), payloads=[{"row": row} for row in ids])
                client.upsert(self._name, batch, wait=True)

        self._run(write)

    def keep(self, ranges: Sequence[Span]) -> None:
        gone = models.Filter(must_not=[_within(*span) for span in ranges])
        self._run(lambda client: client.delete(self._name, models.FilterSelector(filter=gone), wait=True))

    def read(self, start: int, end: int) -> Float[np.ndarray, "R D"]:
        return self._run(lambda client: in_order(self._rows(client, (start, end)), self._width))

    def best(self, queries: Sequence[Query], count: int) -> list[Best]:
        found: list[Best] = []
        for start in range(0, len(queries), TOGETHER):
            found += self._run(partial(self._search, queries[start : start + TOGETHER], count))
        return found

    def close(self) -> None:
        if self._open is not None:
            self._open.close()
            self._open = None

    def _search(self, queries: Sequence[Query], count: int, client: QdrantClient) -> list[Best]:
        few = [query for query in queries if len(query.ranges) <= MOST]
        requests = [
            models.QueryRequest(
                query=query.vector.tolist(),
                filter=models.Filter(should=[_within(*span) for span in query.ranges.tolist()]),
                params=models.SearchParams(exact=True),
                limit=count + TIES,
            )
            for query in few
        ]
        batches = iter([one.points for one in client.query_batch_points(self._name, requests)] if requests else [])
        many = [query for query in queries if len(query.ranges) > MOST]
        rest = iter(best_of(self._rows(client, span_of(many)), many, count) if many else [])
        return [next(rest) if len(query.ranges) > MOST else _best(next(batches), count) for query in queries]

    def _rows(self, client: QdrantClient, span: Span) -> Iterator[Rows]:
        inside, offset = models.Filter(must=[_within(*span)]), None
        while True:
            records, offset = client.scroll(self._name, inside, limit=SENT, offset=offset, with_payload=False, with_vectors=True)
            if records:
                yield np.array([one.id for one in records], np.int64), np.array([one.vector for one in records], np.float32)
            if offset is None:
                return

    def _run(self, work: Callable[[QdrantClient], T]) -> T:
        try:
            if self._open is None:
                self._open = self._connect()
            return work(self._open)
        except UnexpectedResponse as error:
            said = " ".join(str(error).split())[:300]
            if error.status_code in (401, 403):
                raise ValueError(f"{self.shown}: refused ({error.status_code}); give the server's key in {KEY}") from error
            if error.status_code is not None and error.status_code >= 500:
                raise Unreachable(f"{self.shown}: the server failed ({said})") from error
            raise ValueError(f"{self.shown}: {said}") from error
        except (ResponseHandlingException, ApiException) as error:
            raise Unreachable(f"{self.shown}: cannot be reached ({' '.join(str(error).split())[:300]})") from error

    def _connect(self) -> QdrantClient:
        key = clean_key(os.environ.get(KEY, ""), KEY) or None
        options: dict[str, Any] = {"timeout": SECONDS, "check_compatibility": False}
        return QdrantClient(url=self._url, api_key=key, **options)


def _within(start: int, end: int) -> models.FieldCondition:
    return models.FieldCondition(key="row", range=models.Range(gte=start, lt=end))


def _best(points: Sequence[Any], count: int) -> Best:
    return top_of(np.array([point.id for point in points], np.int64), np.array([point.score for point in points], np.float32), count)
