"""GTE's "NewModel" in plain NumPy, float64, one row of real tokens at a time: an oracle for ``qrag_jax.models.gte``.

Written from the published architecture (mGTE, arXiv 2407.19669; NTK scaling: https://kexue.fm/archives/9706) and the tensor names of its
checkpoints; it shares no code with the Flax module.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

_erf = np.vectorize(math.erf)


def hidden_vectors(tensors: Mapping[str, np.ndarray], config: Mapping[str, Any], tokens: Sequence[int]) -> np.ndarray:
    """[len(tokens), hidden_size] for one text. ``config`` is a parsed config.json, ``tensors`` carry the checkpoint's names."""
    w = {name: np.asarray(tensor, np.float64) for name, tensor in tensors.items()}
    eps, heads = config["layer_norm_eps"], config["num_attention_heads"]

    def layer_norm(x: np.ndarray, name: str) -> np.ndarray:
        centred = x - x.mean(axis=1, keepdims=True)
        return centred / np.sqrt((centred**2).mean(axis=1, keepdims=True) + eps) * w[f"{name}.weight"] + w[f"{name}.bias"]

    def linear(x: np.ndarray, name: str) -> np.ndarray:
        return x @ w[f"{name}.weight"].T + w.get(f"{name}.bias", 0.0)

    x = w["embeddings.word_embeddings.weight"][list(tokens)]
    if config["type_vocab_size"] > 0:
        x = x + w["embeddings.token_type_embeddings.weight"][0]
    x = layer_norm(x, "embeddings.LayerNorm")
    for i in range(config["num_hidden_layers"]):
        layer = f"encoder.layer.{i}"
        query, key, value = np.split(linear(x, f"{layer}.attention.qkv_proj"), 3, axis=1)
        mixed = np.zeros_like(x)
        width = x.shape[1] // heads
        for head in range(heads):
            part = slice(head * width, (head + 1) * width)
            q, k = _rotate(query[:, part], config), _rotate(key[:, part], config)
            scores = np.exp(q @ k.T / math.sqrt(width))
            mixed[:, part] = scores / scores.sum(axis=1, keepdims=True) @ value[:, part]
        x = layer_norm(x + linear(mixed, f"{layer}.attention.o_proj"), f"{layer}.attn_ln")
        up, gate = np.split(linear(x, f"{layer}.mlp.up_gate_proj"), 2, axis=1)
        gelu = gate * (1 + _erf(gate / math.sqrt(2))) / 2
        x = layer_norm(x + linear(up * gelu, f"{layer}.mlp.down_proj"), f"{layer}.mlp_ln")
    return x


def _rotate(x: np.ndarray, config: Mapping[str, Any]) -> np.ndarray:
    """Coordinates (i, i + width/2) of row n are one complex number, turned by n times its frequency."""
    length, width = x.shape
    scaling = config.get("rope_scaling")
    factor = scaling["factor"] if scaling else 1.0
    out = np.empty_like(x)
    for i in range(width // 2):
        frequency = (config["rope_theta"] * factor) ** (-2 * i / width) * factor ** (-2 / width)
        turned = (x[:, i] + 1j * x[:, i + width // 2]) * np.exp(1j * frequency * np.arange(length))
        out[:, i], out[:, i + width // 2] = turned.real, turned.imag
    return out
