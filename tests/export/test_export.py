"""Exports are written, read again, and loaded in PyTorch by the two libraries that users have."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qrag_jax.config import DataConfig, ModelConfig, QHeadConfig
from qrag_jax.export.folder import Export, read_export, write_export
from qrag_jax.export.from_reference import read_reference
from qrag_jax.export.to_torch import NAMES, SAMPLES, difference, flax_embeddings, to_torch
from qrag_jax.models.bert import BertConfig
from qrag_jax.models.embedder import make_embedder
from qrag_jax.models.folder import ROUTER_FILES
from qrag_jax.models.registry import BACKBONES, BackboneConfig, backbone_of
from tests.support.backbones import TINY, backbones, same_trees
from tests.support.exports import CONFIG, REFUSAL, ROWS, export, tokenizer_for


@pytest.fixture
def written(tmp_path: Path) -> Export:
    return export(tmp_path / "export", TINY["bert"])


@backbones()
def test_round_trip(config: BackboneConfig, tmp_path: Path) -> None:
    read = export(tmp_path / "run" / "export", config)
    assert (read.config, read.backbone, read.threshold, read.step, read.rows) == (CONFIG, config, 0.25, 70, ROWS)
    assert read.refusal == REFUSAL
    assert "refuses 0.7% with and 88.0% without the supporting chunks" in (tmp_path / "run/export/README.md").read_text()
    assert read.pooling == BACKBONES[backbone_of(config)].pooling
    ids = tokenizer_for(config).rows(SAMPLES, 12)
    np.testing.assert_array_equal(read.tokenizer.rows(SAMPLES, 12), ids)
    ours = read.embedder().apply(read.params, ids, method="embed_states")
    np.testing.assert_array_equal(ours, make_embedder(CONFIG, config).apply(read.params, ids, method="embed_states"))


@pytest.mark.parametrize(
    ("name", "pooling"), [("bert", "mean"), ("bert", "cls"), ("bert", "last"), ("xlm-roberta", "mean"), ("qwen3, biases", "last")]
)
def test_sentence_transformers_loads_an_export_as_it_is(name: str, pooling: Any, tmp_path: Path) -> None:
    library = pytest.importorskip("sentence_transformers")
    read = export(tmp_path / "export", TINY[name], pooling=pooling)
    for encoder, length in zip(NAMES, (28, 16), strict=True):  # 12 + 2 * 8: the longest state
        model = library.SentenceTransformer(str(tmp_path / "export" / encoder), device="cpu")
        np.testing.assert_allclose(model.encode(list(SAMPLES)), flax_embeddings(read, encoder, length), atol=1e-4, rtol=0)
        assert (model.max_seq_length, model.similarity_fn_name) == (length, "dot")


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("layout", ["export", "sentence-transformers"])
def test_sentence_transformers_loads_the_root_of_an_export(layout: Any, normalize: bool, tmp_path: Path) -> None:
    library = pytest.importorskip("sentence_transformers")
    config = replace(CONFIG, model=replace(CONFIG.model, normalize=normalize))
    read = export(tmp_path / "export", TINY["bert"], config=config)
    root = tmp_path / "export" if layout == "export" else to_torch(read, tmp_path / "torch", layout)
    model = library.SentenceTransformer(str(root), device="cpu")
    states, actions = (library.SentenceTransformer(str(root / name), device="cpu").encode(list(SAMPLES)) for name in NAMES)
    assert np.abs(states - actions).max() > 1e-5, "two different encoders"
    np.testing.assert_array_equal(model.encode_query(list(SAMPLES)), states)
    np.testing.assert_array_equal(model.encode_document(list(SAMPLES)), actions)
    np.testing.assert_array_equal(model.encode(list(SAMPLES)), actions)
    assert model.similarity_fn_name == "dot"
    read_export(tmp_path / "export")


@pytest.mark.parametrize("bad", NAMES)
def test_embeddings_that_are_not_numbers_differ(bad: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = lambda name: np.full((1, 4), np.nan if name == bad else 0.0)
    monkeypatch.setattr("qrag_jax.export.to_torch.flax_embeddings", lambda export, name, length: vectors(name))
    monkeypatch.setattr("qrag_jax.export.to_torch._torch_embeddings", lambda export, folder, layout, name, length: np.zeros((1, 4)))
    read = export(tmp_path / "export", next(iter(TINY.values())))
    assert difference(read, tmp_path / "torch", "hf") == np.inf


@backbones(lambda name: name != "new")
@pytest.mark.parametrize("layout", ["hf", "sentence-transformers"])
def test_to_torch_computes_the_same(config: BackboneConfig, layout: Any, tmp_path: Path) -> None:
    pytest.importorskip("sentence_transformers")
    read = export(tmp_path / "export", config)
    out = to_torch(read, tmp_path / "torch", layout)
    found = difference(read, out, layout)
    assert found is not None
    assert found < 1e-4
    root = ROUTER_FILES if layout == "sentence-transformers" else ()
    assert {path.name for path in out.iterdir()} == {*NAMES, "README.md", *root}
    assert (out / NAMES[0] / "modules.json").exists() == (layout == "sentence-transformers")


def test_no_code_from_the_hub_is_run_for_gte(tmp_path: Path) -> None:
    read = export(tmp_path / "export", TINY["new"])
    out = to_torch(read, tmp_path / "torch", "hf")
    assert difference(read, out, "hf") is None
    assert "trust_remote_code" in (out / "README.md").read_text()


@backbones(lambda name: name in ("bert", "xlm-roberta"))
def test_reference_layout_is_read_back(config: BackboneConfig, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    read = export(tmp_path / "export", config)
    out = to_torch(read, tmp_path / "torch", "reference")
    found = difference(read, out, "reference")
    assert found is not None
    assert found < 1e-4
    again = read_reference(out / "model_best.pt", targets=True)
    assert same_trees(again.params, read.params)
    assert same_trees(again.target_params, read.params)
    assert (again.backbone, again.step, again.config.qhead, again.config.data.chunk_tokens) == (config, 70, CONFIG.qhead, 16)
    tree = torch.load(out / "model_best.pt", weights_only=True)
    # The keys of the reference code's own file, beside the encoders' tensors.
    assert set(tree) == {"critic", "policy", "random_policy", "v_net_target", "action_embed_target", "critic_optim", "scheduler", "alpha"}
    assert {name for name in tree["critic"] if ".model.e" not in name} == {
        *(
            f"{part}.{name}"
            for part in ("state_embed", "action_embed.model")
            for name in ("cls_token", "sep_token", "head.weight", "head.bias")
        ),
        *(f"{part}.pooler.dense.{name}" for part in ("state_embed.model", "action_embed.model.model") for name in ("weight", "bias")),
        "action_embed.rotary_emb.freqs",
    }
    assert tree["critic"]["state_embed.cls_token"].dtype == torch.int64


def test_the_reference_layout_refuses_what_that_code_cannot_compute(tmp_path: Path) -> None:
    config = replace(CONFIG, qhead=QHeadConfig(position_resolution="continuous", halves=1), model=ModelConfig(divisor=1.0))
    read = export(tmp_path / "export", TINY["bert"], config)
    with pytest.raises(ValueError, match=r"model\.divisor = 1\.0 .*qhead\.halves = 1 .*position_resolution = 'continuous'"):
        to_torch(read, tmp_path / "torch", "reference")
    assert not (tmp_path / "torch").exists()


def test_a_tied_embedder_is_written_twice(tmp_path: Path) -> None:
    read = export(tmp_path / "export", TINY["bert"], replace(CONFIG, model=ModelConfig(tied=True)))
    assert set(read.params["params"]) == {"encoder"}
    first, second = ((tmp_path / "export" / name / "model.safetensors").read_bytes() for name in NAMES)
    assert first == second


def test_the_model_card_says_what_it_is(written: Export, tmp_path: Path) -> None:
    card = (tmp_path / "export/README.md").read_text()
    for part in (
        "babilong qa2",
        "| babilong | qa2 | 4000 | 0.938 | 0.900 to 0.970 |",
        "below: 0.25",
        "update 70",
        "Retriever.from_pretrained",
    ):
        assert part in card
    assert "Answer EM" not in card, "a figure that was not measured has no column"


def test_an_older_export_is_replaced_and_a_failure_leaves_it(written: Export, tmp_path: Path) -> None:
    out = tmp_path / "export"
    export(out, TINY["bert"], step=71)
    assert read_export(out).step == 71
    with pytest.raises(ValueError, match="found \\['nonsense'\\]"):
        write_export(out, replace(written, params={"params": {"nonsense": {}}}, step=72))
    assert read_export(out).step == 71
    assert [path.name for path in tmp_path.iterdir()] == ["export"]


def test_another_folder_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "export").mkdir()
    (tmp_path / "export/thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match="was not written by this command"):
        export(tmp_path / "export", TINY["bert"])


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("qrag.json", None, "not an export"),
        ("qrag.json", b"{", "not a JSON file"),
        ("qrag.json", {"format": "other"}, "format = 'other'"),
        ("qrag.json", {"version": 3}, "version = 3.*update"),
        ("qrag.json", {"refusal": 0.5}, "refusal: must be an object"),
        ("qrag.json", {"refusal": {"least_q": 0.5}}, "refusal: .*missing"),
        ("qrag.json", {"refusal": {**asdict(REFUSAL), "answerable": 2.0}}, "refusal: answerable = 2.0: must be in 0..1"),
        ("qrag.json", {"refusal": {**asdict(REFUSAL), "least_q": float("nan")}}, "refusal: least_q = nan: must be a finite number"),
        ("qrag.json", {"pooling": "max"}, "pooling = 'max': must be one of mean, last, cls"),
        ("qrag.json", {"threshold": "high"}, "threshold = 'high': must be a finite number or null"),
        ("qrag.json", {"config": {"model": {"colour": 1}}}, "colour"),
        ("state_encoder/config.json", {"hidden_act": "relu"}, "hidden_act = 'relu' is not supported"),
        ("state_encoder/config.json", {"model_type": "mamba"}, "model_type = 'mamba' is not supported"),
        ("action_encoder/config.json", {"layer_norm_eps": 0.1}, "must be the same network"),
        ("action_encoder/config.json", None, "no such file"),
        ("action_encoder/model.safetensors", None, "no weights"),
        ("action_encoder/model.safetensors", b"torn", "not a readable safetensors file"),
        ("tokenizer.json", b"torn", "not a tokenizer.json"),
    ],
)
def test_a_spoiled_export_is_refused_with_its_file(written: Export, tmp_path: Path, file: str, change: Any, message: str) -> None:
    path = tmp_path / "export" / file
    if change is None:
        path.unlink()
    elif isinstance(change, bytes):
        path.write_bytes(change)
    else:
        path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=message) as error:
        read_export(tmp_path / "export")
    assert file.split("/")[0] in str(error.value) or "not an export" in message or "same network" in message


def test_an_export_of_version_1_is_read(written: Export, tmp_path: Path) -> None:
    path = tmp_path / "export/qrag.json"
    tree = json.loads(path.read_text())
    path.write_text(json.dumps({name: value for name, value in tree.items() if name != "refusal"} | {"version": 1}))
    read = read_export(tmp_path / "export")
    assert (read.threshold, read.refusal) == (0.25, None)


def test_weights_of_another_shape_are_named(written: Export, tmp_path: Path) -> None:
    for name in NAMES:
        path = tmp_path / "export" / name / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"intermediate_size": 40}))
    with pytest.raises(ValueError, match=re.escape("encoder.layer.0.intermediate.dense.weight is (48, 32), config.json implies (40, 32)")):
        read_export(tmp_path / "export")


def test_token_rows_too_long_for_the_backbone_are_refused() -> None:
    for data, message in (
        (DataConfig(chunk_tokens=65), r"data\.chunk_tokens = 65: the embedder reads at most 64"),
        (DataConfig(question_tokens=20, state_chunk_tokens=23), r"up to 66 tokens.*set data\.state_tokens"),
    ):
        with pytest.raises(ValueError, match=message):
            make_embedder(replace(CONFIG, data=data), BertConfig(100, 32, 1, 2, 32, 64))
    with pytest.raises(ValueError, match="width 30"):
        make_embedder(CONFIG, BertConfig(100, 30, 1, 2, 32, 64))
