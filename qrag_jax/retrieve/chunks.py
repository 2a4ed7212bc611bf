"""A text cut into chunks: whole sentences up to a token budget, with their places in the text."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from qrag_jax.models.tokenizer import TextTokenizer

ChunkBy = Literal["sentence", "tokens"]

# The end of a sentence: closing punctuation (and quotes or brackets after it) before white space, or an empty line.
_END = re.compile(r"[.!?…。！？]+[\"'”’)\]]*(?=\s)|\n\s*\n")


@dataclass(frozen=True)
class Chunk:
    """``text`` is the source (a file, by name) from character ``start`` to ``end``; all None for a chunk given as such."""

    text: str
    start: int | None = None
    end: int | None = None
    source: str | None = None


def sentence_spans(text: str) -> list[tuple[int, int]]:
    """Character spans of the sentences, without surrounding white space; together they hold every character that is not white space."""
    spans = []
    start = 0
    for end in [match.end() for match in _END.finditer(text)] + [len(text)]:
        piece = text[start:end]
        if body := piece.strip():
            first = start + piece.index(body)
            spans.append((first, first + len(body)))
        start = end
    return spans


def chunk_text(text: str, tokenizer: TextTokenizer, max_tokens: int, by: ChunkBy = "tokens") -> list[Chunk]:
    """A text as chunks, in order; together they hold every character that is not white space.

    By "tokens": consecutive sentences are packed to at most ``max_tokens`` tokens (special ones included), and a sentence is broken,
    between tokens, only when it is longer than that on its own. By "sentence": each sentence is a chunk, whole; what is past
    ``max_tokens`` in it is kept and not embedded, as in training. Raises ValueError on a text without words.
    """
    room = max_tokens - len(tokenizer.prefix) - len(tokenizer.suffix)
    if room < 1:
        raise ValueError(f"max_tokens = {max_tokens}: must leave room for a token beside the special ones")
    if by == "sentence":
        return [Chunk(text[start:end], start, end) for start, end in _some(sentence_spans(text))]
    spans: list[tuple[int, int]] = []
    used = room + 1
    for start, end in sentence_spans(text):
        tokens = tokenizer.spans(text[start:end])
        if len(tokens) > room:
            pieces = [tokens[i : i + room] for i in range(0, len(tokens), room)]
            cuts = [start, *(start + piece[0][0] for piece in pieces[1:]), end]
            spans += [(a, b) for a, b in pairwise(cuts)]
            used = len(pieces[-1])
        elif used + len(tokens) <= room:
            spans[-1] = (spans[-1][0], end)
            used += len(tokens)
        else:
            spans.append((start, end))
            used = len(tokens)
    return [Chunk(text[start:end], start, end) for start, end in _some(spans)]


def _some(spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    if not spans:
        raise ValueError("the text has no sentences to search; it is empty or only white space")
    return spans
