"""Rewards of a finished episode. One episode at a time; vmap over episodes."""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

Reward = Callable[[Int[Array, " T"], Bool[Array, " N"]], Float[Array, " T"]]
"""(picks in order, N for an empty one; which chunks support) -> the reward of each pick. It is compiled with the update, so it must consist
of JAX's operations."""


def support_reward(picked: Int[Array, " T"], support: Bool[Array, " N"], penalize_extra_steps: bool = False) -> Float[Array, " T"]:
    """1 at the step that completes the supporting chunks (or 0.5 + 0.5 |F*| / |picked|), 0 at every other step.

    An episode without supporting chunks gets no reward, and neither does an empty pick (N).
    """
    total = support.sum()
    supports = support.at[picked].get(mode="fill", fill_value=False)
    found = jnp.cumsum(supports)
    completes = supports & (found == total) & (total > 0)
    steps = jnp.arange(1, picked.shape[0] + 1)
    value = 0.5 + 0.5 * total / steps if penalize_extra_steps else 1.0
    return jnp.where(completes, value, 0.0)
