"""Exports: the folder that a finished run writes, for users of JAX and of PyTorch.

    export/  qrag.json       the run's configuration, stop threshold, limit of "not in the documents", figures
             tokenizer.json  (+ tokenizer_config.json)
             state_encoder/  action_encoder/   Hugging Face and sentence-transformers model folders
             modules.json, router_config.json, config_sentence_transformers.json   both of them as one sentence-transformers model
             README.md       model card

``qrag import`` makes an export from a released Q-RAG checkpoint; ``qrag export`` writes an export in the layouts of PyTorch programs.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from qrag_jax.config import RunConfig
from qrag_jax.config.parse import LARGEST, decode
from qrag_jax.export.card import model_card
from qrag_jax.export.refusal import Refusal
from qrag_jax.models.embedder import Embedder, encoders, make_embedder, pair
from qrag_jax.models.folder import check_ids, read_backbone, read_object, read_params, write_folder, write_router, write_tokenizer
from qrag_jax.models.registry import BackboneConfig, Pooling
from qrag_jax.models.tokenizer import TextTokenizer
from qrag_jax.rundir.bucket import fetch, is_url
from qrag_jax.rundir.files import whole_folder, write_json

FORMAT = "qrag-jax-export"
VERSION = 2
"""1: without ``refusal``."""
ENCODERS = ("state_encoder", "action_encoder")


@dataclass(frozen=True)
class Export:
    """A trained retriever. ``params`` are the argument of ``embedder().apply(params, ids, method=...)``."""

    config: RunConfig
    backbone: BackboneConfig
    params: Mapping[str, Any]
    tokenizer: TextTokenizer
    pooling: Pooling
    threshold: float | None = None
    """Stop threshold; None: not known."""
    step: int = 0
    """Number of updates of its training."""
    rows: Sequence[Mapping[str, Any]] = ()
    """Rows of results.json, for the model card."""
    refusal: Refusal | None = None
    """When the answer is "not in the documents"; None: not known."""

    def embedder(self) -> Embedder:
        return make_embedder(self.config, self.backbone, self.pooling)


def write_export(out_dir: str | Path, export: Export) -> Path:
    """Writes an export completely or not at all, replacing an older one, and returns its path.

    Weights are written as float32; those of a tied embedder are written twice. Raises ValueError when ``out_dir`` exists and is not an
    export.
    """
    config, backbone, tokenizer, pooling = export.config, export.backbone, export.tokenizer, export.pooling

    def fill(folder: Path) -> None:
        state, action = encoders(export.params)
        for name, encoder, length in zip(ENCODERS, (state, action), (state_tokens(config), config.data.chunk_tokens), strict=True):
            write_folder(
                folder / name,
                backbone,
                encoder,
                tokenizer,
                pooling=pooling,
                normalize=config.model.normalize,
                divisor=config.model.divisor,
                max_tokens=length,
            )
        write_router(folder, *ENCODERS, normalize=config.model.normalize)
        write_tokenizer(folder, tokenizer, backbone.max_tokens)
        write_json(folder / "qrag.json", {"format": FORMAT, "version": VERSION, **settings_tree(export, config)})
        card = model_card(config, backbone.to_hf(), pooling, export.threshold, export.step, export.rows, refusal=export.refusal)
        (folder / "README.md").write_text(card, encoding="utf-8")

    return replace_folder(Path(out_dir), fill, is_export)


def read_export(folder: str | Path) -> Export:
    """The inverse of :func:`write_export`.

    Raises ValueError, naming the file, on a folder that is no export, is incomplete or corrupt, or was written by a newer version.
    """
    folder = Path(folder)
    path = folder / "qrag.json"
    if not path.is_file():
        raise ValueError(
            f"{folder}: not an export (it has no qrag.json); expected the export/ folder of a finished run"
            " (`qrag export RUN OUT` also writes it for a run that has not ended)"
            "; a released checkpoint has model_best.pt and config.yaml"
        )
    settings = read_settings(path, read_object(path), FORMAT, VERSION)
    config = settings["config"]
    state, action = (folder / name for name in ENCODERS)
    backbone = read_backbone(state)
    if backbone != read_backbone(action):
        raise ValueError(f"{folder}: config.json of state_encoder and action_encoder differ; they must be the same network")
    tokenizer = TextTokenizer.load(folder / "tokenizer.json")
    check_ids(folder, tokenizer, backbone)
    params = pair(read_params(state, backbone), None if config.model.tied else read_params(action, backbone), config.model.tied)
    return Export(backbone=backbone, params=params, tokenizer=tokenizer, **settings)


def settings_tree(export: Export, config: RunConfig) -> dict[str, Any]:
    """What :func:`read_settings` reads."""
    refusal = None if export.refusal is None else dataclasses.asdict(export.refusal)
    tree = {"config": dataclasses.asdict(config), "pooling": export.pooling, "threshold": export.threshold}
    return tree | {"refusal": refusal, "step": export.step, "rows": list(export.rows)}


def read_settings(path: Path, tree: Mapping[str, Any], kind: str, newest: int) -> dict[str, Any]:
    """The fields of an :class:`Export` that stand in qrag.json: config, pooling, threshold, refusal (from version 2 on), step, rows.

    ``kind`` and ``newest``: the format, and the newest version of it that can be read. Raises ValueError, naming the file.
    """
    if tree.get("format") != kind:
        raise ValueError(f"{path}: format = {tree.get('format')!r}, expected {kind!r}")
    version = tree.get("version")
    if type(version) is not int or not 1 <= version <= newest:
        raise ValueError(f"{path}: version = {version!r}; this qrag-jax reads versions 1 to {newest}: update it (pip install -U qrag-jax)")
    fields: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
        ("pooling", lambda value: isinstance(value, str) and value in get_args(Pooling), f"one of {', '.join(get_args(Pooling))}"),
        ("threshold", lambda value: value is None or (type(value) in (int, float) and math.isfinite(value)), "a finite number or null"),
        ("step", lambda value: type(value) is int and 0 <= value <= LARGEST, "a whole number"),
        ("rows", lambda value: isinstance(value, list) and all(isinstance(row, dict) for row in value), "a list of objects"),
    )
    for name, valid, allowed in fields:
        if name not in tree or not valid(tree[name]):
            raise ValueError(f"{path}: {name} = {tree.get(name)!r}: must be {allowed}")
    try:
        config = RunConfig.from_json(json.dumps(tree.get("config")))
    except ValueError as error:
        raise ValueError(f"{path}: config: {error}") from error
    try:
        refusal = None if version == 1 or tree["refusal"] is None else decode(Refusal, tree["refusal"], "refusal")
    except KeyError:
        raise ValueError(f"{path}: refusal is missing: must be an object or null") from None
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: refusal: {error}") from error
    return {"config": config, "refusal": refusal, **{name: tree[name] for name, *_ in fields}}


def state_tokens(config: RunConfig) -> int:
    """Longest state of a run, in tokens."""
    data = config.data
    return data.state_tokens or data.question_tokens + (config.largest_budget - 1) * data.state_chunk_tokens


def find_export(path: str | Path) -> Path:
    """The export folder of a run directory, or the export folder itself; for gs://, a copy of it on this machine."""
    path = fetch(str(path)) if is_url(path) else Path(path)
    return path / "export" if (path / "export").is_dir() else path


def is_export(folder: Path) -> bool:
    try:
        return read_object(folder / "qrag.json").get("format") == FORMAT
    except ValueError:
        return False


def replace_folder(out: Path, fill: Callable[[Path], None], ours: Callable[[Path], bool]) -> Path:
    """Replaces ``out`` with a new folder, which ``fill`` writes; a failure leaves ``out`` as it was.

    Raises ValueError when ``out`` exists and neither is empty nor satisfies ``ours``.
    """
    if out.exists() and not (out.is_dir() and (not any(out.iterdir()) or ours(out))):
        raise ValueError(f"{out}: exists and was not written by this command; choose another folder")
    with whole_folder(out) as new:
        fill(new)
    return out
