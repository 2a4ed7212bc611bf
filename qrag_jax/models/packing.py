"""Token rows go through an encoder in tiles: short rows share a bin, several bins make a tile, and empty tiles are skipped.

The texts of a batch differ widely in length, and the picks are not known in advance, so rows are packed on the device, the longest first.
The encoder gets the segments of each bin and keeps them apart, so a row's embedding is the same as without packing. Equal rows (a question
that starts several episodes, a text that was picked twice) are read once. Shapes are static; the number of tiles is not: the loop ends with
the last tile that holds tokens. Values and gradients equal those of unpacked rows. A gradient needs the memory of one tile.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, no_type_check

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int

from qrag_jax.types import PAD

SHORT = 64  # rows shorter than this share bins of about as many tokens
FEWEST = 4  # a bin has room for one segment per this many tokens


@dataclass(frozen=True)
class Shape:
    """Static sizes: ``tiles`` of ``bins`` bins of ``width`` tokens, each of at most ``segments`` rows. Always enough for all rows."""

    tiles: int
    bins: int
    width: int
    segments: int

    @classmethod
    def make(cls, rows: int, length: int, tile_tokens: int, packs: bool) -> Shape:
        """For ``rows`` rows of up to ``length`` tokens, in tiles of about ``tile_tokens``; one row a bin unless ``packs``."""
        together = max(1, round(SHORT / length)) if packs else 1
        width = together * length
        most = -(-rows // together)
        bins = min(most, max(1, round(tile_tokens / width)))
        return cls(-(-most // bins), bins, width, max(width // FEWEST, together) if packs else 1)


@no_type_check  # as a pytree it also carries axes, shapes and None
@struct.dataclass
class Tiles:
    """G tiles of K bins of W tokens with up to S segments each; the first ``count`` tiles hold everything.

    ``segments``: which segment of its bin a token belongs to, -1 for padding. ``slot``: where each row went, counted over all tiles, equal
    rows to the same; a row without tokens went nowhere, G K S.
    """

    ids: Int[Array, "G K W"]
    segments: Int[Array, "G K W"]
    slot: Int[Array, " R"]
    count: Int[Array, ""]


# (sizes [R] of rows, the longest first; 0 for one that needs no room) -> for each row: its bin, its first token there, its segment there.
# A bin is left only when it holds as many rows as fit unpacked, so the bins of a shape suffice.
Packer = Callable[[Array, Shape], tuple[Array, Array, Array]]


def first_fit(sizes: Int[Array, " R"], shape: Shape) -> tuple[Array, Array, Array]:
    """Each row goes into the first bin with room. It is a loop over rows: cheap on a CPU; on a GPU as slow as a small network."""

    def put(state: tuple[Array, Array], size: Array) -> tuple[tuple[Array, Array], tuple[Array, Array, Array]]:
        used, held = state
        where = jnp.argmax((used + size <= shape.width) & (held < shape.segments))
        return (used.at[where].add(size), held.at[where].add(size > 0)), (where, used[where], held[where])

    empty = jnp.zeros_like(sizes, shape=shape.tiles * shape.bins)
    return jax.lax.scan(put, (empty, empty), sizes)[1]


def next_fit(sizes: Int[Array, " R"], shape: Shape) -> tuple[Array, Array, Array]:
    """Each row goes into the last bin, or opens another. It needs some bins more than :func:`first_fit`, and log2(R) steps."""
    row = jnp.arange(len(sizes))
    tokens, rows = jnp.cumsum(sizes), jnp.cumsum(sizes > 0)
    before, number = tokens - sizes, rows - (sizes > 0)
    # If a bin begins with row i, the next one begins with the first row after which it would hold too much.
    ends = [
        jnp.searchsorted(sums, first + most, side="right", method="compare_all")
        for sums, first, most in ((tokens, before, shape.width), (rows, number, shape.segments))
    ]
    jump = jnp.minimum(*ends).astype(row.dtype)
    begins = row == 0
    for _ in range(len(sizes).bit_length()):  # each step follows twice as many jumps
        begins = begins.at[jump].max(begins, mode="drop")
        jump = jump.at[jump].get(mode="fill", fill_value=len(sizes))
    first = jax.lax.cummax(jnp.where(begins, row, 0))
    return jnp.cumsum(begins) - 1, before - before[first], number - number[first]


def pack(sizes: Int[Array, " R"], shape: Shape) -> tuple[Array, Array, Array]:
    """What suits the device for which this is compiled."""
    return jax.lax.platform_dependent(sizes, cpu=partial(first_fit, shape=shape), default=partial(next_fit, shape=shape))


def make_tiles(ids: Int[Array, "R L"], shape: Shape, pack: Packer = pack) -> Tiles:
    """Packs rows. Equal ones share a place.

    Sorting makes them neighbours unless another row has the same length and checksum; then they are read twice.
    """
    lengths = (ids >= 0).sum(1)
    bins = shape.tiles * shape.bins
    checksum = (ids * jnp.arange(1, ids.shape[1] + 1)).sum(1)
    order = jnp.lexsort((checksum, -lengths))
    ordered = ids[order]
    new = jnp.ones_like(lengths, bool).at[1:].set((ordered[1:] != ordered[:-1]).any(1))

    sizes = jnp.where(new, lengths[order], 0)
    found = pack(sizes, shape)
    same = jax.lax.cummax(jnp.where(new, jnp.arange(len(lengths)), 0))
    where, start, segment = (jnp.zeros_like(lengths).at[order].set(x[same]) for x in found)

    real = ids >= 0
    target = where[:, None] * shape.width + start[:, None] + jnp.cumsum(real, axis=1) - 1
    target = jnp.where(real, target, bins * shape.width)

    def lay(values: Array) -> Array:
        flat = jnp.full(bins * shape.width, PAD, jnp.int32).at[target].set(values, mode="drop")
        return flat.reshape(shape.tiles, shape.bins, shape.width)

    slot = jnp.where(lengths > 0, where * shape.segments + segment, bins * shape.segments)
    used = jnp.where(sizes > 0, found[0] + 1, 0).max()
    count = -(-used // shape.bins)
    return Tiles(lay(ids), lay(jnp.broadcast_to(segment[:, None], ids.shape)), slot, count)


# (ids [K, W], segments [K, W], number of the tile) -> embeddings of the segments [K, S, D].
EmbedTile = Callable[[Array, Array, Array], Array]


def embed_tiles(embed: EmbedTile, ids: Int[Array, "R L"], shape: Shape) -> Float[Array, "R D"]:
    """Embeddings of token rows; zeros for a row without tokens. Not to be differentiated: see :func:`tiles_vjp`."""
    tiles = make_tiles(ids, shape)
    one = jax.eval_shape(embed, tiles.ids[0], tiles.segments[0], tiles.count)

    def body(i: Array, vectors: Array) -> Array:
        return jax.lax.dynamic_update_index_in_dim(vectors, embed(tiles.ids[i], tiles.segments[i], i), i, 0)

    # Multiplied by the count so that, under shard_map, the carry varies over the devices as the tiles do.
    vectors = jnp.zeros((shape.tiles, *one.shape), one.dtype) * tiles.count
    vectors = jax.lax.fori_loop(0, tiles.count, body, vectors)
    return jnp.take(vectors.reshape(-1, one.shape[-1]), tiles.slot, axis=0, mode="fill", fill_value=0)


def tiles_vjp(
    embed: Callable[[Any, Array, Array, Array, Array], Array],
    params: Any,
    table: Float[Array, "V E"],
    ids: Int[Array, "R L"],
    cotangents: Float[Array, "R D"],
    shape: Shape,
) -> tuple[Any, Float[Array, "V E"]]:
    """Gradient of sum(cotangents * embeddings) in ``params`` and in ``table``, the word vectors; a forward pass is part of it.

    ``embed(params, words, ids, segments, number)`` embeds a tile whose ids are places in ``words`` [K W, E]: so the gradient of the table,
    which is mostly zeros, is written once instead of once per tile.
    """
    tiles = make_tiles(ids, shape)
    size = shape.bins * shape.width
    per_slot = jnp.zeros((shape.tiles * shape.bins * shape.segments, cotangents.shape[-1]), cotangents.dtype)
    per_slot = per_slot.at[tiles.slot].add(cotangents, mode="drop").reshape(shape.tiles, shape.bins, shape.segments, -1)

    def body(i: Array, total: tuple[Any, Array]) -> tuple[Any, Array]:
        grads, words = total
        here = tiles.ids[i]
        local = jnp.where(here >= 0, jnp.arange(size).reshape(here.shape), PAD)
        _, vjp = jax.vjp(lambda p, w: embed(p, w, local, tiles.segments[i], i), params, table[jnp.maximum(here, 0).reshape(-1)])
        more, mine = vjp(per_slot[i])
        return jax.tree.map(jnp.add, grads, more), jax.lax.dynamic_update_index_in_dim(words, mine.astype(words.dtype), i, 0)

    # Summed in float32, also over parameters that come in another type.
    zeros = partial(jnp.zeros_like, dtype=jnp.float32)
    words = jnp.zeros((shape.tiles, size, table.shape[1]), jnp.float32) * tiles.count
    grads, words = jax.lax.fori_loop(0, tiles.count, body, (jax.tree.map(zeros, params), words))
    flat = jnp.where(tiles.ids >= 0, tiles.ids, table.shape[0]).reshape(-1)
    return grads, zeros(table).at[flat].add(words.reshape(flat.shape[0], -1), mode="drop")
