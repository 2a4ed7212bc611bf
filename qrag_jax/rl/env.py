"""The MDP of section 2 on arrays: what is picked, what is left, and the token row of a state. One episode at a time; vmap over episodes."""

from __future__ import annotations

from dataclasses import dataclass

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from qrag_jax.config import DataConfig
from qrag_jax.types import PAD


@dataclass(frozen=True)
class StateLayout:
    """How a state is written: the question's row, then each picked chunk in document order, each ended by ``separator``.

    ``chunk_tokens`` and ``tokens`` (the whole row) count special tokens; ``prefix`` is how many open a chunk's own row ([CLS] in BERT)
    and are left out inside a state, ``suffix`` how many close it.
    """

    prefix: int
    separator: tuple[int, ...]
    question_tokens: int
    chunk_tokens: int
    tokens: int

    @classmethod
    def make(cls, data: DataConfig, budget: int, prefix: tuple[int, ...], suffix: tuple[int, ...]) -> StateLayout:
        full = data.question_tokens + (budget - 1) * data.state_chunk_tokens
        tokens = min(data.state_tokens, full) if data.state_tokens else full
        return cls(len(prefix), suffix, data.question_tokens, data.state_chunk_tokens, tokens)

    def tokens_at(self, t: int) -> int:
        """The most tokens a state with ``t`` picks can have: rows are compacted to the left, so the rest is padding."""
        return min(self.tokens, self.question_tokens + t * self.chunk_tokens)


def picked_mask(picked: Int[Array, " T"], count: int) -> Bool[Array, " N"]:
    """Which of ``count`` chunks are among the picks; empty places of ``picked`` hold ``count``."""
    return jnp.zeros(count, bool).at[picked].set(True, mode="drop")


def state_row(
    question_ids: Int[Array, " Lq"], chunk_rows: Int[Array, "T Lc"], taken: Bool[Array, " T"], layout: StateLayout
) -> Int[Array, " Ls"]:
    """The token row of a state, compacted to the left. ``chunk_rows`` are the picked chunks' own rows in document order.

    A chunk longer than the layout allows keeps its beginning and its separator. Tokens past ``layout.tokens`` are cut off.
    """
    room = layout.chunk_tokens - len(layout.separator)
    width = chunk_rows.shape[1]
    inside = jnp.arange(width) < (chunk_rows >= 0).sum(1, keepdims=True) - len(layout.separator)
    body = jnp.where(inside, chunk_rows, PAD)[:, layout.prefix : layout.prefix + room]
    separator = jnp.broadcast_to(jnp.asarray(layout.separator, jnp.int32), (body.shape[0], len(layout.separator)))
    chunks = jnp.where(taken[:, None], jnp.concatenate([body, separator], axis=1), PAD)
    tokens = jnp.concatenate([question_ids, chunks.reshape(-1)])
    real = tokens >= 0
    place = jnp.where(real, jnp.cumsum(real) - 1, layout.tokens)
    return jnp.full(layout.tokens, PAD, jnp.int32).at[place].set(tokens, mode="drop")
