"""A causal language model of the Llama / Qwen2 / Qwen3 family: the network of a frozen reader."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Bool, Float, Int

from qrag_jax.models.blocks import INIT
from qrag_jax.models.decoder_layer import DecoderLayer, KeyValue, LayerConfig, layer_weights
from qrag_jax.models.rope_scaling import Rope, read_rope, rope_parameters
from qrag_jax.models.rotary import cos_sin, places
from qrag_jax.models.weights import Weight, dense, norm, number, refuse_unsupported, sizes
from qrag_jax.types import Array

ARCHITECTURES = ("llama", "qwen2", "qwen3")
AXIS = "model"  # the mesh axis over which one network is split
# A device holds columns of a matrix (the heads and hidden units it computes) or the rows that read them.
COLUMNS, ROWS = ("query", "key", "value", "gate", "up", "head"), ("output", "down")


@dataclass(frozen=True)
class DecoderConfig:
    """The fields that a decoder's maths depends on."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    max_tokens: int  # the longest context, prompt and answer together
    layer: LayerConfig
    rope: Rope
    tied: bool  # the head is the embedding

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> DecoderConfig:
        """A parsed ``config.json``. Raises ValueError by name on a setting that would change the maths and is not implemented."""
        refuse_unsupported(
            {"model_type": None, "hidden_act": "silu", **config},
            {
                "model_type": ARCHITECTURES,
                "hidden_act": ("silu", "swish"),
                "use_sliding_window": (False, None),
                "quantization_config": (None,),
            },
        )
        kind = config["model_type"]
        # Qwen's files name a window and switch it off; other files name a window only to use it.
        if config.get("sliding_window") is not None and "use_sliding_window" not in config:
            raise ValueError(f"config.json: sliding_window = {config['sliding_window']!r} is not supported; supported: None")
        if other := sorted(set(config.get("layer_types") or ()) - {"full_attention"}):
            raise ValueError(f"config.json: layer_types names {other[0]!r}, which is not supported; supported: 'full_attention'")
        given = {name: value for name, value in config.items() if value is not None}
        names = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "max_position_embeddings")
        found = sizes(given, *names)
        heads = found["num_attention_heads"]
        found |= sizes({"num_key_value_heads": heads} | given, "num_key_value_heads")
        if heads % found["num_key_value_heads"]:
            raise ValueError(f"config.json: num_attention_heads = {heads}: must be a multiple of num_key_value_heads")
        if "head_dim" not in given and kind != "qwen3" and found["hidden_size"] % heads:
            raise ValueError(
                f"config.json: hidden_size = {found['hidden_size']}: must be a multiple of num_attention_heads without head_dim"
            )
        default = {"head_dim": 128 if kind == "qwen3" else found["hidden_size"] // heads}
        head_dim = sizes(default | given, "head_dim")["head_dim"]
        biased = bool(given.get("attention_bias", False))
        return cls(
            vocab_size=found["vocab_size"],
            hidden_size=found["hidden_size"],
            num_hidden_layers=found["num_hidden_layers"],
            max_tokens=_context(config, found["max_position_embeddings"]),
            layer=LayerConfig(
                heads=heads,
                kv_heads=found["num_key_value_heads"],
                head_dim=head_dim,
                mlp_width=found["intermediate_size"],
                norm_eps=number(given, "rms_norm_eps", 1e-6),
                qkv_bias=True if kind == "qwen2" else biased,
                output_bias=False if kind == "qwen2" else biased,
                mlp_bias=kind == "llama" and bool(given.get("mlp_bias", False)),
                qk_norm=kind == "qwen3",
            ),
            rope=read_rope(config, head_dim),
            tied=bool(given.get("tie_word_embeddings", False)),
        )


def _context(config: Mapping[str, Any], length: int) -> int:
    """The longest context. A YaRN scaling that was added by hand leaves ``max_position_embeddings`` at the unscaled length."""
    rope = rope_parameters(config)
    if rope["rope_type"] != "yarn" or rope.get("factor") is None:
        return length
    return max(length, int(rope["factor"] * rope.get("original_max_position_embeddings", 0)))


class Decoder(nn.Module):
    """Token ids (``PAD`` = -1 where there is none, on either side) to float32 logits of the next token."""

    config: DecoderConfig
    dtype: Any = jnp.float32

    def setup(self) -> None:
        c = self.config
        self.embed_tokens = nn.Embed(c.vocab_size, c.hidden_size, embedding_init=INIT, dtype=self.dtype)
        self.layer = [DecoderLayer(c.layer, self.dtype) for _ in range(c.num_hidden_layers)]  # layer_0, layer_1, ...
        self.norm = nn.RMSNorm(c.layer.norm_eps, dtype=self.dtype)
        if not c.tied:
            self.head = nn.Dense(c.vocab_size, use_bias=False, dtype=self.dtype, kernel_init=INIT)

    def __call__(self, ids: Int[Array, "B L"]) -> Float[Array, "B L V"]:
        """Logits after every token. Logits after padding have no meaning."""
        return self._logits(self._hidden(ids, ids >= 0, places(ids >= 0))[0])

    def prefill(self, ids: Int[Array, "B L"]) -> tuple[Float[Array, "B V"], list[KeyValue]]:
        """Logits after each row's last token, and every layer's keys and values."""
        real = ids >= 0
        x, cache = self._hidden(ids, real, places(real))
        last = ids.shape[1] - 1 - jnp.argmax(real[:, ::-1], axis=1)
        return self._logits(jnp.take_along_axis(x, last[:, None, None], axis=1)[:, 0]), cache

    def step(
        self,
        token: Int[Array, " B"],
        position: Int[Array, " B"],
        real: Bool[Array, "B S"],
        cache: list[KeyValue],
        slot: Int[Array, ""],
    ) -> tuple[Float[Array, "B V"], list[KeyValue]]:
        """Logits after one more token per row. The token goes into ``slot`` of the cache and has position ``position`` in its row."""
        x, cache = self._hidden(token[:, None], real, position[:, None], cache, slot)
        return self._logits(x[:, 0]), cache

    def _hidden(
        self,
        ids: Int[Array, "B L"],
        real: Bool[Array, "B S"],
        positions: Int[Array, "B L"],
        cache: list[KeyValue] | None = None,
        slot: Int[Array, ""] | int = 0,
    ) -> tuple[Float[Array, "B L D"], list[KeyValue]]:
        rope = self.config.rope
        cos, sin = cos_sin(positions, jnp.asarray(rope.frequencies, jnp.float32))
        rotary = (cos * rope.magnitude, sin * rope.magnitude)
        x = self.embed_tokens(jnp.maximum(ids, 0))
        filled = []
        for i, layer in enumerate(self.layer):
            x, pair = layer(x, real, rotary, True, None if cache is None else cache[i], slot)
            filled.append(pair)
        return self.norm(x), filled

    def _logits(self, x: Float[Array, "*rows D"]) -> Float[Array, "*rows V"]:
        return (self.embed_tokens.attend(x) if self.config.tied else self.head(x)).astype(jnp.float32)


def decoder_weights(config: DecoderConfig) -> Iterator[Weight]:
    """Hugging Face name <-> flax path of every parameter."""
    yield Weight("model.embed_tokens.weight", ("embed_tokens", "embedding"))
    for i in range(config.num_hidden_layers):
        yield from layer_weights(config.layer, f"model.layers.{i}", f"layer_{i}")
    yield from norm("model.norm", "norm", bias=False)
    if not config.tied:
        yield from dense("lm_head", "head", bias=False)


def split_over(config: DecoderConfig, devices: int) -> None:
    """Raises ValueError when a layer cannot be divided over ``devices``."""
    cut = {"num_key_value_heads": config.layer.kv_heads, "intermediate_size": config.layer.mlp_width}
    for name, size in cut.items():
        if size % devices:
            possible = [str(count) for count in range(1, devices) if not any(size % count for size in cut.values())]
            raise ValueError(
                f"mesh: {name} = {size} does not divide over {devices} devices of its axis {AXIS!r} (eval.reader_devices); "
                f"use {' or '.join(possible)}"
            )


def weight_spec(path: tuple[str, ...], vocab_divides: bool) -> PartitionSpec:
    """How a parameter is split over the mesh axis :data:`AXIS`: by heads and MLP units; embedding and head by words where they divide."""
    *_, module, leaf = path
    if module == "embed_tokens":
        return PartitionSpec(AXIS, None) if vocab_divides else PartitionSpec()
    if module in COLUMNS and (module != "head" or vocab_divides):
        return PartitionSpec(None, AXIS) if leaf == "kernel" else PartitionSpec(AXIS)
    return PartitionSpec(AXIS, None) if module in ROWS and leaf == "kernel" else PartitionSpec()
