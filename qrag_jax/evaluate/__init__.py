"""Evaluation: sets of questions, their episodes, metrics, and the files of results."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qrag_jax.evaluate.episodes import evaluate, run_episodes, summary

__all__ = ["evaluate", "run_episodes", "summary"]
_HOME = {"evaluate": "episodes", "run_episodes": "episodes", "summary": "episodes"}


def __getattr__(name: str) -> Any:
    """Imported when first used, so that importing one module of the package does not import them all."""
    if name in _HOME:
        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
