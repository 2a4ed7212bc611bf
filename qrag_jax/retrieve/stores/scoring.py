"""Scores rows in this process, for databases that are files: they read, and the inner products are computed here, in one pass."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import pyarrow as pa
from jaxtyping import Float, Int

from qrag_jax.retrieve.stores.protocol import Best, Query, Span

BATCH = 8192  # rows scored at once
MOST = 64  # ranges that are scored one by one; of more, their rows are copied together
TIES = 16  # more rows than are wanted, where a database gives equal ones in any order

Rows = tuple[Int[np.ndarray, " R"], Float[np.ndarray, "R D"]]


def best_of(batches: Iterable[Rows], queries: Sequence[Query], count: int) -> list[Best]:
    """The ``count`` best rows of each query among those of ``batches``, each of which are row numbers and vectors in any order."""
    found: list[list[Best]] = [[] for _ in queries]
    for rows, vectors in batches:
        if (np.diff(rows) < 0).any():
            order = np.argsort(rows, kind="stable")
            rows, vectors = rows[order], vectors[order]
        for query, best in zip(queries, found, strict=True):
            edges = np.searchsorted(rows, query.ranges)
            edges = edges[edges[:, 0] < edges[:, 1]]
            if len(edges) > MOST:
                at = np.concatenate([np.arange(a, b) for a, b in edges])
                best.append(top_of(rows[at], vectors[at] @ query.vector, count))
            else:
                best += [top_of(rows[a:b], vectors[a:b] @ query.vector, count) for a, b in edges]
    return [_merged(best, count) for best in found]


def _merged(found: Sequence[Best], count: int) -> Best:
    rows, scores = zip(_NONE, *found, strict=True)
    return top_of(np.concatenate(rows), np.concatenate(scores), count)


def span_of(queries: Sequence[Query]) -> Span:
    """The smallest range that holds all ranges of ``queries``."""
    spans = np.array([query.span for query in queries])
    return int(spans[:, 0].min()), int(spans[:, 1].max())


def top_of(rows: Int[np.ndarray, " R"], scores: Float[np.ndarray, " R"], count: int) -> Best:
    """The rows with the largest scores; of equal ones, the smaller numbers."""
    if len(rows) > 4 * count:  # sort only those that may be among them
        least = np.partition(scores, len(scores) - count)[len(scores) - count]
        rows, scores = rows[scores >= least], scores[scores >= least]
    order = np.lexsort((rows, -scores))[:count]
    return Best(rows[order], scores[order])


_NONE = (np.zeros(0, np.int64), np.zeros(0, np.float32))


def arrow_rows(batches: Iterable[pa.RecordBatch], width: int) -> Iterator[Rows]:
    """The columns ``row`` and ``embedding`` of batches."""
    for batch in batches:
        yield batch.column("row").to_numpy(), batch.column("embedding").flatten().to_numpy(zero_copy_only=False).reshape(-1, width)


def arrow_column(vectors: Float[np.ndarray, "R D"]) -> pa.FixedSizeListArray:
    """Vectors as a column."""
    flat = pa.array(np.ascontiguousarray(vectors, np.float32).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])


def in_order(batches: Iterable[Rows], width: int) -> Float[np.ndarray, "R D"]:
    """The vectors of ``batches``, by their row numbers."""
    rows, vectors = zip((np.zeros(0, np.int64), np.empty((0, width), np.float32)), *batches, strict=True)
    return np.concatenate(vectors)[np.argsort(np.concatenate(rows), kind="stable")]
