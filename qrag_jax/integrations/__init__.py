"""Adapters of the retriever for LangChain, LlamaIndex and Haystack: one module per framework, imported only when it is named.

In all three, a retrieved chunk has its text, an id that depends only on the chunk, and the same :func:`metadata`.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from qrag_jax.retrieve.index import Index
from qrag_jax.retrieve.retriever import Retriever
from qrag_jax.retrieve.types import Pick


def missing(package: str) -> ImportError:
    return ImportError(f"this adapter needs {package}: pip install 'qrag-jax[integrations]'")


def load(retriever_dir: str | Path, index_dir: str | Path) -> tuple[Retriever, Index]:
    """Opens both folders. Raises ValueError when one of them is not what it should be, or the index was built with another model."""
    index = Index.open(index_dir)
    retriever = Retriever.of_index(index, retriever_dir)  # of a plain encoder, the length of its chunks is the index's
    index.check(retriever)
    return retriever, index


def identity(pick: Pick) -> str:
    """32 hexadecimal digits that do not depend on the question, so that a framework can merge the results of several searches."""
    return hashlib.sha256("\0".join((pick.source or "", str(pick.chunk), pick.text)).encode()).hexdigest()[:32]


def metadata(pick: Pick) -> dict[str, Any]:
    """The metadata of the document, and all fields of :class:`~qrag_jax.retrieve.types.Pick` except the text; these win over
    metadata of the same name. Ready-made chunks have None for characters. ``sources``: the names of all documents with this text."""
    own = {name: getattr(pick, name) for name in ("chunk", "q", "position", "start", "end", "source", "step")}
    sources = [pick.source, *(other.source for other in pick.also)]
    return {**pick.metadata, **own, "sources": [name for name in dict.fromkeys(sources) if name is not None]}
