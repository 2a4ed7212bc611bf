"""A chat model of two tiny layers with random weights, in memory and on disk."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors.numpy import save_file

from qrag_jax.models.decoder import Decoder, DecoderConfig, decoder_weights
from qrag_jax.models.decoder_loading import decoder_template
from qrag_jax.models.weights import from_flax

WORDS = ["<pad>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>", *(f"w{i}" for i in range(43))]
CONFIG = {
    "model_type": "llama",
    "vocab_size": len(WORDS),
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "tie_word_embeddings": True,
    "eos_token_id": 4,
}
TEMPLATE = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|> ' + m['content'] + ' <|end|> ' }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}{% if enable_thinking %} w42{% endif %}"
)


def random_decoder(raw: dict[str, Any]) -> tuple[Decoder, dict[str, Any]]:
    config = DecoderConfig.from_hf(raw)
    rng = np.random.default_rng(3)
    return Decoder(config), jax.tree.map(
        lambda leaf: rng.normal(0, 0.4, leaf.shape).astype(np.float32), decoder_template(config, np.float32)
    )


@cache
def tiny() -> tuple[Decoder, dict[str, Any]]:
    return random_decoder(CONFIG)


def write_chat_model(folder: Path, **changes: Any) -> Path:
    """A chat model as a user has it on disk: config.json, weights, a tokenizer of whole words with a chat template."""
    import tokenizers
    from tokenizers import models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    folder.mkdir(exist_ok=True)
    raw = CONFIG | changes
    model, params = random_decoder(raw)
    (folder / "config.json").write_text(json.dumps(raw))
    save_file(from_flax(decoder_weights(model.config), params), folder / "model.safetensors")
    words = tokenizers.Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="w0", pad_token="<pad>", eos_token="<|end|>", additional_special_tokens=WORDS[1:4]
    )
    fast.chat_template = TEMPLATE
    fast.save_pretrained(folder)
    return folder
