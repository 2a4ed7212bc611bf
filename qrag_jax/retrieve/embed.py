"""Texts to un-rotated embeddings, in blocks of a few static shapes, so that memory stays flat at any length of document."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import numpy as np
from jaxtyping import Float

from qrag_jax.runlog import progress
from qrag_jax.tokens import TextTokenizer

BLOCK = 256  # rows embedded at once
WIDTHS = (8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)

EmbedRows = Callable[[np.ndarray], jax.Array]


def embed_texts(
    embed_rows: EmbedRows, tokenizer: TextTokenizer, texts: Sequence[str], max_tokens: int, *, label: str | None = None
) -> Float[np.ndarray, "U D"]:
    """One embedding a text, in order. ``embed_rows`` is a jitted [R, L] -> [R, D].

    Texts are embedded among others of like length, so a short one does not pay for the longest. ``label`` shows a progress bar.
    """
    if not texts:
        raise ValueError("texts is empty: nothing to embed")
    extra = len(tokenizer.prefix) + len(tokenizer.suffix)
    lengths = np.minimum([len(ids) + extra for ids in tokenizer.lookup(texts)], max_tokens)
    order = np.argsort(lengths, kind="stable")
    out: np.ndarray | None = None
    bar = progress(total=len(texts), unit="chunk", desc=label, disable=label is None, leave=False)
    for start in range(0, len(order), BLOCK):
        block = order[start : start + BLOCK]
        width = next((w for w in WIDTHS if w >= lengths[block[-1]] and w <= max_tokens), max_tokens)
        rows = tokenizer.rows([texts[i] for i in block], width)
        rows = np.pad(rows, ((0, BLOCK - len(block)), (0, 0)), constant_values=-1)
        vectors = np.asarray(embed_rows(rows))[: len(block)]
        out = np.empty((len(texts), vectors.shape[1]), np.float32) if out is None else out
        out[block] = vectors
        bar.update(len(block))
    bar.close()
    assert out is not None
    return out
