"""The MDP of section 2 on arrays: picked and available chunks, and the token row of a state. One episode at a time; vmap over episodes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from qrag_jax.config import DataConfig
from qrag_jax.types import PAD


@runtime_checkable
class SpecialTokens(Protocol):
    """The tokens that a tokenizer puts around a text, and the tokens that a space at its end adds."""

    prefix: tuple[int, ...]
    suffix: tuple[int, ...]
    space: tuple[int, ...]


@dataclass(frozen=True)
class StateLayout:
    """The layout of a state: the question's row, then each picked chunk, each followed by ``separator``.

    ``order`` "document" sorts the chunks by their place in the document; "picked" keeps the order of the picks. ``space`` ends every text
    except the last (parity; usually empty).

    ``chunk_tokens`` and ``tokens`` (the whole row) include special tokens. ``prefix``: the number of special tokens at the start of a
    chunk's own row ([CLS] in BERT), which are left out inside a state; ``suffix``: the number at its end.
    """

    prefix: int
    separator: tuple[int, ...]
    question_tokens: int
    chunk_tokens: int
    tokens: int
    order: Literal["document", "picked"] = "document"
    space: tuple[int, ...] = ()

    @classmethod
    def make(cls, data: DataConfig, budget: int, tokenizer: SpecialTokens) -> StateLayout:
        full = data.question_tokens + (budget - 1) * data.state_chunk_tokens
        tokens = min(data.state_tokens, full) if data.state_tokens else full
        space = tokenizer.space if data.reference_state_spaces else ()
        return cls(len(tokenizer.prefix), tokenizer.suffix, data.question_tokens, data.state_chunk_tokens, tokens, data.state_order, space)

    def tokens_at(self, t: int) -> int:
        """The largest number of tokens in a state with ``t`` picks. Rows are compacted to the left, so the rest is padding."""
        return min(self.tokens, self.question_tokens + t * self.chunk_tokens)


def picked_mask(picked: Int[Array, " T"], count: int) -> Bool[Array, " N"]:
    """True for those of ``count`` chunks that are picked; empty places of ``picked`` hold ``count``."""
    return jnp.zeros(count, bool).at[picked].set(True, mode="drop")


def state_row(
    question_ids: Int[Array, " Lq"], chunk_rows: Int[Array, "T Lc"], taken: Bool[Array, " T"], layout: StateLayout
) -> Int[Array, " Ls"]:
    """The token row of a state, compacted to the left. ``chunk_rows`` are the picked chunks' own rows in the layout's order.

    A chunk that is longer than the layout allows keeps its beginning and its separator. Tokens after ``layout.tokens`` are cut off.
    """
    closing = len(layout.separator)
    body = _body(chunk_rows, closing)[:, layout.prefix : layout.prefix + layout.chunk_tokens - closing]
    separator = jnp.broadcast_to(jnp.asarray(layout.separator, jnp.int32), (body.shape[0], closing))
    if layout.space:
        left = taken.sum() - jnp.cumsum(taken)  # number of later picks after each pick
        question = _body(question_ids[None], closing)[:, : layout.question_tokens - closing]
        question = jnp.concatenate([question, _spaces(question, layout.space, taken.any()[None])], axis=1)
        question_ids = jnp.concatenate([question[0], jnp.asarray(layout.separator, jnp.int32)])
        body = jnp.concatenate([body, _spaces(body, layout.space, left > 0)], axis=1)
    chunks = jnp.where(taken[:, None], jnp.concatenate([body, separator], axis=1), PAD)
    tokens = jnp.concatenate([question_ids, chunks.reshape(-1)])
    real = tokens >= 0
    place = jnp.where(real, jnp.cumsum(real) - 1, layout.tokens)
    return jnp.full(layout.tokens, PAD, jnp.int32).at[place].set(tokens, mode="drop")


def _body(rows: Int[Array, "R L"], closing: int) -> Int[Array, "R L"]:
    """Token rows without the ``closing`` special tokens at their ends."""
    inside = jnp.arange(rows.shape[1]) < (rows >= 0).sum(1, keepdims=True) - closing
    return jnp.where(inside, rows, PAD)


def _spaces(body: Int[Array, "R L"], space: tuple[int, ...], wanted: Bool[Array, " R"]) -> Int[Array, "R S"]:
    """The tokens of a closing space for each row with ``wanted``, up to the row's length L."""
    place = (body >= 0).sum(1, keepdims=True) + jnp.arange(len(space))
    return jnp.where(wanted[:, None] & (place < body.shape[1]), jnp.asarray(space, jnp.int32), PAD)
