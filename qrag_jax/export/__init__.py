"""Exports: the folder that a finished run writes, and the conversion from and to other layouts."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qrag_jax.export.folder import Export, find_export, read_export, write_export

__all__ = ["Export", "find_export", "read_export", "write_export"]
_HOME = {"Export": "folder", "find_export": "folder", "read_export": "folder", "write_export": "folder"}


def __getattr__(name: str) -> Any:
    """Imported when first used, so that importing one module of the package does not import them all."""
    if name in _HOME:
        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
