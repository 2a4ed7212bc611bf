"""Context lengths: how they are written, and how many sentences fill them."""

from __future__ import annotations

import math
import re

# Number of sentences that fill a BabiLong context, by its nominal length in tokens (about 25 tokens per sentence in long contexts).
CONTEXT_CHUNKS = {
    1_000: 50,
    4_000: 160,
    32_000: 1_200,
    128_000: 4_600,
    1_000_000: 40_000,
    10_000_000: 400_000,
}


def parse_tokens(text: str) -> int:
    """'512' -> 512, '4k' -> 4 000, '1m' -> 1 000 000. Raises ValueError on anything else."""
    match = re.fullmatch(r"(\d+)([kKmM]?)", text)
    if not match or int(match[1]) == 0:
        raise ValueError(f"context length {text!r}: write a positive number of tokens such as 512, 4k, 128k or 1m")
    return int(match[1]) * {"": 1, "k": 1_000, "m": 1_000_000}[match[2].lower()]


def format_tokens(tokens: int) -> str:
    """4000 -> '4k', 1000000 -> '1m', 512 -> '512': the inverse of :func:`parse_tokens`."""
    for unit, suffix in ((1_000_000, "m"), (1_000, "k")):
        if tokens % unit == 0:
            return f"{tokens // unit}{suffix}"
    return str(tokens)


def context_chunks(tokens: int) -> int:
    """Number of sentences in a context of ``tokens`` tokens: the paper's figures where it has them, else 25 tokens per sentence."""
    return CONTEXT_CHUNKS.get(tokens, math.ceil(tokens / 25))
