"""A small released checkpoint: model_best.pt and config.yaml of the reference code, with its base model beside them."""

from __future__ import annotations

from pathlib import Path

from qrag_jax.export.folder import read_export
from qrag_jax.export.to_torch import to_torch
from tests.support.index import write_small_export


def write_small_reference(folder: Path) -> Path:
    """Writes ``folder`` and, beside it, the export that it was made of (``export``). Needs torch."""
    return to_torch(read_export(write_small_export(folder.parent / "export")), folder, "reference")


def rename_base(config: bytes, name: str) -> bytes:
    """config.yaml with another base model."""
    return config.replace(b"base_model", name.encode())
