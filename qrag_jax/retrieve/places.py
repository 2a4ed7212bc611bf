"""Where a chunk stands, in words for a person."""

from __future__ import annotations

from qrag_jax.retrieve.chunks import Chunk
from qrag_jax.retrieve.formats.passages import PLACES
from qrag_jax.retrieve.types import Pick


def place(part: Pick | Chunk) -> str:
    """The document, with the page, heading and row that its metadata name, else its characters: "report.pdf, page 3", "book.txt:0-24"."""
    named = [f"{key} {part.metadata[key]}" for key in PLACES if part.metadata.get(key) not in (None, "")]
    if named or part.start is None:
        return ", ".join([part.source or "given chunk", *named])
    return f"{part.source}:{part.start}-{part.end}" if part.source is not None else f"characters {part.start}-{part.end}"
