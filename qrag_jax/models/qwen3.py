"""Qwen3 as an embedder (Zhang et al. 2025, arXiv 2506.05176): a causal decoder whose last token's hidden vector is the embedding.

Pre-RMSNorm, grouped-query attention with normalised queries and keys, rotary positions, SwiGLU. Positions count real tokens, so rows may be
padded on either side.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from qrag_jax.models.bert import INIT, NEGATIVE
from qrag_jax.models.rotary import cos_sin, places, turn
from qrag_jax.models.weights import Weight, dense, norm, refuse_unsupported, sizes
from qrag_jax.types import Array


@dataclass(frozen=True)
class Qwen3Config:
    """The fields of a Hugging Face Qwen3 ``config.json`` that its maths depends on."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    intermediate_size: int
    max_position_embeddings: int
    rms_norm_eps: float = 1e-6
    rope_theta: float = 1_000_000.0
    attention_bias: bool = False
    hidden_dropout_prob: float = 0.0  # no part of Qwen3; an option of the loss here

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> Qwen3Config:
        """Raises ValueError by name on a setting that would change the maths and is not implemented."""
        # Transformers 5 keeps theta and scaling together; earlier files keep them apart.
        rope = config.get("rope_parameters") or {"rope_theta": config.get("rope_theta", 10_000.0)}
        refuse_unsupported(
            {**config, "rope_parameters.rope_type": rope.get("rope_type", "default")},
            {
                "hidden_act": ("silu",),
                "use_sliding_window": (False, None),
                "rope_scaling": (None,),
                "rope_parameters.rope_type": ("default",),
            },
        )
        if other := sorted(set(config.get("layer_types") or ()) - {"full_attention"}):
            raise ValueError(f"config.json: layer_types names {other[0]!r}, which is not supported; supported: 'full_attention'")
        names = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "max_position_embeddings")
        fields = sizes({"num_key_value_heads": config.get("num_attention_heads"), **config}, *names, "num_key_value_heads")
        fields |= sizes({"head_dim": 128, **config}, "head_dim")
        if fields["num_attention_heads"] % fields["num_key_value_heads"]:
            raise ValueError(
                f"config.json: num_attention_heads = {fields['num_attention_heads']}: must be a multiple of num_key_value_heads"
            )
        return cls(
            **fields,
            rms_norm_eps=float(config.get("rms_norm_eps", 1e-6)),
            rope_theta=float(rope["rope_theta"]),
            attention_bias=bool(config.get("attention_bias", False)),
            hidden_dropout_prob=float(config.get("hidden_dropout_prob", 0.0)),
        )

    def to_hf(self) -> dict[str, Any]:
        """A ``config.json`` that transformers' AutoModel builds the same network from."""
        return {
            "architectures": ["Qwen3Model"],
            "model_type": "qwen3",
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "num_hidden_layers": self.num_hidden_layers,
            "num_attention_heads": self.num_attention_heads,
            "num_key_value_heads": self.num_key_value_heads,
            "head_dim": self.head_dim,
            "intermediate_size": self.intermediate_size,
            "max_position_embeddings": self.max_position_embeddings,
            "rms_norm_eps": self.rms_norm_eps,
            "rope_theta": self.rope_theta,
            "attention_bias": self.attention_bias,
            "attention_dropout": 0.0,
            "hidden_act": "silu",
            "hidden_dropout_prob": self.hidden_dropout_prob,
            "use_sliding_window": False,
            "sliding_window": None,
            "tie_word_embeddings": True,
        }

    @property
    def width(self) -> int:
        return self.hidden_size

    @property
    def max_tokens(self) -> int:
        """Longest row of tokens the model was trained for."""
        return self.max_position_embeddings


