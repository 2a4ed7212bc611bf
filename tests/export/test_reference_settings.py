"""The reference code's config.yaml: which classes of encoders are known, and what each of them computes."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import yaml

from qrag_jax.export.folder import Export, read_export, write_export
from qrag_jax.export.hub import load_model
from qrag_jax.export.reference_layout import ACTION, STATE
from qrag_jax.export.to_torch import NAMES, SAMPLES, difference, flax_embeddings, to_torch
from qrag_jax.models.embedder import Embedder, normalized
from qrag_jax.models.registry import encoder_tensors
from tests.support.backbones import TINY, random_params
from tests.support.exports import CONFIG, export, tokenizer_for
from tests.support.reference import write_small_reference

torch = pytest.importorskip("torch")
HOME = "rl.bert_predictor."
QWEN = TINY["qwen3, biases"]


@pytest.fixture
def released(tmp_path: Path) -> Path:
    return write_small_reference(tmp_path / "released")


def edit(folder: Path, *changes: tuple[str, Any]) -> None:
    """Sets values of config.yaml, which has no anchors, by dotted path."""
    path = folder / "config.yaml"
    tree = yaml.safe_load(path.read_text())
    for name, value in changes:
        *parts, last = name.split(".")
        node = tree
        for part in parts:
            node = node[part]
        node[last] = value
    path.write_text(yaml.safe_dump(tree))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("algo.action_model._target_", "mine.Encoder", "algo.pqn.state_embed._target_ = 'mine.Encoder' is not supported"),
        (
            "algo.action_model._target_",
            f"{HOME}EmbedderNone",
            f"supported: {HOME}BertPredictor, {HOME}SimpleEmbedder",
        ),
        ("algo.pqn.state_embed", {"_target_": f"{HOME}SimpleEmbedder"}, "algo.action_model._target_ = 'rl.bert_predictor.BertPredictor'"),
        ("algo.action_embed_dict.relative._target_", "mine.Rotated", "algo.action_embed_dict.relative._target_ = 'mine.Rotated'"),
        ("algo.action_embed_dict.relative._target_", f"{HOME}EmbedderNone", "algo.action_embed_dict.relative._target_"),
        ("algo.action_model.n_output", 2, "n_output = 2 is not supported"),
    ],
)
def test_unknown_classes_are_refused_by_name(released: Path, name: str, value: Any, message: str) -> None:
    edit(released, (name, value))
    with pytest.raises(ValueError, match=r"config\.yaml: ") as error:
        load_model(released)
    assert message in str(error.value)


def test_classes_that_were_not_chosen_may_be_anything(released: Path) -> None:
    edit(released, ("algo.action_embed_dict.none._target_", "mine.Encoder"))
    assert load_model(released).config.qhead.positions == "relative"


def write_simple(folder: Path, **options: Any) -> dict[str, np.ndarray]:
    """Turns a released checkpoint into one of Qwen3 encoders of the class SimpleEmbedder; returns the state encoder's tensors."""
    export(folder.parent / "qwen", QWEN)
    base = folder / "base_model"
    (base / "config.json").write_text(json.dumps(QWEN.to_hf()))
    tokenizer_for(QWEN).save(base / "tokenizer.json")
    simple = {"_target_": f"{HOME}SimpleEmbedder", "model_name": "${algo.model.model_name}"} | options
    edit(folder, ("algo.action_model", simple), ("algo.state_model", simple), ("algo.pqn.state_embed", "${algo.state_model}"))
    tensors = encoder_tensors(QWEN, random_params(QWEN))
    named = lambda prefix, scale: {prefix + name: torch.tensor(tensor * scale) for name, tensor in tensors.items()}
    torch.save({"critic": named(STATE, 1.0) | named(ACTION, 0.9), "scheduler": {"last_epoch": 5}}, folder / "model_best.pt")
    return tensors


@pytest.mark.parametrize("normalize", [True, False])
def test_simple_embedder_is_the_last_token_at_length_1(released: Path, normalize: bool) -> None:
    """The network itself is compared with transformers in tests/models; here, what is made of its token vectors."""
    write_simple(released, **({} if normalize else {"normalize_embeds": False}))
    found = load_model(released)
    assert (found.pooling, found.config.model.normalize, found.config.model.divisor, found.step) == ("last", normalize, 1.0, 5)
    ids = found.tokenizer.rows(SAMPLES, 12)
    plain = np.asarray(Embedder(QWEN, pooling="last", divisor=1.0).apply(found.params, ids, method="embed_states"))
    ours = np.asarray(found.embedder().apply(found.params, ids, method="embed_states"))
    expected = plain / np.linalg.norm(plain, axis=-1, keepdims=True) if normalize else plain
    np.testing.assert_allclose(ours, expected, atol=1e-6)


def test_sentence_transformers_normalises_too(tmp_path: Path) -> None:
    library = pytest.importorskip("sentence_transformers")
    config = dataclasses.replace(CONFIG, model=dataclasses.replace(CONFIG.model, normalize=True, divisor=2.0))
    read = export(tmp_path / "export", QWEN, config)
    for encoder in NAMES:
        vectors = library.SentenceTransformer(str(tmp_path / "export" / encoder), device="cpu").encode(list(SAMPLES))
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=-1), 0.5, atol=1e-5)
    np.testing.assert_allclose(vectors, flax_embeddings(read, NAMES[1], 16), atol=1e-4, rtol=0)
    assert "last-token pooling, length 1 (L2), divided by 2" in (tmp_path / "export/README.md").read_text()
    for layout in ("hf", "sentence-transformers"):
        out = to_torch(read, tmp_path / layout, layout)
        assert (found := difference(read, out, layout)) is not None
        assert found < 1e-4
    with pytest.raises(ValueError, match=r"model\.normalize = True"):
        to_torch(read, tmp_path / "reference", "reference")


def test_normalising_zeros_is_zeros_with_a_finite_gradient() -> None:
    """A row without tokens is pooled to zeros."""
    vectors = np.array([[3.0, 4.0], [0.0, 0.0]], np.float32)
    np.testing.assert_allclose(normalized(vectors), [[0.6, 0.8], [0.0, 0.0]], rtol=1e-6)
    assert np.isfinite(jax.grad(lambda x: normalized(x)[:, 0].sum())(vectors)).all()


def test_an_export_from_before_the_setting_is_read(tmp_path: Path, released: Path) -> None:
    old = write_export(tmp_path / "old", dataclasses.replace(read_export(released.parent / "export"), step=3))
    tree = json.loads((old / "qrag.json").read_text())
    del tree["config"]["model"]["normalize"]
    (old / "qrag.json").write_text(json.dumps(tree))
    found: Export = read_export(old)
    assert (found.config.model.normalize, found.step) == (False, 3)
