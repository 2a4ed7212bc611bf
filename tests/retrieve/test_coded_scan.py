"""The scan of int8 codes with float32 rows: its picks are those of float64, for every kind of rows, positions and filters."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qrag_jax.config import QHeadConfig
from qrag_jax.retrieve.coded_rows import CodedRows
from qrag_jax.retrieve.coded_scan import CodedScorer
from qrag_jax.retrieve.scan import Hidden, rotate_state, runs, stretches
from qrag_jax.retrieve.storage import Shard

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
@settings(max_examples=60, deadline=None)
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
