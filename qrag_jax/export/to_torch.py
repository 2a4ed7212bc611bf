"""Writes an export in the layouts that PyTorch programs read, and checks that PyTorch computes the same embeddings.

hf: two folders for ``transformers.AutoModel``. sentence-transformers: the same with pooling and division. reference: ``model_best.pt``
with the names of the reference code, and the base model and settings that it needs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from qrag_jax.export.card import model_card
from qrag_jax.export.folder import ENCODERS, Export, replace_folder, state_tokens
from qrag_jax.export.reference_layout import ACTION, STATE, refuse_what_reference_lacks, write_checkpoint
from qrag_jax.models.embedder import encoders, normalized, pool
from qrag_jax.models.folder import write_folder, write_router
from qrag_jax.models.pickles import import_torch, load_tensors
from qrag_jax.models.tokenizer import load_auto_tokenizer

Format = Literal["hf", "sentence-transformers", "reference"]
TOLERANCE = 1e-4
NAMES = ENCODERS
LOCAL = {"local_files_only": True, "trust_remote_code": False}  # how transformers reads a folder
SAMPLES = (
    "Where is the apple?",
    "Mary went back to the kitchen, then picked up the milk there.",
    "One of the special magic numbers for wandering-age is: 8090293.",
    "A text with [SEP], </s> and <|endoftext|> in it is still one text.",
    "Ein Satz auf Deutsch; 一句中文; un été à l'œuvre.",
    "a",
    " ".join(["The longest of these sentences is cut off where the encoder's longest text ends."] * 40),
)


def to_torch(export: Export, out_dir: str | Path, layout: Format) -> Path:
    """Writes ``export`` in ``layout``, completely or not at all. Raises ValueError when ``out_dir`` holds something else."""
    if layout == "reference":
        refuse_what_reference_lacks(export)
    return replace_folder(Path(out_dir), lambda folder: _fill(export, folder, layout), _is_ours)


def difference(export: Export, folder: Path, layout: Format) -> float | None:
    """Largest difference between the embeddings of :data:`SAMPLES` in JAX (float32) and in PyTorch, from the files in ``folder``.

    None if transformers has no class for this architecture: code from the hub is not run. Raises ValueError when PyTorch cannot load the
    files.
    """
    if "auto_map" in export.backbone.to_hf():
        return None
    found = [
        np.abs(_torch_embeddings(export, folder, layout, name, length) - flax_embeddings(export, name, length)).max()
        for name, length in zip(NAMES, _lengths(export), strict=True)
    ]
    # NaN would pass a comparison with the tolerance.
    return float(max(found)) if np.isfinite(found).all() else math.inf


def flax_embeddings(export: Export, name: str, length: int) -> Float[np.ndarray, "R D"]:
    """Embeddings of :data:`SAMPLES`, cut to ``length`` tokens, by one of the encoders of :data:`NAMES`."""
    embedder = export.embedder().clone(dtype=jnp.float32)
    method = "embed_states" if name == "state_encoder" else "embed_actions"
    ids = export.tokenizer.rows(SAMPLES, length)
    return np.asarray(jax.jit(partial(embedder.apply, method=method))(export.params, ids))


def _torch_embeddings(export: Export, folder: Path, layout: Format, name: str, length: int) -> Float[np.ndarray, "R D"]:
    torch = import_torch()
    try:
        if layout == "sentence-transformers":
            try:
                from sentence_transformers import SentenceTransformer
            except ImportError as error:
                raise ValueError("this needs sentence-transformers: pip install 'qrag-jax[torch]'") from error
            with _without_reports():
                model = SentenceTransformer(str(folder / name), device="cpu", trust_remote_code=False)
            return np.asarray(model.encode(list(SAMPLES)))
        from transformers import AutoConfig, AutoModel

        source = folder / ("base_model" if layout == "reference" else name)
        if layout == "hf":
            with _without_reports():
                network = AutoModel.from_pretrained(source, dtype=torch.float32, **LOCAL)
        else:
            network = AutoModel.from_config(AutoConfig.from_pretrained(source, **LOCAL), trust_remote_code=False)
            critic, prefix = load_tensors(folder / "model_best.pt")["critic"], STATE if name == "state_encoder" else ACTION
            own = {key.removeprefix(prefix): torch.tensor(value) for key, value in critic.items() if key.startswith(prefix)}
            network.load_state_dict(own, strict=True)
        tokenizer = load_auto_tokenizer(source)
        tokens = tokenizer(list(SAMPLES), padding=True, truncation=True, max_length=length, return_tensors="pt")
        with torch.no_grad():
            hidden = network.eval()(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]).last_hidden_state
    except (OSError, RuntimeError, KeyError) as error:
        raise ValueError(f"{folder}: PyTorch cannot load it: {error}") from error
    pooled = pool(hidden.numpy(), tokens["attention_mask"].numpy() > 0, export.pooling)
    settings = export.config.model
    return np.asarray(normalized(pooled) if settings.normalize else pooled) / settings.divisor


@contextmanager
def _without_reports() -> Iterator[None]:
    """Without the report and the progress bar of transformers' loader: a pooler that it misses is not used here."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _lengths(export: Export) -> tuple[int, int]:
    return min(state_tokens(export.config), export.backbone.max_tokens), export.config.data.chunk_tokens


def _is_ours(folder: Path) -> bool:
    """Whether :func:`to_torch` wrote the folder. False for an export: it could not be restored if it were overwritten."""
    folders = all((folder / name / "config.json").is_file() for name in NAMES)
    checkpoint = (folder / "model_best.pt").is_file() and (folder / "base_model" / "config.json").is_file()
    return (folders or checkpoint) and (folder / "README.md").is_file() and not (folder / "qrag.json").exists()


def _fill(export: Export, folder: Path, layout: Format) -> None:
    states, actions = encoders(export.params)
    parts = {"base_model": states} if layout == "reference" else dict(zip(NAMES, (states, actions), strict=True))
    for (name, params), length in zip(parts.items(), _lengths(export), strict=False):
        write_folder(
            folder / name,
            export.backbone,
            params,
            export.tokenizer,
            pooling=export.pooling,
            normalize=export.config.model.normalize,
            divisor=export.config.model.divisor,
            max_tokens=length,
            sentence_transformers=layout == "sentence-transformers",
        )
    if layout == "reference":
        write_checkpoint(export, folder)
    elif layout == "sentence-transformers":
        write_router(folder, *NAMES, normalize=export.config.model.normalize)
    card = model_card(
        export.config, export.backbone.to_hf(), export.pooling, export.threshold, export.step, export.rows, layout, refusal=export.refusal
    )
    (folder / "README.md").write_text(card, encoding="utf-8")
