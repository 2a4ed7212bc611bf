"""Weights, tokenizers, GGUF and torch files that would answer wrongly, hang, abort or fill the memory are refused in one line."""

from __future__ import annotations

import json
import shutil
import struct
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from qrag_jax.export.folder import read_export
from qrag_jax.models.folder import read_backbone
from qrag_jax.models.gguf_layout import check_layout
from qrag_jax.models.tokenizer import TextTokenizer
from qrag_jax.models.tokenizer_files import check_tokenizer_file
from tests.support.index import write_small_export


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_export(tmp_path_factory.mktemp("hostile") / "export")


@pytest.fixture
def export(good: Path, tmp_path: Path) -> Path:
    return shutil.copytree(good, tmp_path / "export")


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf], ids=str)
@pytest.mark.parametrize("encoder", ["state_encoder", "action_encoder"])
def test_weights_that_are_not_finite_are_refused_by_name(export: Path, encoder: str, value: float) -> None:
    path = export / encoder / "model.safetensors"
    tensors = load_file(path)
    name = sorted(tensors)[-1]
    tensors[name] = tensors[name].copy()
    tensors[name].flat[-1] = value
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=rf"{encoder}: .*not finite: {name} holds NaN or infinity \(1 of "):
        read_export(export)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("num_hidden_layers", 10**6), ("vocab_size", 10**12), ("hidden_size", 2**40), ("max_position_embeddings", 2**62)),
        *(("type_vocab_size", -1), ("type_vocab_size", "x"), ("type_vocab_size", 2**60), ("layer_norm_eps", None), ("layer_norm_eps", "x")),
        *(("layer_norm_eps", float("nan")), ("hidden_dropout_prob", [])),
    ],
)
def test_a_network_of_absurd_sizes_is_refused_before_anything_is_allocated(export: Path, name: str, value: Any) -> None:
    change(export / "state_encoder" / "config.json", **{name: value})
    start = time.perf_counter()
    with pytest.raises(ValueError, match=f"config.json: {name} = "):
        read_backbone(export / "state_encoder")
    assert time.perf_counter() - start < 2


@pytest.mark.parametrize("name", ["threshold", "step"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 2**80], ids=str)
def test_figures_of_an_export_are_finite(export: Path, name: str, value: Any) -> None:
    if (name, value) == ("threshold", 2**80):
        pytest.skip("a number like any other")
    change(export / "qrag.json", **{name: value})
    with pytest.raises(ValueError, match=rf"qrag\.json: {name} = "):
        read_export(export)


SHARDS = ['{"weight_map": []}', '{"weight_map": {"a": 1}}', '{"weight_map": {"a": "../../x"}}', '{"weight_map": {"a": "zz"}}', "[]", "{}"]


@pytest.mark.parametrize("index", SHARDS)
def test_an_index_of_shards(export: Path, index: str) -> None:
    (export / "state_encoder" / "model.safetensors").unlink()
    (export / "state_encoder" / "model.safetensors.index.json").write_text(index)
    with pytest.raises(ValueError, match=r"weight_map|outside|no such file|JSON object"):
        read_export(export)


