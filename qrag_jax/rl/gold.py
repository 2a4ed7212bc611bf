"""The order in which an episode that follows the supporting chunks picks them."""

from __future__ import annotations

from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from qrag_jax.types import TaskBatch

GoldOrder = Literal["document", "policy", "bridge"]


def gold_ranks(batch: TaskBatch, order: GoldOrder) -> Int[Array, "B N"]:
    """The rank of every supporting chunk, lowest first; N for other chunks. Among equal ranks the policy chooses.

    document: the place in the document; policy: equal; bridge: the place in the order that the question needs, equal if it is unknown.
    """
    count = batch.support.shape[1]
    ranks = {"document": jnp.arange(count), "policy": 0, "bridge": batch.hop}[order]
    return jnp.where(batch.support, ranks, count)


def next_gold(available: Bool[Array, " N"], ranks: Int[Array, " N"]) -> Bool[Array, " N"]:
    """The available chunks with the lowest rank below N; all available ones if there are none."""
    left = jnp.where(available, ranks, ranks.shape[0])
    return available & ((left == left.min()) | (left.min() >= ranks.shape[0]))


def gold_only(picked: Int[Array, " T"], support: Bool[Array, " N"]) -> Int[Array, " T"]:
    """The picks with N instead of each chunk that does not support."""
    return jnp.where(support.at[picked].get(mode="fill", fill_value=False), picked, support.shape[0])
