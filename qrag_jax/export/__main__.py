"""The commands of ``python -m qrag_jax.export``: import a released checkpoint, write an export for PyTorch."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from qrag_jax.export.folder import find_export, read_export
from qrag_jax.export.from_reference import import_reference
from qrag_jax.export.to_torch import TOLERANCE, Format, difference, to_torch

DONE, DIFFERS, BAD_INPUT = 0, 1, 64


@dataclass(frozen=True)
class Import:
    """A released Q-RAG checkpoint (model_best.pt of the reference code) -> an export folder."""

    checkpoint: tyro.conf.Positional[Path]
    """The .pt file. It is read without executing anything in it."""
    out_dir: tyro.conf.Positional[Path]
    """Export folder to write; an older export there is replaced."""
    base_model: Path | None = None
    """Folder with the base model's config.json and tokenizer; none: the model that the configuration names."""
    config: Path | None = None
    """config.yaml saved with the checkpoint; none: the one beside it."""


@dataclass(frozen=True)
class ToTorch:
    """An export -> folders that PyTorch programs load; then, where PyTorch is installed, reloaded there and compared with JAX."""

    run: tyro.conf.Positional[Path]
    """Export folder, or run directory that has one."""
    out_dir: tyro.conf.Positional[Path]
    """Folder to write."""
    format: Format = "hf"
    """hf: for transformers.AutoModel; sentence-transformers: the same with pooling; reference: model_best.pt of the reference code."""


Command = Annotated[Import, tyro.conf.subcommand("import")] | Annotated[ToTorch, tyro.conf.subcommand("to-torch")]


def write_line(text: str) -> None:
    sys.stdout.write(text + "\n")


def main(args: Sequence[str] | None = None, say: Callable[[str], None] = write_line) -> int:
    """Runs a command and returns its exit code: 0 done, 1 PyTorch and JAX differ (the files stay), 64 bad input (one line says what)."""
    try:
        command = tyro.cli(Command, prog="python -m qrag_jax.export", description=__doc__, args=args)
    except SystemExit as stop:
        return BAD_INPUT if stop.code else DONE
    try:
        if isinstance(command, Import):
            out = import_reference(command.checkpoint, command.out_dir, base_model=command.base_model, config=command.config)
            say(f"{out}: export written; to load it: qrag_jax.Retriever.from_pretrained({str(out)!r})")
            return DONE
        return _to_torch(command, say)
    except ValueError as error:
        say(f"error: {' '.join(str(error).split())}")
        return BAD_INPUT


def _to_torch(command: ToTorch, say: Callable[[str], None]) -> int:
    export = read_export(find_export(command.run))
    out = to_torch(export, command.out_dir, command.format)
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


if __name__ == "__main__":
    raise SystemExit(main())
