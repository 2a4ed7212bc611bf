"""The reader's network against transformers: logits at 1e-4, greedy text token for token, on tiny random models."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from safetensors.numpy import load_file, save_file

from qrag_jax.models.decoder import Decoder, DecoderConfig
from qrag_jax.models.decoder_loading import load_params, open_decoder
from qrag_jax.reader.generate import generate, pad_prompts
from tests.support.decoders import jitted, torch_greedy, torch_logits, torch_model

VOCAB, CONTEXT = 96, 256
TINY: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": CONTEXT,
    "head_dim": 16,
    "initializer_range": 0.3,  # wide enough that no two tokens tie
    "eos_token_id": None,
    "bos_token_id": None,
    "pad_token_id": 0,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
    "rope_theta": 5e4,
}
CASES: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama", "rope_theta": 1e5, "rms_norm_eps": 2**-10, "head_dim": None},
    "llama, llama3": {"model_type": "llama", "rope_parameters": LLAMA3},
    "llama, linear": {"model_type": "llama", "rope_theta": 1e4, "rope_scaling": {"type": "linear", "factor": 4.0}},
    "llama, yarn": {
        "model_type": "llama",
        "rope_theta": 1e4,
        "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
    },
    "llama, yarn by ratio": {
        "model_type": "llama",
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 1e4,
            "factor": 2.0,
            "original_max_position_embeddings": 64,
            "beta_fast": 8.0,
            "beta_slow": 2.0,
            "attention_factor": 1.3,
        },
    },
    "llama, biases, tied": {
        "model_type": "llama",
        "attention_bias": True,
        "mlp_bias": True,
        "tie_word_embeddings": True,
        "head_dim": 6,
        "num_key_value_heads": 8,
    },
    "qwen2": {"model_type": "qwen2", "rope_theta": 1e6, "tie_word_embeddings": True, "use_sliding_window": False, "sliding_window": 64},
    "qwen3": {"model_type": "qwen3", "rope_parameters": {"rope_theta": 1e6, "rope_type": "default"}},
    "qwen3, 5e6": {"model_type": "qwen3", "rope_theta": 5e6, "head_dim": 8, "tie_word_embeddings": True, "attention_bias": True},
}
LENGTHS = (3, 40, 17, 1, 29, 8, 33, 12)
PROMPTS = [np.random.default_rng(length).integers(1, VOCAB, length).tolist() for length in LENGTHS]
NO_STOP = np.zeros(0, np.int32)


@pytest.fixture(scope="module")
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as transformers writes it, with random weights: no zeros and ones, so that what is left out must show."""
    torch = pytest.importorskip("torch")
    from transformers import AutoConfig, AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("decoder")
    raw = TINY | CASES[request.param]
    torch.manual_seed(0)
    kind = raw["model_type"]
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**raw))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias") or "norm" in name:
                parameter.add_(0.3 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    # The file as a user finds it: old layout or new, as the case is written.
    (folder / "config.json").write_text(json.dumps(raw | {"model_type": kind}))
    return folder


def ours(folder: Path, **options: Any) -> tuple[Decoder, Any]:
    source = open_decoder(folder)
    return Decoder(source.config), load_params(source, **options)


def by(*names: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("folder", names or list(CASES), indirect=True)


def padded_left_and_right() -> tuple[np.ndarray, np.ndarray]:
    left = pad_prompts(PROMPTS, 8, 40)
    return left, np.array([np.roll(row, np.sum(row >= 0)) for row in left])


@by()
@pytest.mark.optimized
def test_logits_are_those_of_transformers(folder: Path) -> None:
    model, params = ours(folder)
    theirs = torch_model(folder)
    for rows in padded_left_and_right():
        real = rows >= 0
        np.testing.assert_allclose(jitted(model)(params, rows)[real], torch_logits(theirs, rows)[real], atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "folder", [pytest.param(name, marks=[] if name in ("llama", "qwen3") else pytest.mark.slow) for name in CASES], indirect=True
)
@pytest.mark.optimized
def test_greedy_text_is_that_of_transformers(folder: Path) -> None:
    model, params = ours(folder)
    left, right = padded_left_and_right()
    greedy = torch_greedy(torch_model(folder), left, 64)
    for rows in (left, right):
        text = generate(model, params, rows, max_new_tokens=64, stop_ids=NO_STOP, key=jax.random.key(0))
        np.testing.assert_array_equal(text.ids, greedy)
        assert not text.stopped.any()


@by("qwen3")
def test_rows_stop_one_by_one_where_transformers_stops(folder: Path) -> None:
    model, params = ours(folder)
    rows = pad_prompts(PROMPTS, 8, 40)
    free = np.asarray(generate(model, params, rows, max_new_tokens=64, stop_ids=NO_STOP, key=jax.random.key(0)).ids)
    # The token that ends the most rows somewhere in the middle.
    stop = int(np.argmax([np.sum([8 < first < 60 for first in np.argmax(free == token, axis=1)]) for token in range(VOCAB)]))
    text = generate(model, params, rows, max_new_tokens=64, stop_ids=np.array([stop]), key=jax.random.key(0))
    theirs = torch_greedy(torch_model(folder), rows, 64, stop)
    theirs = np.pad(theirs, ((0, 0), (0, 64 - theirs.shape[1])))
    for row, other, stopped in zip(np.asarray(text.ids), theirs, np.asarray(text.stopped), strict=True):
        end = int(np.argmax(other == stop)) if (other == stop).any() else 64
        np.testing.assert_array_equal(row[:end], other[:end])
        assert (row[end:] == -1).all()
        assert stopped == (end < 64)
    assert 1 < text.stopped.sum() < 8


@by("llama")
def test_long_prompts_go_block_by_block(folder: Path) -> None:
    """768 tokens are three blocks of queries; the rows end inside the first and the last."""
    model, params = ours(folder)
    rows = pad_prompts([np.random.default_rng(0).integers(1, VOCAB, length).tolist() for length in (768, 200)], 2, 768)
    real = rows >= 0
    np.testing.assert_allclose(jitted(model)(params, rows)[real], torch_logits(torch_model(folder), rows)[real], atol=1e-4, rtol=0)


@by("qwen2", "qwen3")
@pytest.mark.parametrize("devices", [2, 4])
def test_a_network_split_over_devices_computes_the_same(folder: Path, devices: int) -> None:
    if len(jax.devices()) < devices:
        pytest.skip("needs 4 devices; XLA_FLAGS was set before the tests' own --xla_force_host_platform_device_count=4")
    mesh = Mesh(np.asarray(jax.devices()[:devices]), ("model",))
    model, whole = ours(folder)
    _, split = ours(folder, mesh=mesh)
    held = [leaf.addressable_shards[0].data.nbytes / leaf.nbytes for leaf in jax.tree.leaves(split) if leaf.ndim == 2]
    assert set(held) == {1 / devices}, "every matrix is split"
    rows = pad_prompts(PROMPTS, 8, 40)
    np.testing.assert_allclose(jitted(model)(split, rows)[rows >= 0], jitted(model)(whole, rows)[rows >= 0], atol=1e-5, rtol=1e-5)
    one, more = (generate(model, p, rows, max_new_tokens=16, stop_ids=NO_STOP, key=jax.random.key(0)).ids for p in (whole, split))
    np.testing.assert_array_equal(one, more)


@by("qwen3")
def test_shards_are_read_as_one_file_and_bfloat16_stays_close(folder: Path, tmp_path: Path) -> None:
    import ml_dtypes

    model, params = ours(folder)
    tensors = load_file(folder / "model.safetensors")
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    names = sorted(tensors)
    parts = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    for file, part in parts.items():
        save_file({name: tensors[name].astype(ml_dtypes.bfloat16) for name in part}, tmp_path / file)
    index = {"weight_map": {name: file for file, part in parts.items() for name in part}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    _, rounded = ours(tmp_path)
    expected = jax.tree.map(lambda leaf: np.asarray(leaf).astype(ml_dtypes.bfloat16).astype(np.float32), params)
    jax.tree.map(np.testing.assert_array_equal, rounded, expected)

    _, half = ours(folder, dtype=jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves(half)} == {jnp.dtype(jnp.bfloat16)}
    rows = pad_prompts(PROMPTS, 8, 40)
    coarse = jitted(Decoder(model.config, dtype=jnp.bfloat16))(half, rows)[rows >= 0]
    exact = jitted(model)(params, rows)[rows >= 0]
    assert 0 < jnp.abs(coarse - exact).max() < 0.1 * jnp.abs(exact).max()


@by("llama", "qwen3")
def test_gguf_is_read_as_the_folder_it_was_made_from(folder: Path, tmp_path: Path) -> None:
    """Written with the package's own writer, q and k of Llama interleaved as by llama.cpp: pair i of a head in rows 2i, 2i + 1."""
    path = write_gguf(folder, tmp_path / "model.gguf")
    source = open_decoder(path)
    expected, params = ours(folder)
    assert source.config == expected.config
    jax.tree.map(np.testing.assert_array_equal, load_params(source), params)


@by("llama, llama3")
def test_gguf_keeps_llama3_s_scaling_as_divisors(folder: Path, tmp_path: Path) -> None:
    expected = DecoderConfig.from_hf(json.loads((folder / "config.json").read_text())).rope
    divisors = LLAMA3["rope_theta"] ** (-np.arange(8) / 8) / expected.frequencies
    assert (divisors[0], divisors[-1]) == (1, pytest.approx(8)), "the fastest pair is kept, the slowest slowed by the whole factor"
    found = open_decoder(write_gguf(folder, tmp_path / "model.gguf", divisors=divisors)).config.rope
    np.testing.assert_allclose(found.frequencies, expected.frequencies, rtol=1e-6)


def write_gguf(folder: Path, path: Path, divisors: np.ndarray | None = None, **changes: Any) -> Path:
    gguf = pytest.importorskip("gguf")
    raw = json.loads((folder / "config.json").read_text())
    kind = raw["model_type"]
    writer = gguf.GGUFWriter(path, kind)
    for name, value in {
        "embedding_length": raw["hidden_size"],
        "block_count": raw["num_hidden_layers"],
        "attention.head_count": raw["num_attention_heads"],
        "attention.head_count_kv": raw["num_key_value_heads"],
        "feed_forward_length": raw["intermediate_size"],
        "context_length": raw["max_position_embeddings"],
        "attention.key_length": raw["head_dim"] or raw["hidden_size"] // raw["num_attention_heads"],
        **changes,
    }.items():
        if value is not None:
            writer.add_uint32(f"{kind}.{name}", value)
    writer.add_float32(f"{kind}.rope.freq_base", raw.get("rope_theta") or raw["rope_parameters"]["rope_theta"])
    writer.add_float64(f"{kind}.attention.layer_norm_rms_epsilon", raw.get("rms_norm_eps", 1e-6))
    if divisors is not None:
        writer.add_tensor("rope_freqs.weight", divisors.astype(np.float32))
    rename = dict(gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA if kind == "llama" else gguf.MODEL_ARCH.QWEN3, 2).mapping)
    for name, tensor in load_file(folder / "model.safetensors").items():
        stem, leaf = name.rsplit(".", 1)
        heads = {"q_proj": raw["num_attention_heads"], "k_proj": raw["num_key_value_heads"]}.get(stem.rsplit(".", 1)[-1])
        if kind == "llama" and heads:
            half = len(tensor) // heads // 2
            order = [head * 2 * half + part * half + i for head in range(heads) for i in range(half) for part in (0, 1)]
            tensor = tensor[order]
        writer.add_tensor(f"{rename[stem][1]}.{leaf}", np.ascontiguousarray(tensor))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@by("llama")
@pytest.mark.parametrize(("changes", "named"), [({"context_length": None}, "context_length"), ({"expert_count": 4}, "expert_count")])
def test_gguf_metadata_is_refused_by_name(folder: Path, tmp_path: Path, changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        open_decoder(write_gguf(folder, tmp_path / "model.gguf", **changes))


def test_a_broken_gguf_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(ValueError, match=r"model\.gguf: not a readable GGUF file"):
        open_decoder(tmp_path / "model.gguf")


REFUSED = [
    ("model_type", "mistral"),
    ("hidden_act", "gelu"),
    ("use_sliding_window", True),
    ("sliding_window", 128),
    ("layer_types", ["full_attention", "sliding_attention"]),
    ("rope_scaling", {"type": "longrope", "factor": 2.0}),
    ("rope_parameters", {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}),
    ("rope_scaling", {"type": "linear"}),
    ("rope_theta", 0),
    ("partial_rotary_factor", 0.5),
    ("num_key_value_heads", 3),
    ("num_hidden_layers", None),
    ("quantization_config", {"bits": 4}),
]


@pytest.mark.parametrize(("key", "value"), REFUSED)
def test_settings_that_would_change_the_maths_are_refused_by_name(key: str, value: Any) -> None:
    named = {"rope_scaling": "longrope|factor", "rope_parameters": "dynamic"}.get(key, re.escape(key))
    with pytest.raises(ValueError, match=named):
        DecoderConfig.from_hf({**TINY, "model_type": "llama", key: value})


def test_yarn_over_the_stated_context_lengthens_it() -> None:
    scaling = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": CONTEXT}
    assert DecoderConfig.from_hf({**TINY, "model_type": "qwen2", "rope_scaling": scaling}).max_tokens == 4 * CONTEXT


@by("llama")
def test_what_does_not_divide_is_refused(folder: Path) -> None:
    mesh = Mesh(np.asarray(jax.devices()[:3]), ("model",))
    with pytest.raises(ValueError, match="num_key_value_heads = 4 does not divide over 3"):
        load_params(open_decoder(folder), mesh=mesh)
    with pytest.raises(ValueError, match="episodes"):
        load_params(open_decoder(folder), mesh=Mesh(np.asarray(jax.devices()[:2]), ("episodes",)))
