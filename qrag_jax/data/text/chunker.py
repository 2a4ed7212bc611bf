"""Cuts a text into chunks, given as character ranges: sentences, or sentences packed up to a budget of tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Literal

from qrag_jax.data.text.sentences import Span, sentence_spans, stripped

ChunkBy = Literal["sentence", "tokens"]
TokenSpans = Callable[[str], Sequence[Span]]
"""A text -> the character range of each of its tokens, in order."""


def chunk_spans(text: str, token_spans: TokenSpans, max_tokens: int, by: ChunkBy = "tokens") -> list[Span]:
    """The ranges of the chunks of ``text``, in order. Together they hold every character that is not white space.

    By "tokens": consecutive sentences are packed up to ``max_tokens`` tokens; only a sentence that is longer than that is broken, between
    tokens. By "sentence": each sentence is a chunk, however long.
    """
    sentences = sentence_spans(text)
    if by == "sentence":
        return sentences
    spans: list[Span] = []
    used = max_tokens
    for start, end in sentences:
        sentence = text[start:end]
        tokens = token_spans(sentence)
        if len(tokens) > max_tokens:
            pieces = list(_pieces(sentence, tokens, max_tokens))
            spans += [(start + first, start + last) for (first, last), _ in pieces]
            used = pieces[-1][1]
        elif spans and used + len(tokens) <= max_tokens:
            spans[-1] = (spans[-1][0], end)
            used += len(tokens)
        else:
            spans.append((start, end))
            used = len(tokens)
    return spans


def _pieces(sentence: str, tokens: Sequence[Span], max_tokens: int) -> Iterator[tuple[Span, int]]:
    """The pieces of a long sentence and their token counts. Tokens of one character stay together (some tokenizers cut it into bytes)."""
    first, start = 0, 0
    while first < len(tokens):
        last = first + max_tokens
        while first < last < len(tokens) and tokens[last][0] < tokens[last - 1][1]:
            last -= 1
        if last == first:  # one character has more tokens than the budget
            last += max_tokens
            while last < len(tokens) and tokens[last][0] < tokens[last - 1][1]:
                last += 1
        end = tokens[last][0] if last < len(tokens) else len(sentence)
        if (span := stripped(sentence, start, end)) is not None:
            yield span, min(last, len(tokens)) - first
        first, start = last, end
