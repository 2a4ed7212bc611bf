"""The scan of int8 codes with float32 rows: its picks are those of float64, for every kind of rows, positions and filters."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qrag_jax.config import QHeadConfig
from qrag_jax.retrieve import coded_scan
from qrag_jax.retrieve.coded_scan import CodedScorer
from qrag_jax.retrieve.codes import CodedQueries, Codes
from qrag_jax.retrieve.scan import Hidden, HostScorer, rotate_state, runs, stretches
from qrag_jax.retrieve.storage import Shard
from qrag_jax.retrieve.stored_rows import CodedRows

POSITIONS = {
    "integer": QHeadConfig(),
    "integer, one half": QHeadConfig(halves=1),
    "none": QHeadConfig(positions="none"),
    "continuous": QHeadConfig(position_resolution="continuous"),
    "absolute": QHeadConfig(positions="absolute"),
}
WIDTH = 16


def stored(vectors: np.ndarray, shard: int, folder: Path) -> CodedRows:
    """Rows in shards on disk, without texts."""
    folder.mkdir(exist_ok=True)
    parts = [vectors[start : start + shard] for start in range(0, len(vectors), shard)]
    write = lambda i, part: Shard.write(folder, i, [b"\n"] * len(part), [bytes(16)] * len(part), part, None, "int8-exact")
    shards = [write(i, part) for i, part in enumerate(parts)]
    return CodedRows(shards, vectors.shape[1])


@st.composite
def vectors(draw: st.DrawFn, most: int = 700) -> np.ndarray:
    """Rows as they come and as they could come: repeated, nearly equal, of different lengths, with zeros."""
    length, seed = draw(st.integers(1, most)), draw(st.integers(0, 2**32 - 1))
    chance = np.random.default_rng(seed)
    kinds = draw(st.integers(1, length))
    found = chance.standard_normal((kinds, WIDTH)).astype(np.float32)[chance.integers(kinds, size=length)]
    found += np.float32(draw(st.sampled_from([0, 1e-7, 1e-3]))) * chance.standard_normal(found.shape).astype(np.float32)
    if draw(st.booleans()):
        found *= np.exp(3 * chance.standard_normal((length, 1))).astype(np.float32)
    if draw(st.booleans()):
        found[chance.random(length) < 0.1] = 0
    return found * np.float32(draw(st.sampled_from([1.0, 1e-20, 1e4])))


def truth(rows: np.ndarray, state: np.ndarray, picks: Sequence[int], config: QHeadConfig, restarts: Sequence[int]) -> np.ndarray:
    """Q of every chunk in float64, from the state rotated as in the scan, for each chunk alone."""
    at = runs(picks, len(rows), config, restarts).positions(0, len(rows))
    position, place = np.unique(at, return_inverse=True)
    return np.einsum("rd,rd->r", rows.astype(float), rotate_state(state, position, config).astype(float)[place])


@pytest.mark.parametrize("name", POSITIONS)
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_picks_are_those_of_float64(name: str, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    config, rows = POSITIONS[name], data.draw(vectors())
    n = len(rows)
    states = np.random.default_rng(n).standard_normal((data.draw(st.integers(1, 3)), WIDTH)).astype(np.float32)
    picked = [data.draw(st.lists(st.integers(0, n - 1), unique=True, max_size=min(4, n))) for _ in states]
    restarts = sorted({0, *data.draw(st.lists(st.integers(0, n - 1), max_size=data.draw(st.sampled_from([0, 3, 60]))))})
    allowed = np.random.default_rng(n).random(n) < 0.5 if data.draw(st.booleans()) else None
    hidden = Hidden(allowed, lambda chunk: (chunk + 1,) if chunk % 3 == 0 and chunk + 1 < n else ())
    top, bins = data.draw(st.integers(1, 12)), data.draw(st.sampled_from([0, 7]))
    scorer = CodedScorer(stored(rows, 256, tmp_path_factory.mktemp("rows")), config, hidden, restarts)
    for look, state, picks in zip(scorer(states, picked, top, bins), states, picked, strict=True):
        wanted = truth(rows, state, picks, config, restarts)
        gone = np.zeros(n, bool) if allowed is None else ~allowed
        gone[hidden.of(picks)] = True
        left = np.flatnonzero(~gone)
        best = left[np.lexsort((left, -wanted[left].astype(np.float32)))][:top]
        size = 1e-6 * float(np.linalg.norm(state) * np.linalg.norm(rows, axis=1).max())
        assert len(look.chunks) == len(best)
        np.testing.assert_allclose(wanted[list(look.chunks)], wanted[best], rtol=0, atol=size)  # only ties may differ
        np.testing.assert_allclose(look.q, wanted[list(look.chunks)], rtol=1e-5, atol=size)
        if bins:
            curve = np.maximum.reduceat(np.where(gone, -np.inf, wanted), stretches(n, bins))
            np.testing.assert_allclose(look.curve, np.where(np.isneginf(curve), np.nan, curve), rtol=1e-5, atol=size)


def test_codes_by_hand() -> None:
    # The largest magnitude is 127 steps, so the scale is 1; 0.4 is lost of row 0, and 0.5 of row 1 (half goes to even). Row 2 is 0.
    coded = Codes.of(np.array([[127, -63, 0.4], [127, -62.5, 0], [0, 0, 0]], np.float32))
    assert coded.codes.tolist() == [[127, -63, 0], [127, -62, 0], [0, 0, 0]]
    assert coded.scales.tolist() == [1, 1, 0]
    np.testing.assert_allclose(coded.errors, [0.4, 0.5, 0], atol=1e-6)
    assert (coded.errors >= np.array([np.float32(0.4), 0.5, 0])).all(), "rounded up"
    # The query is 2 * (127, 1, 0): nothing is lost. <c, q> = 127 * 127 - 63 = 16066, times 2.
    query = CodedQueries(np.array([[254, 2, 0]], np.float32))
    assert query.product(coded.codes, 0)[0] == 32132
    assert query.products(coded.codes, [0, 0])[0].tolist() == [32132, 32132]
    assert query.margins(coded.scales, coded.errors)[1] == pytest.approx(0.5 * np.hypot(254, 2), rel=0.01)


@pytest.mark.parametrize("width", [1, 5, 384, 1000])
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), size=st.sampled_from([1e-44, 1e-30, 1e-3, 1.0, 1e15]))
def test_no_product_is_outside_its_bounds(width: int, seed: int, size: float) -> None:
    draw = np.random.default_rng(seed)
    one = lambda count: (draw.standard_normal((count, width)) ** draw.choice([1, 5]) * size).astype(np.float32)
    rows, queries = one(200), one(3)
    coded, asked = Codes.of(rows), CodedQueries(queries)
    margins = asked.margins(coded.scales, coded.errors)
    exact = rows.astype(float) @ queries.astype(float).T
    every = asked.products(coded.codes, range(3))
    for i in range(3):
        found = (asked.product(coded.codes, i).astype(np.float32) * coded.scales).astype(float)
        assert (np.abs(found - exact[:, i]) <= margins).all()
        np.testing.assert_allclose(every[:, i], asked.product(coded.codes, i), rtol=1e-6)


def test_equal_rows_are_picked_in_their_order(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    rows = draw.standard_normal((1, 384)).astype(np.float32).repeat(1000, 0)
    scorer = CodedScorer(stored(rows, 300, tmp_path / "rows"), POSITIONS["none"])
    state = draw.standard_normal((1, 384)).astype(np.float32)
    assert scorer(state, [()], 5)[0].chunks == (0, 1, 2, 3, 4)
    assert scorer(state, [(0, 2)], 3)[0].chunks == (1, 3, 4)


def test_only_rows_that_can_be_best_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = np.random.default_rng(0).standard_normal((5000, 384)).astype(np.float32)
    rows, read = stored(vectors, 2048, tmp_path / "rows"), []
    monkeypatch.setattr(rows, "block", None)
    monkeypatch.setattr(rows, "take", lambda chunks: (read.extend(chunks.tolist()), vectors[chunks])[1])
    (seen,) = CodedScorer(rows, POSITIONS["integer"])(vectors[:1], [(4,)], 3)
    assert set(seen.chunks) <= set(read)
    assert len(read) < 250, "of 5,000"


def test_threads_find_what_one_thread_finds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = np.random.default_rng(0).standard_normal((3000, WIDTH)).astype(np.float32)
    rows, states, picked = stored(vectors, 1000, tmp_path / "rows"), vectors[:3], [(), (7,), (2999, 5)]
    wanted = HostScorer(rows, POSITIONS["integer"])(states, picked, 6, 9)
    for block, cores in ((64, 1), (64, 5), (4096, 5)):
        monkeypatch.setattr(coded_scan, "BLOCK", block)
        monkeypatch.setattr(coded_scan, "_cores", lambda cores=cores: cores)
        for found, look in zip(CodedScorer(rows, POSITIONS["integer"])(states, picked, 6, 9), wanted, strict=True):
            assert found.chunks == look.chunks
            np.testing.assert_allclose(found.q, look.q, rtol=1e-5)
            np.testing.assert_allclose(found.curve, look.curve, rtol=1e-5)


@pytest.mark.parametrize("kind", ["state", "scales", "errors", "product"])
def test_what_is_not_finite_is_refused(kind: str, tmp_path: Path) -> None:
    rows = stored(np.ones((50, WIDTH), np.float32), 20, tmp_path / "rows")
    state = np.ones((1, WIDTH), np.float32)
    if kind == "state":
        state[0, 3] = np.nan
    elif kind == "product":  # more than float32 holds
        rows, state = stored(np.full((50, WIDTH), 1e30, np.float32), 20, tmp_path / "large"), state * np.float32(1e30)
    else:
        damaged = np.array(getattr(rows.shards[1], kind))
        damaged[4] = np.nan
        setattr(rows.shards[1], kind, damaged)
    with pytest.raises(ValueError, match="Q is not finite"):
        CodedScorer(rows, POSITIONS["none"])(state, [()], 1)
