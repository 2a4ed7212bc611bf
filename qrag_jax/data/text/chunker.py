"""A text cut into chunks, by places: sentences, or sentences packed up to a budget of tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Literal

from qrag_jax.data.text.sentences import Span, sentence_spans, stripped

ChunkBy = Literal["sentence", "tokens"]
TokenSpans = Callable[[str], Sequence[Span]]
"""A text -> the characters of each of its tokens, in order."""


def chunk_spans(text: str, token_spans: TokenSpans, max_tokens: int, by: ChunkBy = "tokens") -> list[Span]:
    """Where the chunks of ``text`` are, in order; together they hold every character that is not white space.

    By "tokens": consecutive sentences are packed to at most ``max_tokens`` tokens, and a sentence is broken, between tokens, only when it
    is longer than that on its own. By "sentence": each sentence is a chunk, however long.
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
    """Places in a long sentence and their tokens. The tokens of one character, which some tokenizers cut into bytes, stay together."""
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
