"""The layer that Llama, Qwen2 and Qwen3 share: pre-RMSNorm, grouped-query attention with rotary positions, SwiGLU.

Keys and values are never repeated for the query heads of their group. With a cache the layer attends to the earlier tokens in it; without
one it computes the whole sequence.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from qrag_jax.models.blocks import INIT, NEGATIVE
from qrag_jax.models.rotary import rotate
from qrag_jax.models.weights import Weight, dense, norm
from qrag_jax.types import Array

# Beyond two blocks of queries, attention runs block by block: its weights need [R, heads, BLOCK, S] instead of [R, heads, L, S].
BLOCK = 256
# Heads before slots, as the batched products of attention read them. The other order would transpose the cache at every step.
KeyValue = tuple[Float[Array, "R K S H"], Float[Array, "R K S H"]]


@dataclass(frozen=True)
class LayerConfig:
    """The sizes and switches of one layer."""

    heads: int
    kv_heads: int
    head_dim: int
    mlp_width: int
    norm_eps: float
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False  # RMSNorm of each head's query and key
    dropout: float = 0.0


def attend_causally(
    query: Float[Array, "R L heads H"],
    key: Float[Array, "R K S H"],
    value: Float[Array, "R K S H"],
    real: Bool[Array, "R S"],
    first: Int[Array, ""] | int,
) -> Float[Array, "R L heads H"]:
    """Causal grouped-query attention: query l is in slot ``first`` + l and sees the ``real`` slots up to its own. Softmax in float32."""
    rows, length, heads, width = query.shape
    _, kv_heads, slots, _ = key.shape

    def block(query: Array, first: Array | int) -> Array:
        count = query.shape[1]
        sees = real[:, None, :] & (jnp.arange(slots) <= first + jnp.arange(count)[:, None])
        # The queries of a group are rows of one matrix, so keys and values are read once.
        grouped = query.reshape(rows, count, kv_heads, -1, width).transpose(0, 2, 3, 1, 4).reshape(rows, kv_heads, -1, width)
        logits = jax.lax.dot_general(grouped, key, (((3,), (3,)), ((0, 1), (0, 1)))) / jnp.sqrt(jnp.asarray(width, query.dtype))
        logits = logits.reshape(rows, kv_heads, -1, count, slots)
        logits = jnp.where(sees[:, None, None], logits.astype(jnp.float32), NEGATIVE)
        weights = jax.nn.softmax(logits, axis=-1).astype(query.dtype).reshape(rows, kv_heads, -1, slots)
        mixed = jax.lax.dot_general(weights, value, (((3,), (2,)), ((0, 1), (0, 1))))
        return mixed.reshape(rows, kv_heads, -1, count, width).transpose(0, 3, 1, 2, 4).reshape(query.shape)

    if length <= 2 * BLOCK or length % BLOCK:
        return block(query, first)
    blocks = jnp.moveaxis(query.reshape(rows, -1, BLOCK, heads, width), 1, 0)
    starts = first + BLOCK * jnp.arange(len(blocks))
    mixed = jax.lax.map(lambda pair: block(*pair), (blocks, starts))
    return jnp.moveaxis(mixed, 0, 1).reshape(query.shape)


class DecoderLayer(nn.Module):
    config: LayerConfig
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "R L D"],
        real: Bool[Array, "R S"],
        rotary: tuple[Float[Array, "R L 1 H2"], Float[Array, "R L 1 H2"]],
        deterministic: bool = True,
        cache: KeyValue | None = None,
        slot: Int[Array, ""] | int = 0,
    ) -> tuple[Float[Array, "R L D"], KeyValue]:
        """Hidden vectors, and the keys and values of every slot.

        The L tokens stand in slots ``slot``, ``slot`` + 1, ... of S; ``cache`` holds the slots before them (None: there are none, and
        S = L). ``real`` says which slots hold a token, these included.
        """
        c = self.config
        rows, length, width = x.shape
        dense_ = lambda size, name, bias: nn.Dense(size, bias, dtype=self.dtype, kernel_init=INIT, name=name)
        rms = lambda name: nn.RMSNorm(c.norm_eps, dtype=self.dtype, name=name)
        drop = nn.Dropout(c.dropout, deterministic=deterministic)

        def heads(count: int, name: str) -> Float[Array, "R L heads H"]:
            vectors = dense_(count * c.head_dim, name, c.qkv_bias)(inner).reshape(rows, length, count, c.head_dim)
            return rms(f"{name}_norm")(vectors) if c.qk_norm and name != "value" else vectors

        inner = rms("attention_norm")(x)
        query, key = rotate(heads(c.heads, "query"), *rotary), rotate(heads(c.kv_heads, "key"), *rotary)
        key, value = key.swapaxes(1, 2), heads(c.kv_heads, "value").swapaxes(1, 2)
        if cache is not None:
            key, value = (jax.lax.dynamic_update_slice(old, new, (0, 0, slot, 0)) for old, new in zip(cache, (key, value), strict=True))
        mixed = attend_causally(query, key, value, real, slot).reshape(rows, length, -1)
        x = x + drop(dense_(width, "output", c.output_bias)(mixed))
        inner = rms("mlp_norm")(x)
        inner = jax.nn.silu(dense_(c.mlp_width, "gate", c.mlp_bias)(inner)) * dense_(c.mlp_width, "up", c.mlp_bias)(inner)
        return x + drop(dense_(width, "down", c.mlp_bias)(inner)), (key, value)


def layer_weights(config: LayerConfig, hf: str, ours: str) -> Iterator[Weight]:
    """Hugging Face name <-> flax path of every parameter of one layer."""
    for theirs, name in (("q_proj", "query"), ("k_proj", "key"), ("v_proj", "value"), ("o_proj", "output")):
        yield from dense(f"{hf}.self_attn.{theirs}", ours, name, bias=config.output_bias if name == "output" else config.qkv_bias)
    if config.qk_norm:
        yield from norm(f"{hf}.self_attn.q_norm", ours, "query_norm", bias=False)
        yield from norm(f"{hf}.self_attn.k_norm", ours, "key_norm", bias=False)
    for name in ("gate", "up", "down"):
        yield from dense(f"{hf}.mlp.{name}_proj", ours, name, bias=config.mlp_bias)
    yield from norm(f"{hf}.input_layernorm", ours, "attention_norm", bias=False)
    yield from norm(f"{hf}.post_attention_layernorm", ours, "mlp_norm", bias=False)
