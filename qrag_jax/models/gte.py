"""GTE's "NewModel" (Zhang et al. 2024, mGTE, arXiv 2407.19669): gte-multilingual-base, gte-*-v1.5.

A post-layer-norm encoder like BERT with rotary positions and a gated MLP. transformers has no class for ``model_type`` "new" and its
published code would have to be run from the hub; this is the architecture, written from the paper and the names of its checkpoints.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from qrag_jax.config import Attention
from qrag_jax.models.blocks import INIT, attend, gelu
from qrag_jax.models.rotary import cos_sin, rotate, segment_places
from qrag_jax.models.weights import Weight, dense, norm, number, refuse_unsupported, sizes
from qrag_jax.types import Array


@dataclass(frozen=True)
class GteConfig:
    """The fields of a "NewModel" ``config.json`` that its maths depends on."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    max_position_embeddings: int
    type_vocab_size: int = 1  # 0: no token-type embedding
    layer_norm_eps: float = 1e-12
    hidden_dropout_prob: float = 0.1
    rope_theta: float = 10_000.0
    rope_factor: float = 1.0  # of fixed NTK scaling
    pad_token_id: int = 0

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> GteConfig:
        """Raises ValueError by name on a setting that would change the maths and is not implemented."""
        refuse_unsupported(
            config,
            {
                "hidden_act": ("gelu",),
                "position_embedding_type": ("rope",),
                "layer_norm_type": ("layer_norm",),
                "pack_qkv": (True,),
                "logn_attention_scale": (False,),
                "rope_parameters": (None,),
            },
        )
        names = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "max_position_embeddings")
        fields = sizes(config, *names)
        if fields["hidden_size"] % (2 * fields["num_attention_heads"]):
            raise ValueError(f"config.json: hidden_size = {fields['hidden_size']}: must be an even multiple of num_attention_heads")
        types = config.get("type_vocab_size", 1)
        return cls(
            **fields,
            type_vocab_size=0 if types == 0 else sizes({"type_vocab_size": types}, "type_vocab_size")["type_vocab_size"],
            layer_norm_eps=number(config, "layer_norm_eps", 1e-12),
            hidden_dropout_prob=number(config, "hidden_dropout_prob", 0.1),
            rope_theta=number(config, "rope_theta", 10_000.0),
            rope_factor=_ntk_factor(config.get("rope_scaling")),
            pad_token_id=int(config.get("pad_token_id") or 0),
        )

    def to_hf(self) -> dict[str, Any]:
        """A ``config.json`` in the published form. The class it names is on the hub: loading it in torch runs the hub's code."""
        implementation = "Alibaba-NLP/new-impl--"
        return {
            "architectures": ["NewModel"],
            "auto_map": {"AutoConfig": f"{implementation}configuration.NewConfig", "AutoModel": f"{implementation}modeling.NewModel"},
            "model_type": "new",
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "num_hidden_layers": self.num_hidden_layers,
            "num_attention_heads": self.num_attention_heads,
            "intermediate_size": self.intermediate_size,
            "max_position_embeddings": self.max_position_embeddings,
            "type_vocab_size": self.type_vocab_size,
            "layer_norm_eps": self.layer_norm_eps,
            "layer_norm_type": "layer_norm",
            "hidden_act": "gelu",
            "hidden_dropout_prob": self.hidden_dropout_prob,
            "attention_probs_dropout_prob": 0.0,
            "position_embedding_type": "rope",
            "rope_theta": self.rope_theta,
            "rope_scaling": {"type": "ntk", "factor": self.rope_factor} if self.rope_factor != 1.0 else None,
            "pack_qkv": True,
            "logn_attention_scale": False,
            "logn_attention_clip1": False,
            "unpad_inputs": False,
            "use_memory_efficient_attention": False,
            "pad_token_id": self.pad_token_id,
        }

    @property
    def width(self) -> int:
        return self.hidden_size

    @property
    def max_tokens(self) -> int:
        """Longest row of tokens the model was trained for."""
        return self.max_position_embeddings


