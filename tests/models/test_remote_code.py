"""Folders that bring Python code along: none of it runs, whoever sits at the keyboard."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qrag_jax.models.folder import read_tokenizer
from qrag_jax.models.tokenizer import TextTokenizer
from qrag_jax.reader.chat import load_tokenizer

LOADERS: list[Callable[[Path], Any]] = [TextTokenizer.load, read_tokenizer, load_tokenizer]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model folder whose code leaves a file behind when it runs; standard input says yes to every question."""
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 9))
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a"]))
    (folder / "code.py").write_text(
        f"open({str(tmp_path / 'executed')!r}, 'w').close()\n"
        "from transformers import BertConfig, BertTokenizer\n"
        "class Tokenizer(BertTokenizer): pass\n"
        "class Config(BertConfig): model_type = 'unheard-of'\n"
    )
    return folder


def refused(load: Callable[[Path], Any], folder: Path) -> str:
    with pytest.raises(ValueError, match=r"^[^\n]+$") as error:
        load(folder)
    assert not (folder.parent / "executed").exists()
    return str(error.value)


@pytest.mark.parametrize("load", LOADERS)
@pytest.mark.parametrize(
    "entry", [{"AutoTokenizer": ["code.Tokenizer", None]}, {"AutoTokenizer": "code.Tokenizer"}, ["code.Tokenizer", None]]
)
def test_a_tokenizer_that_is_code_is_refused_by_name(folder: Path, load: Callable[[Path], Any], entry: Any) -> None:
    (folder / "tokenizer_config.json").write_text(json.dumps({"auto_map": entry}))
    assert f"{folder / 'tokenizer_config.json'}: auto_map" in refused(load, folder)


@pytest.mark.parametrize("load", LOADERS)
def test_so_is_one_that_config_json_names(folder: Path, load: Callable[[Path], Any]) -> None:
    (folder / "config.json").write_text(json.dumps({"model_type": "bert", "auto_map": {"AutoTokenizer": ["code.Tokenizer", None]}}))
    assert f"{folder / 'config.json'}: auto_map" in refused(load, folder)


@pytest.mark.parametrize("load", [read_tokenizer, load_tokenizer])
def test_code_for_the_configuration_does_not_run_either(folder: Path, load: Callable[[Path], Any]) -> None:
    (folder / "config.json").write_text(json.dumps({"model_type": "unheard-of", "auto_map": {"AutoConfig": "code.Config"}}))
    assert "no tokenizer in it can be read" in refused(load, folder)
