"""The rotated-state scan against the definition: rotate every chunk, then take the inner product."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qrag_jax.config import QHeadConfig
from qrag_jax.retrieve.device_rows import DeviceRows
from qrag_jax.retrieve.device_scan import DeviceScorer
from qrag_jax.retrieve.scan import Hidden, HostScorer, look, runs, scan, stretches
from qrag_jax.retrieve.types import PoolRows
from qrag_jax.rl.env import picked_mask
from qrag_jax.rl.positions import chunk_positions
from qrag_jax.rl.qhead import q_halves
from tests.support.oracles import rl_python

VARIANTS = {
    "integer": QHeadConfig(),
    "integer, one half": QHeadConfig(halves=1),
    "paper's delta": QHeadConfig(delta=10.0, span=9.0),
    "continuous": QHeadConfig(position_resolution="continuous"),
    "absolute": QHeadConfig(positions="absolute"),
    "none": QHeadConfig(positions="none"),
}


def document(length: int, width: int = 16, seed: int = 0) -> tuple[PoolRows, np.ndarray]:
    draw = np.random.default_rng(seed)
    pool = draw.standard_normal((max(1, length // 2), width)).astype(np.float32)
    index = draw.integers(len(pool), size=length).astype(np.int32)
    return PoolRows(pool, index), pool[index]


def oracle_positions(length: int, picked: Sequence[int], config: QHeadConfig) -> np.ndarray:
    if config.positions == "relative":
        integer = config.position_resolution == "integer"
        return np.array(rl_python.positions(list(picked), length, int(config.delta), int(config.span), integer), float)
    return np.arange(length) * float(config.positions == "absolute")


def naive(vectors: np.ndarray, state: np.ndarray, picked: Sequence[int], config: QHeadConfig) -> np.ndarray:
    """Every chunk rotated into its position, then the inner product, in float64."""
    half = vectors.shape[1] // config.halves
    angle = oracle_positions(len(vectors), picked, config)[:, None] / config.theta ** (np.arange(0, half, 2) / half)
    rotated = np.empty(vectors.shape)
    for at in range(0, vectors.shape[1], half):
        x0, x1 = vectors[:, at : at + half : 2].astype(float), vectors[:, at + 1 : at + half : 2].astype(float)
        rotated[:, at : at + half : 2] = x0 * np.cos(angle) - x1 * np.sin(angle)
        rotated[:, at + 1 : at + half : 2] = x0 * np.sin(angle) + x1 * np.cos(angle)
    return rotated @ state


def test_runs_by_hand() -> None:
    # Nine chunks, chunk 5 picked, span 2, delta 10. Interval 0: chunks 0-4, floor(2 k / 4) = 0 0 1 1 2.
    # Interval 1: chunks 5-8, floor(2 k / 3) = 0 0 1 2, plus 10.
    found = runs([5], 9, QHeadConfig(delta=10.0, span=2.0))
    assert found.start.tolist() == [0, 2, 4, 5, 7, 8]
    assert found.first.tolist() == [0, 1, 2, 10, 11, 12]
    assert found.step.tolist() == [0] * 6
    assert [found.position(i) for i in range(9)] == [0, 0, 1, 1, 2, 10, 10, 11, 12]


@pytest.mark.parametrize("name", VARIANTS)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_runs_are_the_positions(name: str, data: st.DataObject) -> None:
    config = VARIANTS[name]
    length = data.draw(st.integers(1, 300))
    picked = data.draw(st.lists(st.integers(0, length - 1), unique=True, max_size=min(5, length)))
    wanted = oracle_positions(length, picked, config)
    found = runs(picked, length, config)
    assert (np.diff(found.start) > 0).all()
    np.testing.assert_allclose([found.position(i) for i in range(length)], wanted, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("name", VARIANTS)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_scan_is_the_naive_computation(name: str, data: st.DataObject) -> None:
    length = data.draw(st.integers(1, 6000))
    questions = data.draw(st.integers(1, 4))
    picks = st.lists(st.integers(0, length - 1), unique=True, max_size=min(4, length))
    picked = [data.draw(picks) for _ in range(questions)]
    rows, vectors = document(length, seed=length)
    states = np.random.default_rng(1).standard_normal((questions, rows.width)).astype(np.float32) / 4
    wanted = [naive(vectors, state, picks, VARIANTS[name]) for state, picks in zip(states, picked, strict=True)]
    np.testing.assert_allclose(scan(rows, states, picked, VARIANTS[name]), wanted, atol=1e-5)


@pytest.mark.parametrize("name", VARIANTS)
def test_scan_is_what_was_trained(name: str) -> None:
    config = VARIANTS[name]
    rows, vectors = document(200)
    state, picks = np.random.default_rng(1).standard_normal(rows.width).astype(np.float32) / 4, [3, 150, 60]
    position = chunk_positions(picked_mask(jnp.asarray(picks), 200), 200, 0, config)
    wanted = q_halves(jnp.asarray(state), jnp.asarray(vectors), position, config).sum(-1)
    np.testing.assert_allclose(scan(rows, state[None], [picks], config)[0], wanted, atol=1e-4 if name == "absolute" else 1e-5)


def split(draw: Any, lengths: Sequence[int]) -> tuple[list[int], list[int], list[list[int]]]:
    """Documents of these lengths in one index: where each begins, picks over all of them, and the picks of each, counted in it."""
    starts = [sum(lengths[:i]) for i in range(len(lengths))]
    picked = draw(st.lists(st.integers(0, sum(lengths) - 1), unique=True, max_size=min(5, sum(lengths))))
    return (
        starts,
        picked,
        [[pick - start for pick in picked if start <= pick < start + n] for start, n in zip(starts, lengths, strict=True)],
    )


@pytest.mark.parametrize("name", VARIANTS)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_positions_that_restart_are_those_of_each_document_alone(name: str, data: st.DataObject) -> None:
    config = VARIANTS[name]
    lengths = data.draw(st.lists(st.integers(1, 60) | st.integers(1, 900), min_size=1, max_size=12))
    starts, picked, own = split(data.draw, lengths)
    wanted = np.concatenate([oracle_positions(n, picks, config) for n, picks in zip(lengths, own, strict=True)])
    found = runs(picked, sum(lengths), config, starts)
    assert (np.diff(found.start) > 0).all()
    np.testing.assert_allclose(found.positions(0, sum(lengths)), wanted, rtol=1e-6, atol=1e-5)
    rows, vectors = document(sum(lengths), seed=sum(lengths))
    state = np.random.default_rng(1).standard_normal((1, rows.width)).astype(np.float32) / 4
    parts = zip(np.split(vectors, starts[1:]), own, strict=True)
    alone = np.concatenate([naive(part, state[0], picks, config) for part, picks in parts])
    np.testing.assert_allclose(scan(rows, state, [picked], config, starts)[0], alone, atol=1e-5)


@pytest.mark.parametrize("lengths", [(1200, 300), (7,) * 200 + (100,)], ids=["long documents", "short documents"])
@pytest.mark.parametrize("name", ["integer", "continuous", "absolute"])
def test_devices_restart_positions_as_the_host_does(name: str, lengths: tuple[int, ...]) -> None:
    config, starts = VARIANTS[name], [sum(lengths[:i]) for i in range(len(lengths))]
    rows = PoolRows(np.random.default_rng(5).standard_normal((1500, 16)).astype(np.float32), np.arange(1500, dtype=np.int32))  # no ties
    states = np.random.default_rng(2).standard_normal((3, 16)).astype(np.float32)
    picked = [[], [700], [3, 1499, 20]]
    scorer = DeviceScorer(DeviceRows(rows, jax.devices()[:1], block=512), config, restarts=starts)
    wanted = HostScorer(rows, config, restarts=starts)(states, picked, 7, 40)
    for found, other in zip(scorer(states, picked, 7, 40), wanted, strict=True):
        assert found.chunks == other.chunks
        np.testing.assert_allclose(found.q, other.q, atol=1e-4)


@pytest.mark.parametrize("devices", [1, 4])
@pytest.mark.parametrize("resident", [True, False])
@pytest.mark.parametrize("name", ["integer", "continuous", "none"])
def test_devices_find_what_the_host_finds(name: str, resident: bool, devices: int) -> None:
    config = VARIANTS[name]
    rows, _ = document(1500, seed=3)
    rows = PoolRows(np.random.default_rng(5).standard_normal((1500, 16)).astype(np.float32), np.arange(1500, dtype=np.int32))  # no ties
    states = np.random.default_rng(2).standard_normal((3, 16)).astype(np.float32)
    picked = [[], [700], [3, 1499, 20]]
    scorer = DeviceScorer(DeviceRows(rows, jax.devices()[:devices], block=128, resident=resident), config)
    for found, wanted in zip(scorer(states, picked, 7, 40), HostScorer(rows, config)(states, picked, 7, 40), strict=True):
        assert found.chunks == wanted.chunks
        np.testing.assert_allclose(found.q, wanted.q, atol=1e-5)
        np.testing.assert_allclose(found.curve, wanted.curve, atol=1e-5)


def test_the_steps_of_a_search_and_small_documents_share_one_program() -> None:
    rows, _ = document(300)
    placed = [DeviceRows(PoolRows(rows.pool, rows.index[:count]), jax.devices()[:1]) for count in (300, 70)]
    first, other = (DeviceScorer(one, VARIANTS["integer"]) for one in placed)
    before = first._step._cache_size()
    for scorer in (first, other):
        for picks in ([], [7], [7, 60], [7, 60, 40]):
            scorer(np.ones((1, rows.width), np.float32), [picks], 1)
    assert first._step._cache_size() == before + 1


def test_a_document_stays_on_the_devices_while_there_is_room(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, _ = document(300)  # 19,200 bytes
    for free, resident in ((40_000, True), (30_000, False)):
        monkeypatch.setattr("qrag_jax.retrieve.device_rows._free", lambda device, free=free: free)
        assert (DeviceRows(rows, jax.devices()[:1]).kept is not None) == resident


@pytest.mark.parametrize(("resident", "devices"), [(True, 1), (False, 1), (True, 4)])
def test_devices_find_what_the_host_finds_with_a_filter(resident: bool, devices: int) -> None:
    rows = PoolRows(np.random.default_rng(5).standard_normal((300, 16)).astype(np.float32), np.arange(300, dtype=np.int32))
    allowed = np.isin(np.arange(300), [5, 40, 41, 130, 260, 299])  # blocks of 64: none in the fourth
    hidden = Hidden(allowed, lambda chunk: {41: (5, 42)}.get(chunk, ()))
    states = np.random.default_rng(2).standard_normal((2, 16)).astype(np.float32)
    picked = [[], [41]]
    placed = DeviceRows(rows, jax.devices()[:devices], block=64, resident=resident)
    found = DeviceScorer(placed, QHeadConfig(), hidden)(states, picked, 9, 6)
    assert [set(look.chunks) for look in found] == [{5, 40, 41, 130, 260, 299}, {40, 130, 260, 299}]
    for mine, wanted in zip(found, HostScorer(rows, QHeadConfig(), hidden)(states, picked, 9, 6), strict=True):
        assert mine.chunks == wanted.chunks
        np.testing.assert_allclose(mine.q, wanted.q, atol=1e-5)
        np.testing.assert_allclose(mine.curve, wanted.curve, atol=1e-5)


@pytest.mark.parametrize(("count", "devices"), [(3, 4), (13, 4), (301, 3)])
def test_of_equal_chunks_on_several_devices_the_first_is_picked(count: int, devices: int) -> None:
    """Also of more devices than rows, and of rows that do not divide evenly. Blocks of 8 rows: a later one of the first device is equal to
    the first one of the next."""
    pool = np.random.default_rng(5).standard_normal((3, 16)).astype(np.float32)
    rows = PoolRows(pool, np.arange(count, dtype=np.int32) % 3)
    states = np.random.default_rng(2).standard_normal((2, 16)).astype(np.float32)
    placed = DeviceRows(rows, jax.devices()[:devices], block=8)
    picked, top = [[], [count - 1]], count - 1
    found = DeviceScorer(placed, VARIANTS["none"])(states, picked, top)
    for mine, state, picks in zip(found, states, picked, strict=True):
        q = naive(pool[rows.index], state, [], VARIANTS["none"])
        q[picks] = -np.inf
        assert list(mine.chunks) == sorted(range(count), key=lambda i: (-q[i], i))[:top]
    parts = [part for block in placed.blocks() for part in block.addressable_shards]
    held = [sum(len(part.data) for part in parts if part.device == device) for device in jax.devices()[:devices]]
    assert placed.share == -(-count // devices)
    assert held == [-(-placed.share // 8) * 8] * devices, "rows of each, filled up to whole blocks"


def test_look_leaves_picks_out() -> None:
    q = np.array([0.5, 0.9, 0.1, 0.9, 0.7], np.float32)
    found = look(q.copy(), [1], 3, 5)
    assert found.chunks == (3, 4, 0)
    np.testing.assert_array_equal(found.curve, np.array([0.5, np.nan, 0.1, 0.9, 0.7], np.float32))
    assert look(q.copy(), [], 1, 0).chunks == (1,), "ties go to the first"
    assert look(np.ones(1000, np.float32), [2], 4, 0).chunks == (0, 1, 3, 4), "at the border of the best ones, too"
    assert look(q.copy(), [0, 1, 2], 9, 0).chunks == (3, 4), "fewer where fewer are left"


def test_stretches_cover_the_document() -> None:
    assert stretches(10, 4).tolist() == [0, 2, 5, 7]
    assert stretches(3, 512).tolist() == [0, 1, 2]
