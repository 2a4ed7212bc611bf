"""Adapters: a trained retriever as its small difference from the pretrained encoder that it started from.

    qrag.json            as in an export, with {"base": {"name", "sha256"}, "rank", "kept"}
    adapter.safetensors  ENCODER/PLACE/kernel/a and .../b of each dense layer (float16); other small parameters that have changed, whole

The difference of every dense layer is written as the best product of two matrices of some rank (by its singular values): of a run with
``model.lora_rank`` up to this rank, that is all of it. Tables of words are those of the pretrained encoder. ``kept`` is the share of the
squared difference of all parameters that is in the file.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from qrag_jax.export.folder import ENCODERS, Export, read_settings, replace_folder, settings_tree
from qrag_jax.export.refusal import Refusal
from qrag_jax.models.embedder import encoders, pair
from qrag_jax.models.folder import EncoderFolder, read_object
from qrag_jax.models.lora import KERNEL
from qrag_jax.models.pretrained import load_pretrained
from qrag_jax.rundir.files import write_json

FORMAT, VERSION = "qrag-jax-adapter", 2
TENSORS = "adapter.safetensors"
RANK, LARGEST_RANK = 16, 2**12

Flat = dict[tuple[str, ...], np.ndarray]


def write_adapter(out_dir: str | Path, export: Export, rank: int) -> float:
    """Writes an adapter completely or not at all, replacing an older one; returns ``kept``.

    Raises ValueError when the retriever did not start from a pretrained encoder that is at hand, when nothing of it has changed, or when
    ``out_dir`` exists and is no adapter.
    """
    from safetensors.numpy import save_file

    if not 1 <= rank <= LARGEST_RANK:
        raise ValueError(f"--rank {rank}: must be in 1..{LARGEST_RANK:,}")
    name, base = export.config.model.embedder, starting_point(export)
    tensors: dict[str, np.ndarray] = {}
    lost = change = 0.0
    start = _flat(base.params)
    for encoder, params in zip(ENCODERS, encoders(export.params), strict=True):
        found = _difference(start, _flat(params), rank)
        tensors |= {"/".join((encoder, *path)): value for path, value in found.items()}
        after, made = _flat(params), _applied(start, found)
        lost += sum(float(np.square(after[path] - made[path]).sum()) for path in after)
        change += sum(float(np.square(after[path] - start[path]).sum()) for path in after)
    if not change:
        raise ValueError("this retriever is its pretrained encoder: there is no difference to write")
    kept = 1 - lost / change

    def fill(folder: Path) -> None:
        save_file(tensors, folder / TENSORS)
        data = dataclasses.replace(export.config.data, data_dir=None)  # a place on this machine, and an adapter is for others
        settings = settings_tree(export, dataclasses.replace(export.config, data=data))
        tree = {"format": FORMAT, "version": VERSION, **settings}
        write_json(folder / "qrag.json", tree | {"base": {"name": name, "sha256": digest(base)}, "rank": rank, "kept": kept})

    replace_folder(Path(out_dir), fill, is_adapter)
    return kept


def read_adapter(folder: str | Path) -> Export:
    """The retriever of an adapter and its pretrained encoder. Raises ValueError, naming the file, when either is not there or not whole, or
    when they do not fit together."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    path = Path(folder) / "qrag.json"
    tree = read_object(path)
    settings = read_settings(path, tree, FORMAT, VERSION)
    config, base = settings["config"], tree.get("base")
    if not isinstance(base, dict) or set(base) != {"name", "sha256"} or base["name"] != config.model.embedder:
        raise ValueError(f"{path}: base = {base!r}: must name the config's model.embedder, {config.model.embedder!r}, and its sha256")
    pretrained = load_pretrained(config.model.embedder)
    if digest(pretrained) != base["sha256"]:
        raise ValueError(f"{path}: the weights of {config.model.embedder!r} on this machine are not those that this adapter changes")
    try:
        tensors = load_file(Path(folder) / TENSORS)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{Path(folder) / TENSORS}: {error}") from error
    start, both = _flat(pretrained.params), []
    for encoder in ENCODERS:
        own = {tuple(name.split("/")[1:]): value for name, value in tensors.items() if name.startswith(f"{encoder}/")}
        _check(Path(folder) / TENSORS, encoder, own, start)
        both.append(unflatten_dict(_applied(start, own)))
    if len(tensors) != sum(name.split("/")[0] in ENCODERS for name in tensors):
        raise ValueError(f"{Path(folder) / TENSORS}: has tensors of no encoder")
    params = pair(both[0], None if config.model.tied else both[1], config.model.tied)
    return Export(backbone=pretrained.backbone, params=params, tokenizer=pretrained.tokenizer, **settings)


