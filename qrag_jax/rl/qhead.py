"""Q(s, c) = <E_s(s), R(p) E_a(c)>: rotary inner products, as one value or as two halves (reference code)."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float

from qrag_jax.config import QHeadConfig


def frequencies(width: int, config: QHeadConfig) -> Float[Array, " W"]:
    """Angle per unit of position, for each coordinate pair of one half: theta^(-2k/width), k = 0 .. width/2 - 1."""
    return config.theta ** (-jnp.arange(0, width, 2, dtype=jnp.float32) / width)


def _pairs(x: Float[Array, "... D"], halves: int) -> tuple[Float[Array, "... H W"], Float[Array, "... H W"]]:
    """Interleaved coordinate pairs (x0, x1), (x2, x3) ... of each half."""
    x = x.reshape(*x.shape[:-1], halves, x.shape[-1] // halves // 2, 2)
    return x[..., 0], x[..., 1]


def rotate(x: Float[Array, "... D"], position: Float[Array, "..."], config: QHeadConfig) -> Float[Array, "... D"]:
    """R(position) x. Both halves use the same frequencies. <s, R(p) e> = <R(-p) s, e>."""
    angle = position[..., None, None] * frequencies(x.shape[-1] // config.halves, config)
    x0, x1 = _pairs(x, config.halves)
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    return jnp.stack([x0 * cos - x1 * sin, x0 * sin + x1 * cos], axis=-1).reshape(x.shape)


def q_halves(
    state: Float[Array, "*#lead D"], action: Float[Array, "*lead D"], position: Float[Array, "*lead"], config: QHeadConfig
) -> Float[Array, "*lead H"]:
    """The value of each half; Q is their sum. ``state`` broadcasts against ``action``: [D] against [N, D], or [..., D] against [..., D].

    Positions "none" skip the rotation (R(0) is the identity).
    """
    s0, s1 = _pairs(state, config.halves)
    a0, a1 = _pairs(action, config.halves)
    along = s0 * a0 + s1 * a1
    if config.positions == "none":
        return along.sum(-1)
    angle = position[..., None, None] * frequencies(action.shape[-1] // config.halves, config)
    return (jnp.cos(angle) * along + jnp.sin(angle) * (a0 * s1 - a1 * s0)).sum(-1)
