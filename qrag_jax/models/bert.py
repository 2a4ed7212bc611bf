"""BERT (Devlin et al. 2019): post-layer-norm transformer encoder with learned positions. Contriever, MiniLM and BGE are BERTs.

Position ids count the real tokens of a row, so gaps and padding on either side do not change a row's embedding.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from qrag_jax.config import Attention
from qrag_jax.models.blocks import INIT, Affine, attend, gelu, project
from qrag_jax.models.rotary import segment_places
from qrag_jax.models.weights import Weight, dense, norm, number, refuse_unsupported, sizes
from qrag_jax.types import Array


@dataclass(frozen=True)
class BertConfig:
    """The fields of a Hugging Face BERT ``config.json`` that its maths depends on."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    max_position_embeddings: int
    type_vocab_size: int = 2
    layer_norm_eps: float = 1e-12
    hidden_dropout_prob: float = 0.1
    position_offset: int = 0  # position id of a row's first token

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> BertConfig:
        """Raises ValueError by name on a setting that would change the maths and is not implemented."""
        return cls(**cls._fields(config))

    @staticmethod
    def _fields(config: Mapping[str, Any]) -> dict[str, Any]:
        refuse_unsupported(
            config,
            {
                "hidden_act": ("gelu",),
                "position_embedding_type": ("absolute", None),
                "is_decoder": (False,),
                "add_cross_attention": (False,),
                "pruned_heads": ({}, None),
            },
        )
        names = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "max_position_embeddings")
        fields: dict[str, Any] = sizes(config, *names)
        if fields["hidden_size"] % fields["num_attention_heads"]:
            raise ValueError(f"config.json: hidden_size = {fields['hidden_size']}: must be a multiple of num_attention_heads")
        return fields | {
            "type_vocab_size": sizes({"type_vocab_size": 2} | dict(config), "type_vocab_size")["type_vocab_size"],
            "layer_norm_eps": number(config, "layer_norm_eps", 1e-12),
            "hidden_dropout_prob": number(config, "hidden_dropout_prob", 0.1),
        }

    def to_hf(self) -> dict[str, Any]:
        """A ``config.json`` that transformers' AutoModel builds the same network from."""
        return {
            "architectures": ["BertModel"],
            "model_type": "bert",
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "num_hidden_layers": self.num_hidden_layers,
            "num_attention_heads": self.num_attention_heads,
            "intermediate_size": self.intermediate_size,
            "max_position_embeddings": self.max_position_embeddings,
            "type_vocab_size": self.type_vocab_size,
            "layer_norm_eps": self.layer_norm_eps,
            "hidden_act": "gelu",
            "hidden_dropout_prob": self.hidden_dropout_prob,
            "attention_probs_dropout_prob": 0.0,
            "pad_token_id": 0,
        }

    @property
    def width(self) -> int:
        return self.hidden_size

    @property
    def max_tokens(self) -> int:
        """Longest row of tokens the learned positions allow."""
        return self.max_position_embeddings - self.position_offset


class BertLayer(nn.Module):
    config: BertConfig
    dtype: Any = jnp.float32
    attention: Attention = "auto"

    @nn.compact
    def __call__(self, x: Float[Array, "R L D"], mask: Bool[Array, "R #L L"], deterministic: bool = True) -> Float[Array, "R L D"]:
        c = self.config
        width, shape = x.shape[-1], x.shape
        dense_ = lambda size, name: nn.Dense(size, dtype=self.dtype, kernel_init=INIT, name=name)
        drop = nn.Dropout(c.hidden_dropout_prob, deterministic=deterministic)
        norm = lambda name: nn.LayerNorm(c.layer_norm_eps, dtype=self.dtype, name=name)
        # Outside attention, tokens are the rows of one matrix, so the gradient of a kernel is a single product.
        x = x.reshape(-1, width)
        packed = project(x, *(Affine(width, self.dtype, name=name)(width) for name in ("query", "key", "value")))
        query, key, value = (y.reshape(*shape[:2], c.num_attention_heads, -1) for y in packed)
        mixed = attend(query, key, value, mask, self.attention).reshape(x.shape)
        x = norm("attention_norm")(x + drop(dense_(width, "output")(mixed)))
        inner = gelu(dense_(c.intermediate_size, "mlp_in")(x))
        return norm("mlp_norm")(x + drop(dense_(width, "mlp_out")(inner))).reshape(shape)


class BertEncoder(nn.Module):
    """Token ids (``PAD`` = -1 where there is none) to one hidden vector a token."""

    config: BertConfig
    dtype: Any = jnp.float32
    remat: bool = False
    attention: Attention = "auto"

    @nn.compact
    def __call__(
        self, ids: Int[Array, "R L"], deterministic: bool = True, segments: Int[Array, "R L"] | None = None
    ) -> Float[Array, "R L D"]:
        c = self.config
        mask, positions = segment_places(ids, segments)
        embed = lambda size, name: nn.Embed(size, c.hidden_size, embedding_init=INIT, dtype=self.dtype, name=name)
        x = embed(c.vocab_size, "word_embeddings")(jnp.maximum(ids, 0))
        x = x + embed(c.max_position_embeddings, "position_embeddings")(positions + c.position_offset)
        x = x + embed(c.type_vocab_size, "token_type_embeddings")(jnp.zeros(1, jnp.int32))
        x = nn.LayerNorm(c.layer_norm_eps, dtype=self.dtype, name="embedding_norm")(x)
        x = nn.Dropout(c.hidden_dropout_prob, deterministic=deterministic)(x)
        layer = nn.remat(BertLayer, static_argnums=(3,)) if self.remat else BertLayer
        for i in range(c.num_hidden_layers):
            x = layer(c, self.dtype, self.attention, name=f"layer_{i}")(x, mask, deterministic)
        return x


def bert_weights(config: BertConfig) -> Iterator[Weight]:
    """Hugging Face name <-> flax path of every parameter of a BertModel without its pooler."""
    for name in ("word", "position", "token_type"):
        yield Weight(f"embeddings.{name}_embeddings.weight", (f"{name}_embeddings", "embedding"))
    yield from norm("embeddings.LayerNorm", "embedding_norm")
    for i in range(config.num_hidden_layers):
        hf, ours = f"encoder.layer.{i}", f"layer_{i}"
        for name in ("query", "key", "value"):
            yield from dense(f"{hf}.attention.self.{name}", ours, name)
        yield from dense(f"{hf}.attention.output.dense", ours, "output")
        yield from norm(f"{hf}.attention.output.LayerNorm", ours, "attention_norm")
        yield from dense(f"{hf}.intermediate.dense", ours, "mlp_in")
        yield from dense(f"{hf}.output.dense", ours, "mlp_out")
        yield from norm(f"{hf}.output.LayerNorm", ours, "mlp_norm")
