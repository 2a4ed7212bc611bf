"""GGUF, llama.cpp's file format: the network from its metadata, its tensors under their Hugging Face names, dequantised when asked for.

The `gguf` package (extra "reader") reads the file's layout; this module maps a decoder's names and fields.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from qrag_jax.models.decoder import ARCHITECTURES, DecoderConfig
from qrag_jax.models.gguf_layout import check_layout
from qrag_jax.models.rope_scaling import Rope

NAMES = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
LAYER_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
# Required metadata under the architecture's name -> config.json.
SIZES = {
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "attention.head_count": "num_attention_heads",
    "feed_forward_length": "intermediate_size",
    "context_length": "max_position_embeddings",
}
DIVISORS = "rope_freqs.weight"  # Llama 3.1's scaling, as a number by which each frequency is divided


class GgufTensors(Mapping[str, np.ndarray]):
    """The tensors of an open GGUF file under their Hugging Face names, each dequantised to float32 when it is asked for."""

    def __init__(self, path: Path) -> None:
        """Raises ValueError naming the file when it cannot be read, or the package when it is not installed."""
        try:
            import gguf
        except ImportError as error:
            raise ValueError(f"{path}: GGUF files need the gguf package: pip install 'qrag-jax[reader]'") from error
        check_layout(path)
        try:
            self._reader = gguf.GGUFReader(path)
        except Exception as error:  # a malformed file can fail anywhere in the package's reader
            raise ValueError(f"{path}: not a readable GGUF file (truncated?): {' '.join(str(error).split()) or repr(error)}") from error
        self.path = path
        self.architecture = str(self.field("general.architecture"))
        if self.architecture not in ARCHITECTURES:
            raise ValueError(f"{path}: architecture {self.architecture!r} is not supported; supported: {', '.join(ARCHITECTURES)}")
        self._dequantize = gguf.dequantize
        self.stored = {tensor.name: tensor for tensor in self._reader.tensors}
        self._names = {hf: name for name in self.stored if (hf := _hf_name(name))}
        if extra := sorted(set(self.stored) - set(self._names.values()) - {DIVISORS}):
            raise ValueError(f"{path}: tensor {extra[0]!r} belongs to no decoder that is supported here")
        self._heads = {
            "attn_q": self.field(f"{self.architecture}.attention.head_count"),
            "attn_k": self.field(f"{self.architecture}.attention.head_count_kv", self.field(f"{self.architecture}.attention.head_count")),
        }

    def field(self, name: str, default: Any = None) -> Any:
        """A value of the metadata. Raises ValueError when it is missing and has no ``default``."""
        field = self._reader.get_field(name)
        if field is None and default is None:
            raise ValueError(f"{self.path}: its metadata has no {name!r}")
        try:
            return default if field is None else field.contents()
        except (ValueError, TypeError, IndexError) as error:
            raise ValueError(f"{self.path}: {name} cannot be read: {error}") from error

    def read(self, name: str) -> np.ndarray:
        """One tensor by its GGUF name, float32, rows first."""
        tensor = self.stored[name]
        try:
            return np.asarray(self._dequantize(tensor.data, tensor.tensor_type), np.float32)
        except (NotImplementedError, ValueError) as error:
            raise ValueError(
                f"{self.path}: tensor {name!r} is stored as {tensor.tensor_type.name}, which cannot be read: {error}"
            ) from error

    def __getitem__(self, hf: str) -> np.ndarray:
        name = self._names[hf]
        value = self.read(name)
        heads = self._heads.get(name.split(".")[-2])
        if self.architecture == "llama" and heads is not None:
            # llama.cpp rotates neighbouring coordinates, so its converter interleaves the two halves of each head's query and key.
            value = value.reshape(heads, -1, 2, *value.shape[1:]).swapaxes(1, 2).reshape(value.shape)
        return value

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _hf_name(name: str) -> str | None:
    stem, _, leaf = name.rpartition(".")
    back = {theirs: hf for hf, theirs in NAMES.items()}
    if stem in back:
        return f"{back[stem]}.{leaf}"
    block, _, rest = stem.partition(".")
    number, _, part = rest.partition(".")
    inner = {theirs: hf for hf, theirs in LAYER_NAMES.items()}
    return f"model.layers.{number}.{inner[part]}.{leaf}" if block == "blk" and part in inner else None


def gguf_config(tensors: GgufTensors) -> DecoderConfig:
    """The network of an open GGUF file. Raises ValueError naming the file on a field that is missing or not implemented."""
    kind = tensors.architecture
    field = lambda name, default=None: tensors.field(f"{kind}.{name}", default)
    heads, width = field("attention.head_count"), field("embedding_length")
    for name, value in (("attention.head_count", heads), ("embedding_length", width)):
        if not isinstance(value, int | np.integer) or value < 1:
            raise ValueError(f"{tensors.path}: {kind}.{name} = {str(value)[:40]}: must be a whole number above 0")
    head_dim = field("attention.key_length", width // heads)
    for name, off in (("rope.dimension_count", head_dim), ("attention.value_length", head_dim), ("attention.sliding_window", 0)):
        if (found := field(name, off)) != off:
            raise ValueError(f"{tensors.path}: {kind}.{name} = {found!r} is not supported; supported: {off}")
    if found := field("expert_count", 0):
        raise ValueError(f"{tensors.path}: {kind}.expert_count = {found}: mixtures of experts are not supported")
    config = {
        "model_type": kind,
        **{hf: field(name) for name, hf in SIZES.items()},
        "vocab_size": int(tensors.stored["token_embd.weight"].shape[-1]) if "token_embd.weight" in tensors.stored else None,
        "num_key_value_heads": field("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "rms_norm_eps": field("attention.layer_norm_rms_epsilon"),
        "tie_word_embeddings": "output.weight" not in tensors.stored,
        "attention_bias": "blk.0.attn_q.bias" in tensors.stored,
        "rope_parameters": {
            "rope_theta": field("rope.freq_base", 10_000.0),
            "rope_type": {"none": "default"}.get(scaling := field("rope.scaling.type", "none"), scaling),
            "factor": field("rope.scaling.factor", 1.0),
            "original_max_position_embeddings": field("rope.scaling.original_context_length", field("context_length")),
        },
    }
    try:
        found = DecoderConfig.from_hf({name: _plain(value) for name, value in config.items()})
    except (ValueError, TypeError, KeyError, ArithmeticError) as error:
        raise ValueError(f"{tensors.path}: its metadata, read as a config.json: {error}") from error
    if DIVISORS not in tensors.stored:
        return found
    frequencies = np.asarray(found.rope.frequencies) / tensors.read(DIVISORS)
    return dataclasses.replace(found, rope=Rope(tuple(map(float, frequencies)), found.rope.magnitude))


def _plain(value: Any) -> Any:
    """NumPy's numbers as Python's."""
    return value.item() if isinstance(value, np.generic) else value
