"""Positions of chunks for the rotary tables (eq. 6). One document at a time; vmap over episodes.

The picked chunks cut the document into intervals. A chunk's position is its interval and its place within it, not its index. Such
positions carry over from documents of 4K tokens to 10M.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from qrag_jax.config import QHeadConfig


def relative_positions(picked: Bool[Array, " N"], length: Int[Array, ""] | int, config: QHeadConfig) -> Float[Array, " N"]:
    """Position of every chunk in a document of ``length`` chunks, given the picked chunks.

    Interval j begins at its picked chunk b_j (interval 0 at the first chunk) and ends before the next picked chunk. With k = i - b_j and n
    chunks in the interval: integer resolution: j*delta + floor(span * k / (n - 1)) (the reference code's value, in exact arithmetic);
    continuous: j*delta + span * k / n (eq. 6). Values at padded chunks are meaningless.
    """
    index = jnp.arange(picked.shape[0])
    interval = jnp.cumsum(picked)
    start = lax.cummax(jnp.where(picked, index, 0))
    # Nearest picked chunk strictly to the right: shift by one, then a running minimum from the end.
    later = jnp.append(jnp.where(picked, index, length)[1:], length)
    end = jnp.minimum(lax.cummin(later, reverse=True), length)
    k, n = index - start, end - start
    if config.position_resolution == "integer":
        inside = (int(config.span) * k // jnp.maximum(n - 1, 1)).astype(jnp.float32)
    else:
        inside = config.span * k / jnp.maximum(n, 1)
    return interval * config.delta + inside


def chunk_positions(
    picked: Bool[Array, " N"], length: Int[Array, ""] | int, offset: Int[Array, ""] | int, config: QHeadConfig
) -> Float[Array, " N"]:
    """Positions under ``config.positions``: relative, absolute (the index), random (index + the episode's ``offset``) or none (zeros)."""
    if config.positions == "relative":
        return relative_positions(picked, length, config)
    if config.positions == "none":
        return jnp.zeros(picked.shape, jnp.float32)
    index = jnp.arange(picked.shape[0], dtype=jnp.float32)
    return index + offset if config.positions == "random" else index
