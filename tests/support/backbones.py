"""Every backbone of the registry, tiny and with random parameters."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import cache
from typing import Any

import jax
import numpy as np
import pytest

from qrag_jax.models.bert import BertConfig
from qrag_jax.models.gte import GteConfig
from qrag_jax.models.qwen3 import Qwen3Config
from qrag_jax.models.registry import BACKBONES, BackboneConfig, backbone_of, encoder_template
from qrag_jax.models.xlm_roberta import XlmRobertaConfig

VOCAB, WIDTH = 120, 32
SIZES = {"vocab_size": VOCAB, "hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
QWEN3 = Qwen3Config(**SIZES, num_key_value_heads=2, head_dim=16, max_position_embeddings=64)
GTE = GteConfig(**SIZES, max_position_embeddings=64, rope_theta=20_000.0, rope_factor=8.0, pad_token_id=1)
TINY: dict[str, BackboneConfig] = {
    "bert": BertConfig(**SIZES, max_position_embeddings=64),
    "xlm-roberta": XlmRobertaConfig(**SIZES, max_position_embeddings=64),
    "new": GTE,
    "new, no token types, no scaling": dataclasses.replace(GTE, type_vocab_size=0, rope_factor=1.0),
    "qwen3": QWEN3,
    "qwen3, biases": dataclasses.replace(QWEN3, attention_bias=True, num_key_value_heads=4, rope_theta=10_000.0),
}


def backbones(keep: Callable[[str], bool] = lambda name: True, *, variants: bool = False) -> pytest.MarkDecorator:
    """One configuration of each backbone that is kept, or with its variants."""
    chosen = {label: config for label, config in TINY.items() if keep(backbone_of(config)) and (variants or label in BACKBONES)}
    return pytest.mark.parametrize("config", chosen.values(), ids=chosen.keys())


@cache
def random_params(config: BackboneConfig) -> dict[str, Any]:
    """No zeros and ones: a bias or a scale that is left out must show."""
    rng = np.random.default_rng(1)

    def draw(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        around = 1.0 if path[-1].key == "scale" else 0.0
        return (around + rng.normal(0, 0.15, leaf.shape)).astype(leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, encoder_template(config))


def same_trees(a: Any, b: Any) -> bool:
    return jax.tree.structure(a) == jax.tree.structure(b) and jax.tree.all(jax.tree.map(np.array_equal, a, b))
