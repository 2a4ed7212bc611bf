"""Policies: greedy, Boltzmann over the k chunks with the highest Q, or uniform. One state at a time; vmap over episodes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray


def greedy(q: Float[Array, " N"], available: Bool[Array, " N"]) -> Int[Array, ""]:
    """The available chunk with the highest Q; the first among equals."""
    return jnp.argmax(jnp.where(available, q, -jnp.inf))


def boltzmann_logits(
    q: Float[Array, " N"], available: Bool[Array, " N"], alpha: Float[Array, ""] | float, top_k: int, uniform: Bool[Array, ""] | bool
) -> Float[Array, " N"]:
    """Unnormalised log-probabilities: Q / alpha among the ``top_k`` available chunks (0: all); 0 for every available one if ``uniform``."""
    q = jnp.where(available, q, -jnp.inf)
    floor = jax.lax.top_k(q, min(top_k, q.shape[0]))[0][-1] if top_k else -jnp.inf
    return jnp.where(uniform, jnp.where(available, 0.0, -jnp.inf), jnp.where(available & (q >= floor), q / alpha, -jnp.inf))


def boltzmann(
    key: PRNGKeyArray,
    q: Float[Array, " N"],
    available: Bool[Array, " N"],
    alpha: Float[Array, ""] | float,
    top_k: int,
    uniform: Bool[Array, ""] | bool,
) -> Int[Array, ""]:
    """A chunk drawn from :func:`boltzmann_logits`."""
    return jax.random.categorical(key, boltzmann_logits(q, available, alpha, top_k, uniform))
