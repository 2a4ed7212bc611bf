"""Packed tiles: the embeddings and gradients of rows that are read alone, from few tokens of padding."""

from __future__ import annotations

import dataclasses
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qrag_jax.models.bert import BertConfig
from qrag_jax.models.blocks import attend
from qrag_jax.models.embedder import Embedder, RowEmbedder
from qrag_jax.models.gte import GteConfig
from qrag_jax.models.packing import Shape, first_fit, make_tiles, next_fit
from qrag_jax.models.qwen3 import Qwen3Config
from qrag_jax.types import PAD

SIZES = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
BACKBONES = {
    "bert": BertConfig(**SIZES, max_position_embeddings=40, hidden_dropout_prob=0.0),
    "gte": GteConfig(**SIZES, max_position_embeddings=40, hidden_dropout_prob=0.0),
    "qwen3": Qwen3Config(**SIZES, max_position_embeddings=40, num_key_value_heads=1, head_dim=8),  # is not packed, but tiled
}
LENGTHS = (0, 1, 3, 20, 9, 20, 2, 2, 0, 7, 12, 5, 5, 20, 1)


SOME_TWICE = jnp.array([*range(11), 0, 3, 3, 8])  # of the rows of LENGTHS that are not empty


def rows(lengths, length=20):
    draw = np.random.default_rng(0)
    return jnp.asarray([[*draw.integers(0, 50, size), *[PAD] * (length - size)] for size in lengths], jnp.int32)


def test_first_fit_decreasing_by_hand():
    # Bins of 2 x 8 tokens, one a tile. Longest first: 8 and 7 fill bin 0 to 15, 6 opens bin 1, 2 does not fit 0 and follows it, 1 closes 0.
    shape = Shape(tiles=3, bins=1, width=16, segments=4)
    ids = rows((2, 8, 0, 7, 1, 6), length=8)
    tiles = make_tiles(ids, shape)
    assert tiles.count == 2
    assert tiles.slot.tolist() == [4 + 1, 0, 12, 1, 2, 4]
    np.testing.assert_array_equal(tiles.ids[0, 0], [*ids[1], *ids[3][:7], *ids[4][:1]])
    np.testing.assert_array_equal(tiles.segments[0, 0], [0] * 8 + [1] * 7 + [2])
    np.testing.assert_array_equal(tiles.ids[1, 0], [*ids[5][:6], *ids[0][:2], *[PAD] * 8])


def test_next_fit_by_hand():
    # As above, but 2 is too much for bin 1 after it holds 6 and 8 more: rows never go back to bin 0.
    shape = Shape(tiles=3, bins=1, width=16, segments=4)
    tiles = make_tiles(rows((2, 8, 0, 7, 1, 6), length=8), shape, next_fit)
    assert tiles.count == 2
    assert tiles.slot.tolist() == [4 + 1, 0, 12, 1, 4 + 2, 4]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 8), min_size=24, max_size=24), st.sampled_from([2, 3, 24]))
def test_next_fit_is_a_loop_over_rows(sizes, segments):
    sizes = sorted(sizes, reverse=True)
    expected, bin_, used, held = [], 0, 0, 0
    for size in sizes:
        if used + size > 16 or held + (size > 0) > segments:
            bin_, used, held = bin_ + 1, 0, 0
        expected.append((bin_, used, held))
        used, held = used + size, held + (size > 0)
    found = next_fit_jit(jnp.asarray(sizes), Shape(12, 1, 16, segments))
    assert list(zip(*map(np.ndarray.tolist, map(np.asarray, found)), strict=True)) == expected


next_fit_jit = jax.jit(next_fit, static_argnums=1)
place = jax.jit(make_tiles, static_argnums=(1, 2))


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.integers(0, 20), min_size=30, max_size=30),
    st.sampled_from([1, 70, 1000]),
    st.booleans(),
    st.sampled_from([first_fit, next_fit]),
)
def test_every_row_finds_a_place_whole_and_only_equal_ones_share_it(lengths, tile_tokens, packs, pack):
    ids = np.asarray(rows(lengths))
    shape = Shape.make(*ids.shape, tile_tokens, packs)
    tiles = jax.tree.map(np.asarray, place(ids, shape, pack))
    assert (tiles.ids[tiles.count :] == PAD).all()
    places = {(slot, tuple(row)) for row, slot, size in zip(ids, tiles.slot, lengths, strict=True) if size}
    assert len(places) == len({slot for slot, _ in places})
    for row, slot, size in zip(ids, tiles.slot, lengths, strict=True):
        if not size:
            assert slot == shape.tiles * shape.bins * shape.segments
            continue
        bin_, segment = divmod(int(slot), shape.segments)
        here = (tiles.segments == segment).reshape(-1, shape.width)[bin_]
        np.testing.assert_array_equal(tiles.ids.reshape(-1, shape.width)[bin_][here], row[:size])


def test_equal_rows_are_read_once():
    ids = rows((5, 8, 3, 7), length=8)
    shape = Shape(tiles=4, bins=1, width=16, segments=4)
    alone, tiles = make_tiles(ids, shape), make_tiles(ids[jnp.array([3, 0, 1, 0, 2, 3, 2, 3])], shape)
    np.testing.assert_array_equal(tiles.ids, alone.ids)
    np.testing.assert_array_equal(tiles.segments, alone.segments)
    np.testing.assert_array_equal(tiles.slot, alone.slot[jnp.array([3, 0, 1, 0, 2, 3, 2, 3])])


