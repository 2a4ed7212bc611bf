"""Generates text token by token: one prefill of the prompts, then a loop over a static cache, all in one compiled function."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array as JaxArray
from jaxtyping import Bool, Float, Int, Key

from qrag_jax.models.decoder import Decoder
from qrag_jax.types import PAD, Array

# Compiled prompt lengths grow by factors of 3/2 and 4/3 in turn, so above the shortest at most a third of a row is padding.
SHORTEST = 64


class Generated(NamedTuple):
    """``ids`` [B, max_new_tokens]: the answers, padded with ``PAD``. ``stopped``: ended by a stop token, which is left out."""

    ids: Int[Array, "B T"]
    stopped: Bool[Array, " B"]


def prompt_bucket(length: int) -> int:
    """The smallest compiled length that holds a prompt: 64, 96, 128, 192, 256, 384, ..."""
    size = SHORTEST
    while size < length:
        size = size * 3 // 2 if size & (size - 1) == 0 else size * 4 // 3
    return size


def pad_prompts(prompts: Sequence[Sequence[int]], rows: int, length: int) -> np.ndarray:
    """[rows, length] token rows, padded with ``PAD`` on the left; rows after the last prompt are all padding."""
    out = np.full((rows, length), PAD, np.int32)
    for row, prompt in zip(out, prompts, strict=False):
        row[length - len(prompt) :] = prompt
    return out


@partial(jax.jit, static_argnames=("model", "max_new_tokens", "temperature", "top_p"))
def generate(
    model: Decoder,
    params: dict[str, Any],
    token_rows: Int[Array, "B P"],
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    top_p: float = 1.0,
    stop_ids: Int[Array, "... K"],
    key: Key[JaxArray, "..."],
) -> Generated:
    """Continues B prompts, padded with ``PAD`` on either side, by at most ``max_new_tokens`` tokens each.

    ``temperature`` 0 takes the most likely token; otherwise a token is drawn from softmax(logits / temperature), restricted to the fewest
    tokens that hold ``top_p`` of the probability. A row ends at any of ``stop_ids`` ([K] for all rows, or [B, K]); the loop ends with the
    last row. ``key``: one key, or one per row; the draws of a row depend only on its key and the step. A row of padding gives no tokens.
    Compiles once for each B, P and ``max_new_tokens``. Raises ValueError on a setting out of range.
    """
    _check(max_new_tokens, temperature, top_p)
    rows, length = token_rows.shape
    slots = length + max_new_tokens
    apply = partial(model.apply, {"params": params})
    keys = key if key.ndim else jax.random.split(key, rows)

    draw = lambda logits, step: _draw(logits, step, keys, temperature, top_p)
    stops = lambda token: jnp.any(token[:, None] == stop_ids, axis=-1)
    mask = token_rows >= 0
    real = jnp.pad(mask, ((0, 0), (0, max_new_tokens)))
    logits, prompt_cache = apply(token_rows, method="prefill")
    cache = jax.tree.map(lambda part: jnp.pad(part, ((0, 0), (0, 0), (0, max_new_tokens), (0, 0))), prompt_cache)
    token = draw(logits, 0)
    alive = mask.any(axis=1) & ~stops(token)
    out = jnp.full((rows, max_new_tokens), PAD, jnp.int32).at[:, 0].set(jnp.where(alive, token, PAD))
    start = mask.sum(axis=1)

    def unfinished(state: Any) -> Bool[Array, ""]:
        step, _, alive, *_ = state
        return (step + 1 < max_new_tokens) & alive.any()

    def advance(state: Any) -> Any:
        step, token, alive, out, cache = state
        seen = real | ((jnp.arange(slots) >= length) & (jnp.arange(slots) <= length + step))
        logits, cache = apply(token, start + step, seen, cache, length + step, method="step")
        token = draw(logits, step + 1)
        alive = alive & ~stops(token)
        return step + 1, token, alive, out.at[:, step + 1].set(jnp.where(alive, token, PAD)), cache

    _, _, alive, out, _ = jax.lax.while_loop(unfinished, advance, (jnp.asarray(0), token, alive, out, cache))
    return Generated(out, mask.any(axis=1) & ~alive)


def generate_stream(
    model: Decoder,
    params: dict[str, Any],
    token_row: Int[np.ndarray, "1 P"],
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    top_p: float = 1.0,
    stop_ids: Int[np.ndarray, " K"],
    key: Key[JaxArray, "1"],
) -> Iterator[int]:
    """Yields the tokens of :func:`generate` for one prompt as they are made: each costs a call of the network from the host."""
    _check(max_new_tokens, temperature, top_p)
    settings = {"model": model, "temperature": temperature, "top_p": top_p}
    token, cache = _first(params, token_row, key, max_new_tokens=max_new_tokens, **settings)
    for step in range(max_new_tokens):
        if int(token[0]) in stop_ids:
            return
        yield int(token[0])
        if step + 1 < max_new_tokens:
            token, cache = _next(params, token_row, key, token, step, cache, **settings)


@partial(jax.jit, static_argnames=("model", "max_new_tokens", "temperature", "top_p"))
def _first(
    params: dict[str, Any],
    token_row: Int[Array, "1 P"],
    key: Key[JaxArray, "1"],
    *,
    model: Decoder,
    max_new_tokens: int,
    temperature: float,
    top_p: float,
) -> tuple[Int[Array, " 1"], Any]:
    """The first token after a prompt, and the cache with room for the others."""
    logits, cache = model.apply({"params": params}, token_row, method="prefill")
    cache = jax.tree.map(lambda part: jnp.pad(part, ((0, 0), (0, 0), (0, max_new_tokens), (0, 0))), cache)
    return _draw(logits, 0, key, temperature, top_p), cache


@partial(jax.jit, static_argnames=("model", "temperature", "top_p"), donate_argnames="cache")
def _next(
    params: dict[str, Any],
    token_row: Int[Array, "1 P"],
    key: Key[JaxArray, "1"],
    token: Int[Array, " 1"],
    step: Int[Array, ""] | int,
    cache: Any,
    *,
    model: Decoder,
    temperature: float,
    top_p: float,
) -> tuple[Int[Array, " 1"], Any]:
    """The token after ``token``, which was the one of ``step``."""
    mask, length = token_row >= 0, token_row.shape[1]
    slots = jax.tree.leaves(cache)[0].shape[2]
    seen = jnp.pad(mask, ((0, 0), (0, slots - length))) | ((jnp.arange(slots) >= length) & (jnp.arange(slots) <= length + step))
    logits, cache = model.apply({"params": params}, token, mask.sum(axis=1) + step, seen, cache, length + step, method="step")
    return _draw(logits, step + 1, key, temperature, top_p), cache


def _draw(
    logits: Float[Array, "B V"], step: Int[Array, ""] | int, keys: Key[JaxArray, " B"], temperature: float, top_p: float
) -> Int[Array, " B"]:
    if temperature == 0:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    cut = nucleus(logits / temperature, top_p)
    return jax.vmap(lambda key, row: jax.random.categorical(jax.random.fold_in(key, step), row))(keys, cut).astype(jnp.int32)


def nucleus(logits: Float[Array, "B V"], top_p: float) -> Float[Array, "B V"]:
    """Logits, set to -inf outside the fewest most likely tokens that hold ``top_p`` of the mass (Holtzman et al. 2020, section 3.1)."""
    if top_p == 1:
        return logits
    ordered = -jnp.sort(-logits, axis=-1)
    chances = jax.nn.softmax(ordered, axis=-1)
    kept = jnp.cumsum(chances, axis=-1) - chances < top_p
    least = jnp.min(jnp.where(kept, ordered, jnp.inf), axis=-1, keepdims=True)
    return jnp.where(logits >= least, logits, -jnp.inf)


def _check(max_new_tokens: int, temperature: float, top_p: float) -> None:
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens = {max_new_tokens}: must be at least 1")
    if temperature < 0:
        raise ValueError(f"temperature = {temperature}: must be 0 (greedy) or above")
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p = {top_p}: must be above 0 and at most 1")
