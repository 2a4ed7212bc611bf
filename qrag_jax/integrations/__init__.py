"""The retriever behind the interfaces of LangChain, LlamaIndex and Haystack: one module a framework, imported only when named.

All three agree on a retrieved chunk: its text, an id that depends on the chunk alone, and :func:`metadata`.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict
from pathlib import Path
from typing import Any

from qrag_jax.retrieve.index import Index
from qrag_jax.retrieve.retriever import Retriever
from qrag_jax.retrieve.types import Pick


def missing(package: str) -> ImportError:
    return ImportError(f"this adapter needs {package}: pip install qrag-jax[integrations]")


def load(retriever_dir: str | Path, index_dir: str | Path) -> tuple[Retriever, Index]:
    """Raises ValueError when either folder is not what it should be, or the index was built with another model."""
    retriever, index = Retriever.from_pretrained(retriever_dir), Index.open(index_dir)
    index.check(retriever)
    return retriever, index


def identity(pick: Pick) -> str:
    """32 hexadecimal digits, the same whatever question found the chunk, so that a framework can merge what several searches found."""
    return hashlib.sha256("\0".join((pick.source or "", str(pick.chunk), pick.text)).encode()).hexdigest()[:32]


def metadata(pick: Pick) -> dict[str, Any]:
    """Everything but the text, under the names of :class:`~qrag_jax.retrieve.types.Pick`; None for what a chunk given as such lacks."""
    return {name: value for name, value in asdict(pick).items() if name != "text"}
