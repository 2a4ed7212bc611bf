"""One encoder as a Hugging Face model folder, read and written without torch; written so that sentence-transformers loads it too.

What sentence-transformers needs beside the model: ``modules.json`` and a folder for each step after it: pooling, normalisation where asked,
then a linear map of 1 / divisor times the identity, its way of saying "divide".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from qrag_jax.models.registry import BACKBONES, BackboneConfig, Pooling, backbone_of, config_from_hf, encoder_params, write_encoder
from qrag_jax.models.tokenizer import TextTokenizer
from qrag_jax.rundir.files import read_json, write_json

# sentence-transformers' names of the poolings, and the fields by which versions before 5 said the same.
POOLING_NAMES: dict[str, Pooling] = {"mean": "mean", "cls": "cls", "lasttoken": "last"}
POOLING_FIELDS = {"mean": "pooling_mode_mean_tokens", "cls": "pooling_mode_cls_token", "lasttoken": "pooling_mode_lasttoken"}
VOCABULARIES = ("tokenizer.json", "vocab.txt", "vocab.json", "*.model")
ROUTER_FILES = ("modules.json", "config_sentence_transformers.json", "router_config.json")
"""What :func:`write_router` writes."""
MODULES = "sentence_transformers.models"
PAD_TOKENS = ("[PAD]", "<pad>", "<|endoftext|>")


@dataclass(frozen=True)
class EncoderFolder:
    """What a model folder holds: the network, one encoder's parameters, its tokenizer, and how token vectors become one."""

    backbone: BackboneConfig
    params: dict[str, Any]
    tokenizer: TextTokenizer
    pooling: Pooling


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object. Raises ValueError naming the file when it is missing or something else."""
    tree = read_json(path)
    if not isinstance(tree, dict):
        raise ValueError(f"{path}: must be a JSON object")
    return tree


def read_backbone(folder: Path) -> BackboneConfig:
    """The network that ``config.json`` describes. Raises ValueError naming the folder."""
    tree = read_object(folder / "config.json")
    try:
        return config_from_hf(tree)
    except (ValueError, TypeError, KeyError, AttributeError, ArithmeticError) as error:
        raise ValueError(f"{folder}: config.json: {error!r}" if isinstance(error, KeyError) else f"{folder}: {error}") from error


def safetensors_files(folder: Path) -> list[Path]:
    """The safetensors files of a model folder, one or shards; none where its weights are something else."""
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return [folder / "model.safetensors"] if (folder / "model.safetensors").is_file() else []
    shards = read_object(index).get("weight_map")
    if not isinstance(shards, dict) or not shards or not all(isinstance(name, str) for name in shards.values()):
        raise ValueError(f"{index}: weight_map: must be an object of tensor names and file names")
    names = sorted(set(shards.values()))
    if any(Path(name).name != name or "\0" in name for name in names):
        raise ValueError(f"{index}: names a file outside its folder")
    if missing := [name for name in names if not (folder / name).is_file()]:
        raise ValueError(f"{folder / missing[0]}: no such file; {index.name} names it")
    return [folder / name for name in names]


def read_tensors(folder: Path) -> dict[str, np.ndarray]:
    """Every tensor of a model folder: safetensors (one file or shards), else ``pytorch_model.bin`` through torch's safe loader."""
    if files := safetensors_files(folder):
        tensors: dict[str, np.ndarray] = {}
        for path in files:
            try:
                tensors |= load_file(path)
            except (SafetensorError, OSError, ValueError, TypeError, KeyError, AttributeError) as error:  # a type that NumPy lacks is one
                raise ValueError(f"{path}: not a readable safetensors file: {' '.join(str(error).split())}") from error
        return tensors
    if (folder / "pytorch_model.bin").is_file():
        from qrag_jax.models.pickles import load_tensors

        return {name: tensor for name, tensor in load_tensors(folder / "pytorch_model.bin").items() if isinstance(tensor, np.ndarray)}
    raise ValueError(f"{folder}: no weights; expected model.safetensors or pytorch_model.bin")


def read_params(folder: Path, backbone: BackboneConfig) -> dict[str, Any]:
    """One encoder's parameters. Raises ValueError that lists every tensor that is missing, unexpected or misshapen."""
    tensors = read_tensors(folder)
    try:
        return encoder_params(backbone, tensors)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from error


def read_pooling(folder: Path, backbone: BackboneConfig) -> Pooling:
    """The pooling a sentence-transformers folder names, else the backbone's usual one."""
    path = folder / "1_Pooling" / "config.json"
    if not path.is_file():
        return BACKBONES[backbone_of(backbone)].pooling
    tree = read_object(path)
    named = tree.get("pooling_mode")
    if not isinstance(named, str | None):
        raise ValueError(f"{path}: pooling_mode = {named!r}: must be a name")
    if named is None:
        flags = [name for name, value in tree.items() if name.startswith("pooling_mode_") and value is True]
        named = next((name for name, field in POOLING_FIELDS.items() if flags == [field]), " + ".join(flags))
    if named not in POOLING_NAMES:
        raise ValueError(f"{path}: pooling_mode {named!r} is not supported; supported: one of {', '.join(POOLING_NAMES)}")
    return POOLING_NAMES[named]


def read_tokenizer(folder: Path) -> TextTokenizer:
    """The fast tokenizer of a model folder. Raises ValueError naming the folder."""
    # Without any of these files transformers builds a tokenizer with an empty vocabulary.
    if not any(any(folder.glob(pattern)) for pattern in VOCABULARIES):
        raise ValueError(f"{folder}: no tokenizer; expected one of {', '.join(VOCABULARIES)}")
    try:
        return TextTokenizer.load(folder)
    except Exception as error:  # what transformers raises depends on which of the files is missing
        raise ValueError(f"{folder}: no tokenizer in it can be read: {' '.join(str(error).split()) or repr(error)}") from error


