"""A chunk: what a search picks, with its place in the text that it was cut from."""

from __future__ import annotations

from dataclasses import dataclass

from qrag_jax.data.text.chunker import ChunkBy, chunk_spans
from qrag_jax.models.tokenizer import TextTokenizer


@dataclass(frozen=True)
class Chunk:
    """``text`` is characters ``start`` to ``end`` of ``source``, the name of a file. All three are None for a chunk given ready-made."""

    text: str
    start: int | None = None
    end: int | None = None
    source: str | None = None


def chunk_text(text: str, tokenizer: TextTokenizer, max_tokens: int, by: ChunkBy = "tokens") -> list[Chunk]:
    """Cuts a text into chunks, in order; together they hold every character that is not white space.

    By "tokens": :func:`~qrag_jax.data.text.chunker.chunk_spans` with at most ``max_tokens`` tokens per chunk, special ones included. By
    "sentence": each sentence is one chunk; the part after ``max_tokens`` is kept in the text but not embedded, as in training. Raises
    ValueError on a text without words.
    """
    room = max_tokens - len(tokenizer.prefix) - len(tokenizer.suffix)
    if room < 1:
        raise ValueError(f"max_tokens = {max_tokens}: must leave room for one token and the special ones")
    spans = chunk_spans(text, tokenizer.spans, room, by)
    if not spans:
        raise ValueError("the text has no sentences to search; it is empty or only white space")
    return [Chunk(text[start:end], start, end) for start, end in spans]
