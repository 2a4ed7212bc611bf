"""Qwen3 as an embedder (Zhang et al. 2025, arXiv 2506.05176): a causal decoder whose last token's hidden vector is the embedding.

Pre-RMSNorm, grouped-query attention with normalised queries and keys, rotary positions, SwiGLU. Positions count real tokens, so rows may be
padded on either side.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Float, Int

from qrag_jax.models.blocks import INIT
from qrag_jax.models.decoder_layer import DecoderLayer, LayerConfig, layer_weights
from qrag_jax.models.rope_scaling import rope_parameters
from qrag_jax.models.rotary import cos_sin, places
from qrag_jax.models.weights import Weight, norm, number, refuse_unsupported, sizes
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
    hidden_dropout_prob: float = 0.0  # not part of Qwen3; an option of the loss here

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> Qwen3Config:
        """Raises ValueError by name on a setting that would change the maths and is not implemented."""
        rope = rope_parameters(config)
        refuse_unsupported(
            {**config, "rope_parameters.rope_type": rope["rope_type"]},
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
            rms_norm_eps=number(config, "rms_norm_eps", 1e-6),
            rope_theta=float(rope["rope_theta"]),
            attention_bias=bool(config.get("attention_bias", False)),
            hidden_dropout_prob=number(config, "hidden_dropout_prob", 0.0),
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
    def layer(self) -> LayerConfig:
        return LayerConfig(
            heads=self.num_attention_heads,
            kv_heads=self.num_key_value_heads,
            head_dim=self.head_dim,
            mlp_width=self.intermediate_size,
            norm_eps=self.rms_norm_eps,
            qkv_bias=self.attention_bias,
            output_bias=self.attention_bias,
            qk_norm=True,
            dropout=self.hidden_dropout_prob,
        )

    @property
    def width(self) -> int:
        return self.hidden_size

    @property
    def max_tokens(self) -> int:
        """Longest row of tokens the model was trained for."""
        return self.max_position_embeddings


class Qwen3Encoder(nn.Module):
    """Token ids (``PAD`` = -1 where there is none) to one hidden vector a token, each of which has seen its left context only."""

    config: Qwen3Config
    dtype: Any = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(self, ids: Int[Array, "R L"], deterministic: bool = True) -> Float[Array, "R L D"]:
        c = self.config
        real = ids >= 0
        x = nn.Embed(c.vocab_size, c.hidden_size, embedding_init=INIT, dtype=self.dtype, name="embed_tokens")(jnp.maximum(ids, 0))
        frequencies = c.rope_theta ** (-jnp.arange(0, c.head_dim, 2, dtype=jnp.float32) / c.head_dim)
        rotary = cos_sin(places(real), frequencies)
        layer = nn.remat(DecoderLayer, static_argnums=(4,)) if self.remat else DecoderLayer
        for i in range(c.num_hidden_layers):
            x, _ = layer(c.layer, self.dtype, name=f"layer_{i}")(x, real, rotary, deterministic)
        return nn.RMSNorm(c.rms_norm_eps, dtype=self.dtype, name="norm")(x)


def qwen3_weights(config: Qwen3Config) -> Iterator[Weight]:
    """Hugging Face name <-> flax path of every parameter of a Qwen3Model."""
    yield Weight("embed_tokens.weight", ("embed_tokens", "embedding"))
    for i in range(config.num_hidden_layers):
        yield from layer_weights(config.layer, f"layers.{i}", f"layer_{i}")
    yield from norm("norm", "norm", bias=False)
