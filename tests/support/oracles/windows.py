"""What of a text lies outside the windows that are embedded: an independent count, character by character."""

from __future__ import annotations

from collections.abc import Sequence

import tokenizers

Range = tuple[int, int]


def tokens_of(tokenizer: tokenizers.Tokenizer, text: str) -> list[Range]:
    """The characters of each token, as the tokenizers library gives them."""
    return tokenizer.encode(text, add_special_tokens=False).offsets


def lost(tokenizer: tokenizers.Tokenizer, text: str, chunks: Sequence[Range], window: int) -> list[int]:
    """The characters that have a token in the text, and no token among the first ``window`` of any chunk.

    White space does not count, nor do characters that the tokenizer drops: alone, they have no token.
    """
    embedded = [False] * len(text)
    for start, end in chunks:
        for first, last in tokens_of(tokenizer, text[start:end])[:window]:
            embedded[start + first : start + last] = [True] * (last - first)
    has_token = [False] * len(text)
    for first, last in tokens_of(tokenizer, text):
        has_token[first:last] = [True] * (last - first)
    missing = [i for i, character in enumerate(text) if has_token[i] and not embedded[i] and not character.isspace()]
    return [i for i in missing if tokens_of(tokenizer, text[i])]
