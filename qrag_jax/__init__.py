"""qrag-jax: multi-step retrievers trained by value-based reinforcement learning (Q-RAG, arXiv 2511.07328), in JAX."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qrag_jax.rundir.early import end_at_once_while_importing

if TYPE_CHECKING:
    from qrag_jax.retrieve.index import Index
    from qrag_jax.retrieve.retriever import Retriever
    from qrag_jax.retrieve.sources import Text

__version__ = "0.1.0"
__all__ = ["Index", "Retriever", "Text", "__version__"]
end_at_once_while_importing()  # only if this is the start of a command line


def __getattr__(name: str) -> Any:
    """Imported when first used, so that importing a configuration does not start JAX."""
    if name == "Retriever":
        from qrag_jax.retrieve.retriever import Retriever

        return Retriever
    if name == "Index":
        from qrag_jax.retrieve.index import Index

        return Index
    if name == "Text":
        from qrag_jax.retrieve.sources import Text

        return Text
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
