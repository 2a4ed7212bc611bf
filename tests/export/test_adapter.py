"""Adapters: what they keep of a retriever, how small they are, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from qrag_jax.__main__ import main
from qrag_jax.export.adapter import TENSORS, interpolated, read_adapter, set_limits, write_adapter
from qrag_jax.export.folder import Export, write_export
from qrag_jax.export.hub import load_model
from qrag_jax.export.refusal import Refusal
from qrag_jax.models.embedder import pair
from qrag_jax.models.lora import make_adapters, merge
from qrag_jax.models.pretrained import load_pretrained
from tests.support.index import write_small_export
from tests.support.small import SMALL, changed


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Export:
    """A retriever whose dense layers differ by products of rank 2 from a pretrained encoder, and whose norms differ too."""
    folder = write_small_export(tmp_path_factory.mktemp("base")) / "state_encoder"
    base = load_pretrained(str(folder))
    both = []
    for seed in (1, 2):
        adapters = make_adapters(jax.random.key(seed), {"params": {"encoder": base.params}}, 2)["params"]["encoder"]
        adapters = jax.tree.map(lambda x: np.asarray(x) + 0.3 * np.cos(np.arange(x.size)).reshape(x.shape), adapters)
        merged = merge(adapters, base.params, 0.1)
        both.append(jax.tree.map(lambda x: np.asarray(x + 0.01 if x.ndim == 1 else x, np.float32), merged))
    config = changed(SMALL, model={"embedder": str(folder)}, data={"data_dir": "/of/mine"})
    return Export(config, base.backbone, pair(*both), base.tokenizer, base.pooling, 0.25, step=7, refusal=Refusal(0.5, 0.0, 0.9, 20, 60))


@pytest.fixture
def folder(export: Export, tmp_path: Path) -> Path:
    write_adapter(tmp_path / "adapter", export, 2)
    return tmp_path / "adapter"


def test_an_adapter_of_the_full_rank_keeps_the_retriever(export: Export, folder: Path) -> None:
    found = load_model(folder)
    assert (found.config, found.pooling, found.threshold, found.step) == (changed(export.config, data={"data_dir": None}), "mean", 0.25, 7)
    assert found.refusal == export.refusal
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {(folder / "qrag.json").stat().st_mode & 0o777}
    for x, y in zip(*map(jax.tree.leaves, (found.params, export.params)), strict=True):
        np.testing.assert_allclose(x, y, atol=2e-3)  # float16
    assert json.loads((folder / "qrag.json").read_text())["kept"] > 0.999
    whole = write_export(folder.parent / "whole", export)
    assert (folder / TENSORS).stat().st_size < (whole / "state_encoder/model.safetensors").stat().st_size / 4


def test_the_limits_of_an_adapter_are_set_without_its_tensors(folder: Path) -> None:
    before, tensors = json.loads((folder / "qrag.json").read_text()), (folder / TENSORS).read_bytes()
    set_limits(folder, 0.5, Refusal(0.75, 0.01, 0.5, 100, 1000))
    found = read_adapter(folder)
    assert (found.threshold, found.refusal) == (0.5, Refusal(0.75, 0.01, 0.5, 100, 1000))
    after = json.loads((folder / "qrag.json").read_text())
    assert (folder / TENSORS).read_bytes() == tensors
    assert {name for name in before if before[name] != after[name]} == {"threshold", "refusal"}


def test_a_lower_rank_keeps_less(export: Export, tmp_path: Path) -> None:
    kept = [write_adapter(tmp_path / "adapter", export, rank) for rank in (1, 2)]
    assert 0.3 < kept[0] < kept[1] <= 1


def test_the_command(export: Export, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = write_export(tmp_path / "whole", export)
    assert main(["export", str(whole), str(tmp_path / "adapter"), "--format", "adapter", "--rank", "2"]) == 0
    assert "adapter of rank 2 written" in capsys.readouterr().out
    assert main(["export", str(whole), str(tmp_path / "hf"), "--rank", "2"]) == 64
    assert "only --format adapter has a rank" in capsys.readouterr().err
    assert main(["export", str(whole), str(tmp_path / "none"), "--format", "adapter", "--rank", "0"]) == 64
    assert "must be in 1.." in capsys.readouterr().err


def test_weights_between_the_pretrained_and_the_trained_ones(export: Export, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    start = load_pretrained(export.config.model.embedder).params
    found = interpolated(export, 0.25)
    for before, after, mixed in zip(*map(jax.tree.leaves, (pair(start, None), export.params, found.params)), strict=True):
        np.testing.assert_allclose(mixed, 0.75 * np.asarray(before) + 0.25 * np.asarray(after), atol=1e-6)
    assert found.threshold is None
    assert interpolated(export, 1.0) is export

    whole = write_export(tmp_path / "whole", export)
    words = ["export", str(whole), str(tmp_path / "adapter"), "--format", "adapter", "--rank", "2", "--interpolation"]
    assert main([*words, "0.25"]) == 0
    for x, y in zip(*map(jax.tree.leaves, (load_model(tmp_path / "adapter").params, found.params)), strict=True):
        np.testing.assert_allclose(x, y, atol=2e-3)  # float16
    for share in ("0", "1.01", "nan"):
        assert main([*words, share]) == 64
        assert f"--interpolation {share}: must be above 0 and at most 1" in capsys.readouterr().err


def test_what_cannot_be_an_adapter_is_refused(export: Export, tmp_path: Path) -> None:
    scratch = load_model(write_small_export(tmp_path / "scratch"))
    with pytest.raises(ValueError, match="trained from scratch"):
        write_adapter(tmp_path / "adapter", scratch, 2)
    same = load_pretrained(export.config.model.embedder).params
    with pytest.raises(ValueError, match="no difference to write"):
        write_adapter(tmp_path / "adapter", Export(export.config, export.backbone, pair(same, None), export.tokenizer, "mean"), 2)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken/notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="choose another folder"):
        write_adapter(tmp_path / "taken", export, 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "other"}, "not an export|format"),
        ({"version": 3}, "version = 3.*update"),
        ({"base": {"name": "minilm", "sha256": ""}}, "must name the config's model.embedder"),
        ({"threshold": "high"}, "threshold"),
    ],
)
def test_a_foreign_description_is_refused(folder: Path, change: dict, message: str) -> None:
    tree = json.loads((folder / "qrag.json").read_text())
    (folder / "qrag.json").write_text(json.dumps(tree | change))
    with pytest.raises(ValueError, match=message):
        load_model(folder)


def test_other_weights_are_refused(folder: Path) -> None:
    tree = json.loads((folder / "qrag.json").read_text())
    tree["base"]["sha256"] = "0" * 64
    (folder / "qrag.json").write_text(json.dumps(tree))
    with pytest.raises(ValueError, match="are not those that this adapter changes"):
        read_adapter(folder)


@pytest.mark.parametrize("fault", ["shape", "half", "nan", "foreign", "encoder", "cut"])
def test_damaged_tensors_are_refused(folder: Path, fault: str) -> None:
    path = folder / TENSORS
    tensors = load_file(path)
    name = next(name for name in tensors if name.endswith("/a"))
    if fault == "shape":
        tensors[name] = tensors[name][:-1].copy()
    elif fault == "half":
        del tensors[name]
    elif fault == "nan":
        tensors[name] = np.full_like(tensors[name], np.nan)
    elif fault == "foreign":
        tensors["state_encoder/nowhere"] = np.zeros(3, np.float32)
    elif fault == "encoder":
        tensors["third_encoder/x"] = np.zeros(3, np.float32)
    save_file(tensors, path)
    if fault == "cut":
        path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ValueError, match=TENSORS):
        read_adapter(folder)