def test_another_row_with_their_checksum_parts_equal_ones():
    ids = jnp.asarray([[4, 1, PAD], [2, 2, PAD], [4, 1, PAD], [4, 1, PAD]], jnp.int32)
    tiles = make_tiles(ids, Shape(tiles=1, bins=1, width=8, segments=4))
    assert tiles.slot.tolist() == [0, 1, 2, 2]
    np.testing.assert_array_equal(tiles.ids[0, 0], [4, 1, 2, 2, 4, 1, PAD, PAD])


def test_short_rows_share_bins():
    shape = Shape.make(96, 24, 64, True)
    for pack in (first_fit, next_fit):
        tiles = make_tiles(rows([8] * 96, length=24), shape, pack)
        assert tiles.count * shape.bins * shape.width <= 1.15 * 96 * 8


@cache
def embedder(name: str, pooling: str, tied: bool):
    model = Embedder(BACKBONES[name], tied=tied, pooling=pooling, divisor=2.0)
    params = model.init(jax.random.key(1), rows((4,)), rows((4,)))
    return model, params


CASES = [("bert", "mean", False), ("bert", "last", True), ("gte", "cls", False), ("qwen3", "last", False)]


@pytest.mark.parametrize(("name", "pooling", "tied"), CASES)
@pytest.mark.parametrize("tile_tokens", [1, 64, 10_000])
def test_embeddings_are_those_of_rows_alone(name, pooling, tied, tile_tokens):
    model, params = embedder(name, pooling, tied)
    ids = jnp.concatenate([rows(LENGTHS), rows(LENGTHS)[::2]])
    found = jax.jit(RowEmbedder(model, "embed_states", tile_tokens))(params, ids)
    expected = jax.jit(lambda ids: model.apply(params, ids, method="embed_states"))(ids)
    np.testing.assert_allclose(found, jnp.where((ids >= 0).any(1, keepdims=True), expected, 0), atol=1e-6)


@pytest.mark.parametrize(("name", "pooling", "tied"), CASES)
def test_gradients_are_those_of_rows_alone(name, pooling, tied):
    model, params = embedder(name, pooling, tied)
    ids = rows([size for size in LENGTHS if size])[SOME_TWICE]
    cotangents = jax.random.normal(jax.random.key(2), (len(ids), 16))
    loss = lambda params: (model.apply(params, ids, method="embed_actions") * cotangents).sum()
    expected = jax.jit(jax.grad(loss))(params)["params"]
    tiled = RowEmbedder(model, "embed_actions", 64)
    found = jax.jit(tiled.gradient)(params, ids, cotangents)
    assert set(found) == {tiled.name}
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5, rtol=1e-4), found[tiled.name], expected[tiled.name])


def test_dropout_is_the_same_forward_and_backward():
    # The gradient of |e|^2 / 2 has the embeddings as cotangents. A step against it makes the loss under the same dropout smaller.
    model, params = embedder("bert", "mean", False)
    model = model.clone(config=dataclasses.replace(model.config, hidden_dropout_prob=0.5))
    ids, key = rows([size for size in LENGTHS if size]), jax.random.key(3)
    tiled = RowEmbedder(model, "embed_states", 64)
    embed = jax.jit(tiled)
    before = embed(params, ids, key)
    assert np.abs(before - embed(params, ids)).max() > 1e-3
    grads = jax.jit(tiled.gradient)(params, ids, before, key)
    size = sum(jnp.square(leaf).sum() for leaf in jax.tree.leaves(grads))
    moved = {"params": params["params"] | jax.tree.map(lambda p, g: p - 1e-3 * g, {tiled.name: params["params"][tiled.name]}, grads)}
    change = (jnp.square(embed(moved, ids, key)).sum() - jnp.square(before).sum()) / 2
    assert float(change) == pytest.approx(-1e-3 * float(size), rel=0.1)


@pytest.mark.parametrize("name", ["bert", "gte"])
@pytest.mark.parametrize("tile_tokens", [1, 64])
def test_fused_attention_gives_the_same_values_and_gradients(name, tile_tokens):
    # One row a bin, with padding; and packed bins.
    model, params = embedder(name, "mean", False)
    ids = rows(LENGTHS)
    cotangents = jax.random.normal(jax.random.key(2), (len(ids), 16))
    plain, fused = (RowEmbedder(model.clone(attention=how), "embed_states", tile_tokens) for how in ("plain", "fused"))
    expected, found = (jax.jit(lambda p, e=e: (e(p, ids), e.gradient(p, ids, cotangents)))(params) for e in (plain, fused))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-5), found, expected)


@pytest.mark.parametrize("how", ["plain", "fused"])
def test_a_token_that_sees_nothing_stays_finite(how):
    draw = jax.random.normal(jax.random.key(0), (3, 1, 4, 2, 8))
    mask = jnp.zeros((1, 4, 4), bool).at[:, :2, :2].set(True)  # the last two tokens are padding
    total = lambda x: jnp.square(attend(*x, mask, how)).sum()
    value, gradient = jax.jit(jax.value_and_grad(total))(draw)
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()