def starting_point(export: Export) -> EncoderFolder:
    """The pretrained encoder that a retriever started from. Raises ValueError when there was none, or when it is another one now."""
    name = export.config.model.embedder
    if name == "tiny":
        raise ValueError("this retriever was trained from scratch (model.embedder tiny): it has no pretrained encoder that it started from")
    base = load_pretrained(name)
    if base.backbone != dataclasses.replace(export.backbone, hidden_dropout_prob=base.backbone.hidden_dropout_prob):
        raise ValueError(f"model.embedder = {name!r}: is another network now than the one that this retriever started from")
    if base.tokenizer.to_json() != export.tokenizer.to_json():
        raise ValueError(f"model.embedder = {name!r}: has another tokenizer now than the one that this retriever was trained with")
    return base


def interpolated(export: Export, share: float) -> Export:
    """The retriever whose weights are pretrained + share * (trained - pretrained), without a stop threshold and figures of its own.

    Between both ends it often keeps what training taught, and more of what the encoder knew about other texts (WiSE-FT, Wortsman et al.
    2022). Raises ValueError unless 0 < share <= 1, and as :func:`starting_point` does.
    """
    if not 0 < share <= 1:
        raise ValueError(f"--interpolation {share:g}: must be above 0 and at most 1")
    if share == 1:
        return export
    start = _flat(starting_point(export).params)
    mix = lambda after: unflatten_dict({path: start[path] + np.float32(share) * (leaf - start[path]) for path, leaf in after.items()})
    state, action = (mix(_flat(params)) for params in encoders(export.params))
    params = pair(state, action, export.config.model.tied)
    return dataclasses.replace(export, params=params, threshold=None, refusal=None, rows=())


def set_limits(folder: str | Path, threshold: float | None, refusal: Refusal | None) -> None:
    """Replaces the stop threshold and the limit of "not in the documents" of an adapter; its tensors stay."""
    path = Path(folder) / "qrag.json"
    limits = {"threshold": threshold, "refusal": None if refusal is None else dataclasses.asdict(refusal)}
    write_json(path, read_object(path) | {"version": VERSION} | limits)


def is_adapter(folder: Path) -> bool:
    try:
        return read_object(folder / "qrag.json").get("format") == FORMAT
    except ValueError:
        return False


def digest(encoder: EncoderFolder) -> str:
    """Hex SHA-256 of the encoder's parameters as float32."""
    found = hashlib.sha256()
    for path, leaf in sorted(_flat(encoder.params).items()):
        found.update(f"{'/'.join(path)} {leaf.shape}\n".encode())
        found.update(np.ascontiguousarray(leaf, np.dtype("<f4")).tobytes())
    return found.hexdigest()


def _flat(params: Mapping[str, Any]) -> Flat:
    return {path: np.asarray(leaf, np.float32) for path, leaf in flatten_dict(params).items()}


def _difference(start: Flat, after: Flat, rank: int) -> Flat:
    """What is written of an encoder that was ``start`` and is ``after``."""
    found: Flat = {}
    for path, value in after.items():
        change = value - start[path]
        if path[-1] == KERNEL and value.ndim == 2:
            left, size, right = np.linalg.svd(change, full_matrices=False)
            some = np.sqrt(size[:rank])
            found[(*path, "a")] = (left[:, :rank] * some).astype(np.float16)
            found[(*path, "b")] = np.ascontiguousarray(some[:, None] * right[:rank]).astype(np.float16)
        elif value.ndim < 2 and change.any():
            found[path] = value
    return found


def _applied(start: Flat, found: Flat) -> Flat:
    """The parameters of an encoder, from those it started from and what was written."""
    after = dict(start)
    for path, value in found.items():
        if path[-1] == "a":
            after[path[:-1]] = start[path[:-1]] + value.astype(np.float32) @ found[(*path[:-1], "b")].astype(np.float32)
        elif path[-1] != "b":
            after[path] = value.astype(np.float32)
    return after


def _check(file: Path, encoder: str, found: Flat, start: Flat) -> None:
    """Raises ValueError unless each tensor is finite and fits its place in the encoder."""
    for path, value in found.items():
        name, half = "/".join((encoder, *path)), path[-1] if re.fullmatch("[ab]", path[-1]) else ""
        place = path[:-1] if half else path
        if place not in start or (half and ((*place, "a") not in found or (*place, "b") not in found)):
            raise ValueError(f"{file}: {name} belongs to no parameter of the encoder, or lacks its other half")
        shape = start[place].shape
        if half:
            inner = found[(*place, "a")].shape[-1]
            shape = (shape[0], inner) if half == "a" else (inner, shape[1])
        if value.shape != shape or not np.isfinite(value).all():
            raise ValueError(f"{file}: {name} has the shape {value.shape}: must be {shape}, and all its numbers finite")
