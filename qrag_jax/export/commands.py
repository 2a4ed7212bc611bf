"""What ``qrag import`` and ``qrag export`` do, and ``python -m qrag_jax.export import | to-torch`` alike."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from qrag_jax.config.command_line import DIFFERS, DONE
from qrag_jax.export.folder import find_export, read_export
from qrag_jax.export.from_reference import import_reference
from qrag_jax.export.to_torch import TOLERANCE, Format, difference, to_torch


@dataclass(frozen=True)
class Import:
    """Import a released Q-RAG checkpoint: model_best.pt becomes an export folder.

    Example: qrag import q-rag/model_best.pt imported
    """

    checkpoint: tyro.conf.Positional[Path]
    """The .pt file of the reference code. Nothing in it is executed. Reading it needs PyTorch: pip install 'qrag-jax[torch]'."""
    out: tyro.conf.Positional[Path]
    """Export folder to write. An older export there is replaced."""
    base_model: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER", help_behavior_hint="(default: the model that the config names)")] = (
        None
    )
    """Folder with the config.json and the tokenizer of the base model."""
    config: Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="(default: the one next to the checkpoint)")] = None
    """The config.yaml that was saved with the checkpoint."""


@dataclass(frozen=True)
class ToTorch:
    """Write a trained retriever for PyTorch.

    Where PyTorch is installed, the files are loaded there and compared with JAX.

    Example: qrag export runs/babilong-qa2-tiny for-torch --format sentence-transformers
    """

    run: tyro.conf.Positional[str]
    """Run directory with an export, an export folder, or gs://BUCKET/NAME."""
    out: tyro.conf.Positional[Path]
    """Folder to write."""
    format: Annotated[Format, tyro.conf.arg(metavar="FORMAT")] = "hf"
    """hf: for transformers.AutoModel. sentence-transformers: the same with pooling. reference: model_best.pt of the reference code."""


def run_import(command: Import, say: Callable[[str], None]) -> int:
    """Returns 0. Raises ValueError as :func:`~qrag_jax.export.from_reference.import_reference` does."""
    out = import_reference(command.checkpoint, command.out, base_model=command.base_model, config=command.config)
    say(f"{out}: export written; to load it: qrag_jax.Retriever.from_pretrained({str(out)!r})")
    return DONE


def run_to_torch(command: ToTorch, say: Callable[[str], None]) -> int:
    """Returns 0, or 1 when PyTorch and JAX differ: the files stay. Raises ValueError when there is no export or ``out`` is taken."""
    export = read_export(find_export(command.run))
    out = to_torch(export, command.out, command.format)
    say(f"{out}: written ({command.format})")
    if importlib.util.find_spec("torch") is None:
        say("not compared with PyTorch, which is not installed (pip install qrag-jax[torch])")
        return DONE
    found = difference(export, out, command.format)
    if found is None:
        say("not compared with PyTorch: transformers has no class for this architecture, and code from the hub is not run here")
        return DONE
    verdict = "OK" if found <= TOLERANCE else "FAIL: do not use these files"
    say(f"largest difference between PyTorch and JAX on sample texts: {found:.1e} (allowed {TOLERANCE:g}): {verdict}")
    return DONE if found <= TOLERANCE else DIFFERS