def check_ids(folder: Path, tokenizer: TextTokenizer, backbone: BackboneConfig) -> None:
    """Raises ValueError when the tokenizer has a token for which the network has no vector: it would silently get another one."""
    if tokenizer.ids > backbone.vocab_size:
        raise ValueError(f"{folder}: its tokenizer knows {tokenizer.ids} tokens, its config.json allows {backbone.vocab_size}")


def read_folder(folder: Path) -> EncoderFolder:
    """A Hugging Face or sentence-transformers model folder. Raises ValueError naming what is missing or does not fit."""
    backbone = read_backbone(folder)
    tokenizer = read_tokenizer(folder)
    check_ids(folder, tokenizer, backbone)
    return EncoderFolder(backbone, read_params(folder, backbone), tokenizer, read_pooling(folder, backbone))


def write_tokenizer(folder: Path, tokenizer: TextTokenizer, max_tokens: int) -> None:
    """``tokenizer.json`` and what AutoTokenizer needs to know beside it."""
    tokenizer.save(folder / "tokenizer.json")
    added = {entry["id"]: entry["content"] for entry in read_object(folder / "tokenizer.json").get("added_tokens", ())}
    special: dict[str, str] = {}
    if tokenizer.prefix:
        special["cls_token"] = added[tokenizer.prefix[0]]
        special["sep_token"] = added[tokenizer.suffix[-1]]
    else:
        special["eos_token"] = added[tokenizer.suffix[-1]]
    for field, names in (("pad_token", PAD_TOKENS), ("unk_token", ("[UNK]", "<unk>")), ("mask_token", ("[MASK]", "<mask>"))):
        if found := [name for name in names if name in added.values()]:
            special[field] = found[0]
    special.setdefault("pad_token", added[tokenizer.suffix[-1]])
    write_json(
        folder / "tokenizer_config.json",
        special
        | {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": max_tokens,
            "clean_up_tokenization_spaces": False,
            # "[SEP]" inside a text is plain text, as in TextTokenizer.
            "split_special_tokens": True,
        },
    )


def _steps(normalize: bool) -> dict[str, str]:
    """What sentence-transformers does one after the other: folder -> its name for the step, from before version 5, which 6 still reads."""
    steps = ["Transformer", "Pooling", *(["Normalize"] if normalize else []), "Dense"]
    return {f"{i}_{kind}" if i else "": f"{MODULES}.{kind}" for i, kind in enumerate(steps)}


def _write_modules(folder: Path, steps: Mapping[str, str]) -> list[str]:
    """Says what sentence-transformers does with a text; returns the folders of the steps."""
    modules = [{"idx": i, "name": str(i), "path": path, "type": kind} for i, (path, kind) in enumerate(steps.items())]
    write_json(folder / "modules.json", modules)
    write_json(folder / "config_sentence_transformers.json", {"similarity_fn_name": "dot", "prompts": {}, "default_prompt_name": None})
    return list(steps)


def write_router(folder: Path, query: str, document: str, *, normalize: bool) -> None:
    """Lets sentence-transformers (5 or later) load a folder that holds two encoders: ``encode_query`` uses the one in the subfolder
    ``query``, ``encode_document`` and ``encode`` the one in ``document``."""
    _write_modules(folder, {"": f"{MODULES}.Router"})
    routes = {
        route: {f"{name}/{path}".rstrip("/"): kind for path, kind in _steps(normalize).items()}
        for route, name in (("query", query), ("document", document))
    }
    types = {path: kind for steps in routes.values() for path, kind in steps.items()}
    structure = {route: list(steps) for route, steps in routes.items()}
    write_json(
        folder / "router_config.json",
        {"types": types, "structure": structure, "parameters": {"default_route": "document", "allow_empty_key": True}},
    )


def write_folder(
    folder: Path,
    backbone: BackboneConfig,
    params: Any,
    tokenizer: TextTokenizer,
    *,
    pooling: Pooling,
    divisor: float,
    max_tokens: int,
    normalize: bool = False,
    sentence_transformers: bool = True,
) -> None:
    """Writes one encoder. ``max_tokens`` is where sentence-transformers cuts a text. Not atomic: the caller renames.

    ``sentence_transformers`` False leaves out what only that library reads.
    """
    folder.mkdir(parents=True)
    write_json(folder / "config.json", backbone.to_hf())
    write_encoder(backbone, params, folder / "model.safetensors")
    write_tokenizer(folder, tokenizer, backbone.max_tokens)
    if not sentence_transformers:
        return
    paths = _write_modules(folder, _steps(normalize))
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": min(max_tokens, backbone.max_tokens), "do_lower_case": False})
    (folder / "1_Pooling").mkdir()
    flags = {field: POOLING_NAMES[name] == pooling for name, field in POOLING_FIELDS.items()}
    write_json(folder / "1_Pooling" / "config.json", {"word_embedding_dimension": backbone.width} | flags)
    dense = folder / paths[-1]
    dense.mkdir()
    write_json(
        dense / "config.json",
        {
            "in_features": backbone.width,
            "out_features": backbone.width,
            "bias": False,
            "activation_function": "torch.nn.modules.linear.Identity",
        },
    )
    scale = np.eye(backbone.width, dtype=np.float32) / np.float32(divisor)
    save_file({"linear.weight": scale}, dense / "model.safetensors", metadata={"format": "pt"})
