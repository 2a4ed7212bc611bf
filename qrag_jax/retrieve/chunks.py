"""A chunk: what a search picks, with its place in the text that it was cut from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from qrag_jax.data.text.chunker import ChunkBy, chunk_spans
from qrag_jax.models.tokenizer import TextTokenizer
from qrag_jax.retrieve.metadata import Metadata


@dataclass(frozen=True)
class Chunk:
    """``text`` is characters ``start`` to ``end`` of ``source``, the name of a document, which has the ``metadata``. All three are None for
    a chunk given ready-made without a name."""

    text: str
    start: int | None = None
    end: int | None = None
    source: str | None = None
    metadata: Metadata = field(default_factory=dict, hash=False)


def chunk_text(text: str, tokenizer: TextTokenizer, max_tokens: int, by: ChunkBy = "tokens") -> list[Chunk]:
    """Cuts a text into chunks, in order; together they hold every character that has a token.

    :func:`~qrag_jax.data.text.chunker.chunk_spans` with at most ``max_tokens`` tokens per chunk, special ones included; by "sentence", the
    part of a sentence after them is not embedded. A chunk whose words
    the tokenizer cannot read because they are too long (WordPiece: 100 characters) is broken, too. The list is empty if the text has no
    tokens. Raises ValueError if ``max_tokens`` leaves no room for a token.
    """
    room = tokenizer.room(max_tokens)

    def count(texts: Sequence[str]) -> list[int]:
        # What is counted is embedded later, so each text is tokenised once.
        return [len(ids) if tokenizer.reads(text) else room + 1 for text, ids in zip(texts, tokenizer.lookup(texts), strict=True)]

    return [Chunk(text[start:end], start, end) for start, end in chunk_spans(text, count, room, by)]
