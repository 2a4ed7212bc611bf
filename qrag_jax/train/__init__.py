"""Training: ``run`` is a whole run; the other modules are its loop, batches, devices and hosts."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qrag_jax.train.training import run

__all__ = ["run"]
_HOME = {"run": "training"}


def __getattr__(name: str) -> Any:
    """Imported when first used, so that importing one module of the package does not import them all."""
    if name in _HOME:
        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