def _ntk_factor(scaling: Any) -> float:
    if scaling is None:
        return 1.0
    known = isinstance(scaling, Mapping) and scaling.get("type") == "ntk" and scaling.get("mixed_b") is None
    factor: Any = scaling.get("factor") if known and not set(scaling) - {"type", "factor", "mixed_b"} else None
    if type(factor) not in (int, float) or not 1 <= factor < math.inf:
        raise ValueError(f"config.json: rope_scaling = {scaling!r} is not supported; supported: null, {{'type': 'ntk', 'factor': >= 1}}")
    return float(factor)


def ntk_frequencies(config: GteConfig) -> Float[Array, " H2"]:
    """Angle per token of each coordinate pair: (k theta)^(-2i/H) / k^(2/H), k the scaling factor (NTK, https://kexue.fm/archives/9706)."""
    width = config.hidden_size // config.num_attention_heads
    exponent = jnp.arange(0, width, 2, dtype=jnp.float32) / width
    return (config.rope_theta * config.rope_factor) ** -exponent / config.rope_factor ** (2 / width)


class GteLayer(nn.Module):
    config: GteConfig
    dtype: Any = jnp.float32
    attention: Attention = "auto"

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "R L D"],
        mask: Bool[Array, "R #L L"],
        rotary: tuple[Float[Array, "R L 1 H2"], Float[Array, "R L 1 H2"]],
        deterministic: bool = True,
    ) -> Float[Array, "R L D"]:
        c = self.config
        rows, length, width = x.shape
        heads = (rows, length, c.num_attention_heads, width // c.num_attention_heads)
        dense_ = lambda size, name, bias=True: nn.Dense(size, bias, dtype=self.dtype, kernel_init=INIT, name=name)
        drop = nn.Dropout(c.hidden_dropout_prob, deterministic=deterministic)
        packed = [part.reshape(heads) for part in jnp.split(dense_(3 * width, "qkv")(x), 3, axis=-1)]
        mixed = attend(rotate(packed[0], *rotary), rotate(packed[1], *rotary), packed[2], mask, self.attention).reshape(x.shape)
        x = nn.LayerNorm(c.layer_norm_eps, dtype=self.dtype, name="attention_norm")(x + drop(dense_(width, "output")(mixed)))
        up, gate = jnp.split(dense_(2 * c.intermediate_size, "up_gate", False)(x), 2, axis=-1)
        inner = drop(up * gelu(gate))
        return nn.LayerNorm(c.layer_norm_eps, dtype=self.dtype, name="mlp_norm")(x + drop(dense_(width, "down")(inner)))


class GteEncoder(nn.Module):
    """Token ids (``PAD`` = -1 where there is none) to one hidden vector a token."""

    config: GteConfig
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
        if c.type_vocab_size:
            x = x + embed(c.type_vocab_size, "token_type_embeddings")(jnp.zeros(1, jnp.int32))
        x = nn.LayerNorm(c.layer_norm_eps, dtype=self.dtype, name="embedding_norm")(x)
        x = nn.Dropout(c.hidden_dropout_prob, deterministic=deterministic)(x)
        rotary = cos_sin(positions, ntk_frequencies(c))
        layer = nn.remat(GteLayer, static_argnums=(4,)) if self.remat else GteLayer
        for i in range(c.num_hidden_layers):
            x = layer(c, self.dtype, self.attention, name=f"layer_{i}")(x, mask, rotary, deterministic)
        return x


def gte_weights(config: GteConfig) -> Iterator[Weight]:
    """Hugging Face name <-> flax path of every parameter of a NewModel without its pooler."""
    for name in ("word", "token_type") if config.type_vocab_size else ("word",):
        yield Weight(f"embeddings.{name}_embeddings.weight", (f"{name}_embeddings", "embedding"))
    yield from norm("embeddings.LayerNorm", "embedding_norm")
    for i in range(config.num_hidden_layers):
        hf, ours = f"encoder.layer.{i}", f"layer_{i}"
        yield from dense(f"{hf}.attention.qkv_proj", ours, "qkv")
        yield from dense(f"{hf}.attention.o_proj", ours, "output")
        yield from norm(f"{hf}.attn_ln", ours, "attention_norm")
        yield from dense(f"{hf}.mlp.up_gate_proj", ours, "up_gate", bias=False)
        yield from dense(f"{hf}.mlp.down_proj", ours, "down")
        yield from norm(f"{hf}.mlp_ln", ours, "mlp_norm")
