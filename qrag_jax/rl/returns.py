"""Soft values and lambda-returns. One state, one episode at a time; vmap over episodes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from qrag_jax.config import RLConfig


def soft_value(
    q_halves: Float[Array, "N H"], available: Bool[Array, " N"], alpha: Float[Array, ""] | float, config: RLConfig
) -> Float[Array, ""]:
    """V(s) = sum over halves of alpha * log sum_a exp(q_h(s, a) / alpha), over each half's ``value_top_k`` best AVAILABLE actions.

    ``config.soft`` False: the best action's value instead of the soft maximum. ``config.reference_soft_value``: the best k actions are
    chosen first and masked afterwards, as in the reference code (a half in which none of them is available counts as 0). Without any
    available action, V is 0.
    """
    values = q_halves.T
    masked = jnp.where(available, values, -jnp.inf)
    k = min(config.value_top_k or values.shape[1], values.shape[1])
    if config.reference_soft_value:
        _, best = jax.lax.top_k(values, k)
        top = jnp.take_along_axis(masked, best, axis=1)
    else:
        top = jax.lax.top_k(masked, k)[0]
    value = alpha * jax.nn.logsumexp(top / alpha, axis=1) if config.soft else top.max(axis=1)
    return jnp.where(jnp.isfinite(value), value, 0.0).sum()


def soft_gap(q_halves: Float[Array, "N H"], available: Bool[Array, " N"], value: Float[Array, ""]) -> Float[Array, ""]:
    """How far the ``value`` of :func:`soft_value` is above the best available action's Q, the sum of its halves; 0 without any."""
    best = jnp.where(available, q_halves.sum(-1), -jnp.inf).max()
    return jnp.where(jnp.isfinite(best), value - best, 0.0)


def lambda_returns(r_t: Float[Array, " T"], discount_t: Float[Array, " T"], v_tp1: Float[Array, " T"], lam: float) -> Float[Array, " T"]:
    """G_t = r_t + discount_t * ((1 - lam) * V(s_{t+1}) + lam * G_{t+1}), seeded with G_T = V(s_T). ``discount_t``: 0 at the end."""

    def step(g_tp1: Array, now: tuple[Array, Array, Array]) -> tuple[Array, Array]:
        r, discount, v = now
        g = r + discount * ((1 - lam) * v + lam * g_tp1)
        return g, g

    return jax.lax.scan(step, v_tp1[-1], (r_t, discount_t, v_tp1), reverse=True)[1]


def reference_lambda_returns(
    r_t: Float[Array, " T1"], discount_t: Float[Array, " T1"], v_tp1: Float[Array, " T1"], lam: float
) -> Float[Array, " T"]:
    """The reference code's targets for all but the last step: every bootstrap is one step late, V(s_{t+2}) instead of V(s_{t+1})."""
    return lambda_returns(r_t[:-1], discount_t[:-1], v_tp1[1:], lam)
