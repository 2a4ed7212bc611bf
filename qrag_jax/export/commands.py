"""What ``qrag import``, ``export`` and ``push`` do, and ``python -m qrag_jax.export import | to-torch | push`` alike."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from qrag_jax.config.command_line import DIFFERS, DONE
from qrag_jax.export.adapter import RANK, interpolated, write_adapter
from qrag_jax.export.folder import write_export
from qrag_jax.export.hub import load_model, push_export
from qrag_jax.export.to_torch import TOLERANCE, difference, to_torch


@dataclass(frozen=True)
class Import:
    """Import a released Q-RAG model: it becomes an export folder.

    Example: qrag import Q-RAG/qrag-ft-e5-on-hotpotqa imported
    """

    source: tyro.conf.Positional[str]
    """Folder with model_best.pt and config.yaml, or a .pt file, or OWNER/NAME[@REVISION] on the hub. Nothing in it is executed. PyTorch
    reads .pt files: pip install 'qrag-jax[torch]'."""
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
    """Write a trained retriever for PyTorch, or as a small adapter.

    Where PyTorch is installed, its files are loaded there and compared with JAX.

    Example: qrag export runs/babilong-qa2-tiny for-torch --format sentence-transformers
    """

    run: tyro.conf.Positional[str]
    """Run directory, export folder, released checkpoint, gs://BUCKET/NAME, or OWNER/NAME[@REVISION] on the hub."""
    out: tyro.conf.Positional[Path]
    """Folder to write."""
    format: Annotated[Literal["hf", "sentence-transformers", "reference", "adapter"], tyro.conf.arg(metavar="FORMAT")] = "hf"
    """hf: for transformers.AutoModel. sentence-transformers: the same with pooling. reference: model_best.pt of the reference code.
    adapter: a few MB; whoever loads it needs the pretrained encoder (model.embedder) as well."""
    rank: int | None = None
    """With --format adapter: the rank of the adapter of each dense layer. (default: model.lora_rank of the run, or 16)"""
    interpolation: float = 1.0
    """Weights to write: pretrained + this share of (trained - pretrained). Less than 1 keeps more of the pretrained encoder, which can help
    on texts unlike those of the training; the stop threshold is left out, as it belongs to the trained weights."""


@dataclass(frozen=True)
class Push:
    """Upload an export, with its model card, to the Hugging Face hub.

    The token is the one of `hf auth login` or HF_TOKEN.

    Example: qrag push runs/babilong-qa2-tiny my-name/q-rag-babilong-qa2
    """

    export: tyro.conf.Positional[str]
    """Run directory with an export, or an export folder."""
    name: tyro.conf.Positional[str]
    """OWNER/NAME of the repository; it is created if need be."""
    private: tyro.conf.FlagCreatePairsOff[bool] = False
    """Only you and those you let in can see it."""


Exchange = Import | ToTorch | Push


def run_exchange(command: Exchange, say: Callable[[str], None]) -> int:
    """Runs a command and returns its exit code. Raises ValueError on bad input."""
    if isinstance(command, Import):
        return run_import(command, say)
    return run_to_torch(command, say) if isinstance(command, ToTorch) else run_push(command, say)


def run_import(command: Import, say: Callable[[str], None]) -> int:
    """Returns 0. Raises ValueError as :func:`~qrag_jax.export.hub.load_model` does, and when ``out`` is taken."""
    out = write_export(command.out, load_model(command.source, base_model=command.base_model, config=command.config))
    say(f"{out}: export written; to load it: qrag_jax.Retriever.from_pretrained({str(out)!r})")
    return DONE


def run_to_torch(command: ToTorch, say: Callable[[str], None]) -> int:
    """Returns 0, or 1 when PyTorch and JAX differ: the files stay. Raises ValueError when there is no export or ``out`` is taken."""
    export = interpolated(load_model(command.run), command.interpolation)
    if command.format == "adapter":
        rank = (export.config.model.lora_rank or RANK) if command.rank is None else command.rank
        kept = write_adapter(command.out, export, rank)
        size = sum(path.stat().st_size for path in command.out.iterdir()) / 1e6
        say(f"{command.out}: adapter of rank {rank} written, {size:.1f} MB; it keeps {kept:.1%} of what training changed (squared)")
        return DONE
    if command.rank is not None:
        raise ValueError(f"--rank {command.rank}: only --format adapter has a rank")
    out = to_torch(export, command.out, command.format)
    say(f"{out}: written ({command.format})")
    if importlib.util.find_spec("torch") is None:
        say("not compared with PyTorch, which is not installed (pip install 'qrag-jax[torch]')")
        return DONE
    found = difference(export, out, command.format)
    if found is None:
        say("not compared with PyTorch: transformers has no class for this architecture, and code from the hub is not run here")
        return DONE
    verdict = "OK" if found <= TOLERANCE else "FAIL: do not use these files"
    say(f"largest difference between PyTorch and JAX on sample texts: {found:.1e} (allowed {TOLERANCE:g}): {verdict}")
    return DONE if found <= TOLERANCE else DIFFERS


def run_push(command: Push, say: Callable[[str], None]) -> int:
    """Returns 0. Raises ValueError as :func:`~qrag_jax.export.hub.push_export` does."""
    url = push_export(command.export, command.name, private=command.private)
    say(f"{url}: uploaded; to load it: qrag_jax.Retriever.from_pretrained({command.name!r})")
    return DONE
