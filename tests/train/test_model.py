"""The model that a run starts from: ``train.init_from`` takes every name that Retriever.from_pretrained takes."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
import pytest

from qrag_jax.export.hub import load_model
from qrag_jax.train.model import build_model
from tests.support.index import write_small_export
from tests.support.reference import write_small_reference
from tests.support.small import SMALL, changed


def starts_from(name: Path | str, run_dir: Path) -> None:
    model = build_model(changed(SMALL, train={"init_from": str(name)}), run_dir, [])
    expected = load_model(str(name))
    assert (model.backbone, model.embedder.pooling) == (expected.backbone, expected.pooling)
    jax.tree.map(np.testing.assert_array_equal, model.params, expected.params)


def test_from_an_export(tmp_path: Path) -> None:
    starts_from(write_small_export(tmp_path / "export"), tmp_path)


def test_from_a_released_checkpoint(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    folder = write_small_reference(tmp_path / "released")
    starts_from(folder, tmp_path)
    starts_from(folder / "model_best.pt", tmp_path)


def test_an_unknown_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"train\.init_from: nowhere: no such folder or file, and not a hub name; give minilm-multihop, a run"
    ):
        build_model(changed(SMALL, train={"init_from": "nowhere"}), tmp_path, [])
