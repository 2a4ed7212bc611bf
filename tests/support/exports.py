"""Exports of tiny random encoders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np
import tokenizers
from tokenizers import models, normalizers, pre_tokenizers, processors

from qrag_jax.config import DataConfig, EvalConfig, RLConfig, RunConfig
from qrag_jax.export.folder import Export, read_export, write_export
from qrag_jax.export.refusal import Refusal
from qrag_jax.export.to_torch import SAMPLES
from qrag_jax.models.embedder import pair
from qrag_jax.models.qwen3 import Qwen3Config
from qrag_jax.models.registry import BACKBONES, BackboneConfig, backbone_of
from qrag_jax.models.tokenizer import TextTokenizer, train_wordpiece
from tests.support.backbones import random_params, same_trees

CONFIG = RunConfig(
    data=DataConfig(question_tokens=12, chunk_tokens=16, state_chunk_tokens=8),
    rl=RLConfig(budget=3),
    eval=EvalConfig(budget=3),
)
ROWS = [{"benchmark": "babilong", "task": "qa2", "context_tokens": 4000, "fact_em": 0.9375, "ci95": [0.9, 0.97], "answer_em": None}]
REFUSAL = Refusal(0.444, 0.0067, 0.88, 300, 3000)


def roberta_tokenizer() -> TextTokenizer:
    """The special tokens of XLM-RoBERTa at their ids: its network counts positions by the tokens that are not padding."""
    words = ["<s>", "<pad>", "</s>", "<unk>", *"abcdefghijklmnopqrstuvwxyz", "the", "milk", "apple", "sentence"]
    tokenizer = tokenizers.Tokenizer(models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    tokenizer.add_special_tokens(words[:4])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)])
    return TextTokenizer(tokenizer)


def qwen_tokenizer() -> TextTokenizer:
    """Like Qwen3-Embedding's tokenizer: no opening special token, and <|endoftext|> closes a text."""
    words = ["<|endoftext|>", "<unk>", *"abcdefghijklmnopqrstuvwxyz", "the", "milk", "apple"]
    tokenizer = tokenizers.Tokenizer(models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    tokenizer.add_special_tokens(words[:1])
    tokenizer.post_processor = processors.TemplateProcessing(single="$A <|endoftext|>", special_tokens=[("<|endoftext|>", 0)])
    return TextTokenizer(tokenizer)


def tokenizer_for(config: BackboneConfig) -> TextTokenizer:
    if backbone_of(config) in ("xlm-roberta", "new"):
        return roberta_tokenizer()
    return qwen_tokenizer() if isinstance(config, Qwen3Config) else train_wordpiece(SAMPLES, config.vocab_size)


def export(out: Path, backbone: BackboneConfig, config: RunConfig = CONFIG, **options: Any) -> Export:
    """An export of two different random encoders."""
    state = random_params(backbone)
    action = jax.tree.map(lambda leaf: leaf * np.float32(0.9), state)
    params = pair(state, None if config.model.tied else action, config.model.tied)
    given = {"pooling": BACKBONES[backbone_of(backbone)].pooling, "threshold": 0.25, "step": 70, "rows": ROWS, "refusal": REFUSAL} | options
    write_export(out, Export(config, backbone, params, tokenizer_for(backbone), **given))
    read = read_export(out)
    assert same_trees(read.params, params), "the round trip must be bit-identical"
    return read