class Qwen3Layer(nn.Module):
    config: Qwen3Config
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "R L D"],
        sees: Bool[Array, "R L L"],
        rotary: tuple[Float[Array, "R L 1 H2"], Float[Array, "R L 1 H2"]],
        deterministic: bool = True,
    ) -> Float[Array, "R L D"]:
        c = self.config
        rows, length, width = x.shape
        groups = c.num_attention_heads // c.num_key_value_heads
        dense_ = lambda size, name, bias=False: nn.Dense(size, bias, dtype=self.dtype, kernel_init=INIT, name=name)  # noqa: E731
        rms = lambda name: nn.RMSNorm(c.rms_norm_eps, dtype=self.dtype, name=name)  # noqa: E731
        drop = nn.Dropout(c.hidden_dropout_prob, deterministic=deterministic)

        def heads(count: int, name: str) -> Float[Array, "R L heads H"]:
            return dense_(count * c.head_dim, name, c.attention_bias)(inner).reshape(rows, length, count, c.head_dim)

        inner = rms("attention_norm")(x)
        query = turn(rms("query_norm")(heads(c.num_attention_heads, "query")), *rotary)
        key = turn(rms("key_norm")(heads(c.num_key_value_heads, "key")), *rotary)
        value = heads(c.num_key_value_heads, "value")
        query = query.reshape(rows, length, c.num_key_value_heads, groups, c.head_dim)
        logits = jnp.einsum("rqhgd,rkhd->rhgqk", query, key) / jnp.sqrt(jnp.asarray(c.head_dim, self.dtype))
        logits = jnp.where(sees[:, None, None], logits.astype(jnp.float32), NEGATIVE)
        weights = jax.nn.softmax(logits, axis=-1).astype(self.dtype)
        mixed = jnp.einsum("rhgqk,rkhd->rqhgd", weights, value).reshape(rows, length, -1)
        x = x + drop(dense_(width, "output", c.attention_bias)(mixed))
        inner = rms("mlp_norm")(x)
        inner = jax.nn.silu(dense_(c.intermediate_size, "gate")(inner)) * dense_(c.intermediate_size, "up")(inner)
        return x + drop(dense_(width, "down")(inner))


class Qwen3Encoder(nn.Module):
    """Token ids (``PAD`` = -1 where there is none) to one hidden vector a token, each of which has seen its left context only."""

    config: Qwen3Config
    dtype: Any = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(self, ids: Int[Array, "R L"], deterministic: bool = True) -> Float[Array, "R L D"]:
        c = self.config
        mask = ids >= 0
        x = nn.Embed(c.vocab_size, c.hidden_size, embedding_init=INIT, dtype=self.dtype, name="embed_tokens")(jnp.maximum(ids, 0))
        sees = jnp.tril(jnp.ones((ids.shape[1], ids.shape[1]), bool)) & mask[:, None, :]
        frequencies = c.rope_theta ** (-jnp.arange(0, c.head_dim, 2, dtype=jnp.float32) / c.head_dim)
        rotary = cos_sin(places(mask), frequencies)
        layer = nn.remat(Qwen3Layer, static_argnums=(4,)) if self.remat else Qwen3Layer
        for i in range(c.num_hidden_layers):
            x = layer(c, self.dtype, name=f"layer_{i}")(x, sees, rotary, deterministic)
        return nn.RMSNorm(c.rms_norm_eps, dtype=self.dtype, name="norm")(x)


def qwen3_weights(config: Qwen3Config) -> Iterator[Weight]:
    """Hugging Face name <-> flax path of every parameter of a Qwen3Model."""
    yield Weight("embed_tokens.weight", ("embed_tokens", "embedding"))
    for i in range(config.num_hidden_layers):
        hf, ours = f"layers.{i}", f"layer_{i}"
        for theirs, name in (("q_proj", "query"), ("k_proj", "key"), ("v_proj", "value"), ("o_proj", "output")):
            yield from dense(f"{hf}.self_attn.{theirs}", ours, name, bias=config.attention_bias)
        yield from norm(f"{hf}.self_attn.q_norm", ours, "query_norm", bias=False)
        yield from norm(f"{hf}.self_attn.k_norm", ours, "key_norm", bias=False)
        for name in ("gate", "up", "down"):
            yield from dense(f"{hf}.mlp.{name}_proj", ours, name, bias=False)
        yield from norm(f"{hf}.input_layernorm", ours, "attention_norm", bias=False)
        yield from norm(f"{hf}.post_attention_layernorm", ours, "mlp_norm", bias=False)
    yield from norm("norm", "norm", bias=False)
