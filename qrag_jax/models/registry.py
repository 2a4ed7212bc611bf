"""The backbones: model_type of a config.json -> its config class, linen module, weight-name table and usual pooling.

A new backbone is one file (config class with ``from_hf``, ``to_hf``, ``width``, ``max_tokens``; encoder; weight table) and one line here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from qrag_jax.models.bert import BertConfig, BertEncoder, bert_weights
from qrag_jax.models.gte import GteConfig, GteEncoder, gte_weights
from qrag_jax.models.pickles import StoredTensor
from qrag_jax.models.qwen3 import Qwen3Config, Qwen3Encoder, qwen3_weights
from qrag_jax.models.weights import Weight, from_flax, strip_prefix, to_flax, write_flax
from qrag_jax.models.xlm_roberta import XlmRobertaConfig, XlmRobertaEncoder, xlm_roberta_weights

BackboneConfig = BertConfig | XlmRobertaConfig | GteConfig | Qwen3Config
Pooling = Literal["mean", "last", "cls"]


@dataclass(frozen=True)
class Backbone:
    config: type[Any]
    encoder: Callable[..., nn.Module]
    weights: Callable[[Any], Iterable[Weight]]
    fuses: bool = True  # whether its encoder takes ``ModelConfig.attention``
    packs: bool = True  # whether its encoder keeps the segments of packed rows apart (qrag_jax.models.packing)
    words: str = "word_embeddings"  # name of its table of word vectors
    pooling: Pooling = "mean"  # used when a model folder names none; Q-RAG mean-pools every encoder


BACKBONES: dict[str, Backbone] = {
    "bert": Backbone(BertConfig, BertEncoder, bert_weights),
    "xlm-roberta": Backbone(XlmRobertaConfig, XlmRobertaEncoder, xlm_roberta_weights),
    "new": Backbone(GteConfig, GteEncoder, gte_weights),
    "qwen3": Backbone(Qwen3Config, Qwen3Encoder, qwen3_weights, fuses=False, packs=False, words="embed_tokens", pooling="last"),
}


def backbone_of(config: BackboneConfig) -> str:
    """model_type of a backbone configuration."""
    return next(name for name, backbone in BACKBONES.items() if type(config) is backbone.config)


def config_from_hf(config: Mapping[str, Any]) -> BackboneConfig:
    """A parsed ``config.json`` -> the configuration of its backbone.

    Raises ValueError on an unknown architecture, a missing key, and a key that would change the maths and is not implemented.
    """
    name = config.get("model_type")
    if name not in BACKBONES:
        raise ValueError(f"config.json: model_type = {name!r} is not supported; supported: {', '.join(BACKBONES)}")
    if config.get("quantization_config"):
        raise ValueError("config.json: quantization_config is not supported; use the float weights of the model")
    return BACKBONES[name].config.from_hf(config)


@cache
def encoder_template(config: BackboneConfig) -> dict[str, Any]:
    """The tree of shapes and dtypes of an encoder's parameters."""
    encoder = BACKBONES[backbone_of(config)].encoder(config)
    return jax.eval_shape(lambda: encoder.init(jax.random.key(0), jnp.zeros((1, 4), jnp.int32)))["params"]


def encoder_params(config: BackboneConfig, tensors: Mapping[str, np.ndarray | StoredTensor]) -> dict[str, Any]:
    """Tensors under their Hugging Face names -> the parameters of one encoder.

    A common prefix such as "bert." is removed, and weights of task heads are ignored. Raises ValueError that lists every missing,
    unexpected and misshapen tensor.
    """
    table = list(BACKBONES[backbone_of(config)].weights(config))
    return to_flax(table, strip_prefix(table, tensors), encoder_template(config))


def encoder_tensors(config: BackboneConfig, params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The inverse of :func:`encoder_params`: float32 tensors under their Hugging Face names."""
    return from_flax(BACKBONES[backbone_of(config)].weights(config), params)


def write_encoder(config: BackboneConfig, params: Mapping[str, Any], path: Path) -> None:
    """Writes the tensors of :func:`encoder_tensors` as a safetensors file; holds one of them at a time."""
    write_flax(path, BACKBONES[backbone_of(config)].weights(config), params)
