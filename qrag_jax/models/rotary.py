"""Rotary position embedding inside attention (Su et al. 2021, arXiv 2104.09864), in the half-split layout of Hugging Face checkpoints.

Q-RAG's value function uses another rotation, of neighbouring coordinates: see ``qrag_jax.rl.qhead``.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from qrag_jax.types import Array


def places(mask: Bool[Array, "R L"]) -> Int[Array, "R L"]:
    """Position of each token among the real tokens of its row: padding and gaps do not count."""
    return jnp.maximum(jnp.cumsum(mask, axis=-1) - 1, 0)


def segment_places(ids: Int[Array, "R L"], segments: Int[Array, "R L"] | None) -> tuple[Bool[Array, "R #L L"], Int[Array, "R L"]]:
    """What each token sees, for attention in both directions, and its position: the whole row's real tokens, or those of its segment
    where rows are packed (``segments`` -1: padding)."""
    if segments is None:
        real = ids >= 0
        return real[:, None, :], places(real)
    same = (segments[:, :, None] == segments[:, None, :]) & (segments >= 0)[:, None, :]
    return same, jnp.maximum(jnp.tril(same).sum(-1) - 1, 0)


def cos_sin(positions: Int[Array, "R L"], frequencies: Float[Array, " H2"]) -> tuple[Float[Array, "R L 1 H2"], Float[Array, "R L 1 H2"]]:
    """Cosine and sine of position x frequency, float32 (angles lose their meaning in bfloat16), broadcastable over heads."""
    angle = positions[..., None, None].astype(jnp.float32) * frequencies
    return jnp.cos(angle), jnp.sin(angle)


def rotate(x: Float[Array, "R L heads H"], cos: Float[Array, "R L 1 H2"], sin: Float[Array, "R L 1 H2"]) -> Float[Array, "R L heads H"]:
    """Rotates the coordinate pairs (x_i, x_{i + H/2})."""
    x0, x1 = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([x0 * cos - x1 * sin, x1 * cos + x0 * sin], axis=-1).astype(x.dtype)
