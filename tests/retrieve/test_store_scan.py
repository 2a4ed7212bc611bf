"""A search of vectors in a store against the built-in scan of the same vectors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qrag_jax.config import QHeadConfig
from qrag_jax.retrieve.scan import Hidden, HostScorer
from qrag_jax.retrieve.storage import Shard
from qrag_jax.retrieve.store_scan import StoreScorer
from qrag_jax.retrieve.stored_rows import StoredRows
from qrag_jax.retrieve.stores import places
from qrag_jax.retrieve.stores.held import HeldShard, HeldVectors, StoreRef
from tests.support.stores import MemoryStore

CONFIGS = {
    "relative": QHeadConfig(),
    "paper's delta": QHeadConfig(delta=10.0, span=9.0),
    "one half": QHeadConfig(halves=1),
    "none": QHeadConfig(positions="none"),
}
WIDTH, BLOCK = 8, 16


@pytest.fixture(autouse=True, scope="module")
def memory() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(places.STORES, "memory", MemoryStore)
        yield
        MemoryStore.kept.clear()


def stored(vectors: np.ndarray, numbers: list[int], sizes: list[int]) -> tuple[HeldVectors, StoredRows]:
    """Rows in a store, in shards of these numbers and sizes."""
    held = HeldVectors(StoreRef.new("memory:here"), WIDTH, BLOCK)
    shards, start = [], 0
    for number, size in zip(numbers, sizes, strict=True):
        held.put(number, vectors[start : start + size])
        shards.append(_Shard(held, number, size))
        start += size
    return held, StoredRows(shards, WIDTH)


class _Shard(Shard):
    """A shard of which only the vectors matter."""

    def __init__(self, store: HeldVectors, number: int, chunks: int) -> None:
        super().__init__(Path(), chunks, WIDTH, "float32", {}, store)
        self._number = number

    @property
    def number(self) -> int:
        return self._number

    @property
    def held(self) -> HeldShard:
        return HeldShard(self._number, self.chunks, next(iter(_sums(self))))


def _sums(shard: _Shard) -> list[str]:
    record = shard.store._record(shard.store._store.read_record())
    return [record.shards[shard._number].sha256]


@pytest.mark.parametrize("name", CONFIGS)
@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_a_store_finds_what_the_scan_finds(name: str, data: st.DataObject) -> None:
    """Any shards in any order of their numbers, picks, equal chunks, filters, several documents, curves, several questions."""
    sizes = data.draw(st.lists(st.integers(1, BLOCK), min_size=1, max_size=5))
    numbers = data.draw(st.permutations(range(len(sizes) + 2)))[: len(sizes)]
    length = sum(sizes)
    draw = np.random.default_rng(data.draw(st.integers(0, 99)))
    vectors = draw.standard_normal((length, WIDTH)).astype(np.float32)
    held, rows = stored(vectors, list(numbers), sizes)
    questions = data.draw(st.integers(1, 3))
    picked = [data.draw(st.lists(st.integers(0, length - 1), unique=True, max_size=min(4, length))) for _ in range(questions)]
    allowed = data.draw(st.none() | st.lists(st.booleans(), min_size=length, max_size=length))
    mask = None if allowed is None or not any(allowed) else np.array(allowed)
    equals = {i: (int(i + 1) % length,) for i in range(0, length, 3) if length > 1}
    restarts = data.draw(st.sampled_from([(0,), tuple(range(0, length, 7))]))
    bins, top = data.draw(st.sampled_from([0, 1, 5, length])), data.draw(st.integers(1, 6))
    states = draw.standard_normal((questions, WIDTH)).astype(np.float32)
    both = [
        scorer(states, picked, top, bins)
        for scorer in (
            StoreScorer(held, rows, CONFIGS[name], Hidden(mask, lambda i: equals.get(i, ())), restarts),
            HostScorer(_Plain(vectors), CONFIGS[name], Hidden(mask, lambda i: equals.get(i, ())), restarts),
        )
    ]
    for found, wanted in zip(*both, strict=True):
        assert found.chunks == wanted.chunks
        np.testing.assert_allclose(found.q, wanted.q, atol=1e-5)
        assert (found.curve is None) == (wanted.curve is None)
        if wanted.curve is not None:
            np.testing.assert_allclose(found.curve, wanted.curve, atol=1e-5)


class _Plain:
    """Rows in memory."""

    def __init__(self, vectors: np.ndarray) -> None:
        self.vectors, self.width = vectors, vectors.shape[1]

    def __len__(self) -> int:
        return len(self.vectors)

    def parts(self) -> list[tuple[int, int]]:
        return [(0, len(self))]

    def block(self, start: int, end: int) -> np.ndarray:
        return self.vectors[start:end]


def test_a_step_asks_one_query_for_each_position() -> None:
    """Without positions one; with span 9, ten positions in each interval, of which a pick begins one."""
    vectors = np.random.default_rng(0).standard_normal((64, WIDTH)).astype(np.float32)
    held, rows = stored(vectors, [0, 1, 2, 3], [BLOCK] * 4)
    asked: list[int] = []
    original = held.best
    held.best = lambda queries, count: asked.append(len(queries)) or original(queries, count)  # type: ignore[method-assign, func-returns-value]
    state = np.ones((1, WIDTH), np.float32)
    StoreScorer(held, rows, QHeadConfig(positions="none"))(state, [[20]], 1)
    StoreScorer(held, rows, QHeadConfig(delta=10.0, span=9.0))(state, [[]], 1)
    StoreScorer(held, rows, QHeadConfig(delta=10.0, span=9.0))(state, [[20]], 1)
    assert asked == [1, 10, 20]


@pytest.mark.parametrize("config", [QHeadConfig(position_resolution="continuous"), QHeadConfig(positions="absolute")])
def test_positions_that_differ_from_chunk_to_chunk_are_refused(config: QHeadConfig) -> None:
    held, rows = stored(np.ones((4, WIDTH), np.float32), [0], [4])
    with pytest.raises(ValueError, match=r"positions, a different one for every chunk.*build an index without a store"):
        StoreScorer(held, rows, config)


def test_vectors_that_are_gone_are_not_passed_over() -> None:
    held, rows = stored(np.ones((32, WIDTH), np.float32), [0, 1], [BLOCK, BLOCK])
    scorer = StoreScorer(held, rows, QHeadConfig())
    one = rows.shards[0].held
    assert one is not None
    held.announce("other")
    held.commit("other", [one])
    with pytest.raises(ValueError, match="does not have the vectors of 1 of 2 shards"):
        scorer(np.ones((1, WIDTH), np.float32), [[]], 1)