def template(*, ids: list[int] = [2], before: int = 1) -> dict[str, Any]:  # noqa: B006 (it is not changed)
    special, text = {"SpecialToken": {"id": "[CLS]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}
    tokens = {"[CLS]": {"id": "[CLS]", "ids": ids, "tokens": ["[CLS]"] * len(ids)}}
    return {"type": "TemplateProcessing", "single": [special] * before + [text, special], "pair": [text, text], "special_tokens": tokens}


def replace(pattern: dict[str, str], content: str = "x") -> dict[str, Any]:
    return {"type": "Replace", "pattern": pattern, "content": content}


BPE = {"type": "BPE", "vocab": {"a": 0}, "merges": [], "dropout": None, "unk_token": None, "continuing_subword_prefix": None}
UNIGRAM = {"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0.0]]}
TOKENIZERS: list[tuple[dict[str, Any], str]] = [
    ({"model": None}, "model: must be"),
    ({"model": {"type": "WordLevel", "vocab": {}, "unk_token": "a"}}, "model.vocab: must hold"),
    ({"model": {"type": "WordLevel", "vocab": {"a": 2**31}, "unk_token": "a"}}, "id 2147483648"),
    ({"model": BPE | {"dropout": 5.0}}, "model.dropout"),
    ({"model": BPE | {"continuing_subword_prefix": "####", "merges": [["a", "é"]]}}, "model.merges"),
    ({"model": UNIGRAM | {"unk_id": 9}}, "model.unk_id"),
    ({"model": UNIGRAM | {"vocab": [["a", float("inf")]]}}, "finite score"),
    ({"model": UNIGRAM | {"vocab": []}}, "model.unk_id|model.vocab"),
    ({"added_tokens": [{"id": 0, "content": ""}]}, "has no content"),
    ({"added_tokens": [{"id": 2**31, "content": "x"}]}, "added_tokens: id"),
    ({"normalizer": replace({"Regex": "(a*)*b"})}, "repeats a group"),
    ({"normalizer": replace({"Regex": "(a|a)*b"})}, "repeats a group"),
    ({"normalizer": replace({"String": ""})}, "normalizer.pattern"),
    ({"normalizer": {"type": "Sequence", "normalizers": [replace({"Regex": "."}, "x" * 10)] * 9}}, "lengthen a text"),
    ({"post_processor": template(ids=[4_000_000_000])}, "special_tokens: id"),
    ({"post_processor": template(before=1000)}, "parts; at most"),
    ({"post_processor": template(ids=[9999])}, "its tokenizer knows 10000 tokens"),
]


@pytest.mark.parametrize(("parts", "why"), TOKENIZERS, ids=range(len(TOKENIZERS)))
def test_tokenizers_that_abort_hang_or_give_ids_without_a_vector(export: Path, parts: dict[str, Any], why: str) -> None:
    change(export / "tokenizer.json", **parts)
    with pytest.raises(ValueError, match=why) as caught:
        read_export(export)
    assert "\n" not in str(caught.value)


def test_a_real_tokenizer_passes(good: Path) -> None:
    check_tokenizer_file(good / "tokenizer.json")
    assert TextTokenizer.load(good / "tokenizer.json").ids <= read_backbone(good / "state_encoder").vocab_size


def gguf(tensors: int = 0, fields: int = 0, rest: bytes = b"") -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, tensors, fields) + rest


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


GGUF: list[tuple[bytes, str]] = [
    (b"", "empty"),
    (b"GGML" + bytes(40), "does not begin with GGUF"),
    (b"GGUF" + struct.pack("<IQQ", 99, 0, 0), "version 99"),
    (gguf(tensors=2**40), "claims 1,099,511,627,776 tensors"),
    (gguf(fields=2**50), "metadata fields"),
    (gguf(fields=1, rest=struct.pack("<Q", 2**60)), "characters in a name"),
    (gguf(fields=1, rest=text(b"a") + struct.pack("<IQ", 8, 2**60)), "characters in a text"),
    (gguf(fields=1, rest=text(b"a") + struct.pack("<IIQ", 9, 4, 2**50)), "elements in an array"),
    (gguf(fields=1, rest=text(b"a") + struct.pack("<IIQ", 9, 4, 2**20)), "ends too early"),
    (gguf(fields=1, rest=text(b"a") + struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 9), "array of type 9"),
    (gguf(fields=1, rest=text(b"a") + struct.pack("<I", 77)), "of type 77"),
    (gguf(tensors=1, rest=text(b"a") + struct.pack("<I", 99)), "99 dimensions"),
    (gguf(tensors=1, rest=text(b"a") + struct.pack("<IQQIQ", 2, 2**40, 2**40, 0, 0)), "outside the file"),
    (gguf(tensors=1, rest=text(b"a") + struct.pack("<IQIQ", 1, 1, 0, 2**60)), "outside the file"),
    (gguf(tensors=5), "ends too early"),
]


@pytest.mark.parametrize(("content", "why"), GGUF, ids=range(len(GGUF)))
def test_gguf_counts_that_lead_out_of_the_file(tmp_path: Path, content: bytes, why: str) -> None:
    (tmp_path / "x.gguf").write_bytes(content)
    with pytest.raises(ValueError, match=why):
        check_layout(tmp_path / "x.gguf")


def test_an_archive_that_unpacks_to_more_than_it_holds(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from qrag_jax.models.pickles import open_tensors

    with zipfile.ZipFile(tmp_path / "x.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}q\x00.")
        archive.writestr("archive/data/0", bytes(2**24))
    with pytest.raises(ValueError, match="compressed, or larger than the file"):
        open_tensors(tmp_path / "x.pt")


def test_a_trained_network_that_gives_nan_answers_nothing(good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights that are finite and overflow: no picks are better than picks 0, 1, 2."""
    from tests.support.index import CHUNKS, small_retriever

    retriever = small_retriever()
    import jax

    retriever.params = jax.tree.map(lambda leaf: leaf * np.float32(1e38), retriever.params)
    with pytest.raises(ValueError, match="Q is not finite"):
        retriever.search("Where is Mary?", CHUNKS, budget=2)
