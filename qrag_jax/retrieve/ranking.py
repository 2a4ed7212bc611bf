"""Searches that look once: by the encoder's own similarity, by words (BM25), or by both, fused by their ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float

from qrag_jax.config.parse import require
from qrag_jax.retrieve.scan import look
from qrag_jax.retrieve.search import Scorer, SearchPath
from qrag_jax.retrieve.types import Document, Look
from qrag_jax.retrieve.words import WordIndex, words

Mode = Literal["multi", "single", "bm25", "hybrid"]
"""multi: the trained search in several steps. single: the chunks nearest to the question, by the encoder's own similarity and without
positions. bm25: those that share words with it. hybrid: single and bm25, fused by their ranks."""
SCORES: dict[Mode, str] = {"multi": "Q", "single": "similarity", "bm25": "BM25", "hybrid": "fused"}
"""The name of the score of a pick: its Q, an inner product or cosine, a BM25 score, a sum of reciprocal ranks."""
Best = Callable[[int], Look]
"""k -> the k best chunks, best first."""
FUSED = 100
"""How many chunks of each order are fused, at least."""
RANK_OFFSET = 60.0  # Cormack, Clarke and Buettcher 2009, "Reciprocal rank fusion"


def check_options(mode: str, beam: int, stop: bool, encoder: str | None, threshold: float | None) -> None:
    """Raises ValueError when a retriever cannot search so. ``encoder``: its name if no training has changed it; ``threshold``: its stop
    threshold, if it has one."""
    require(mode in SCORES, "mode", mode, " or ".join(SCORES))
    if beam < 1:
        raise ValueError(f"beam = {beam}: must be >= 1, the paths kept at each step")
    if mode == "multi" and encoder is not None:
        raise ValueError(
            f"mode = multi: {encoder} is a plain encoder, which was not trained to search in several steps; use mode hybrid, single or "
            "bm25, or train a retriever (docs/training.md) and build an index with it"
        )
    if mode != "multi" and beam > 1:
        raise ValueError(f"beam = {beam}: mode {mode} makes no paths; use mode multi, or a beam of 1")
    if mode != "multi" and stop:
        raise ValueError(f"stop = True: only mode multi has a stop threshold; leave it out, or use multi instead of {mode}")
    if stop and threshold is None:
        raise ValueError("stop = True: this retriever has no calibrated threshold; run python -m experiments.calibrate on it first")


def fuse(*orders: Sequence[int]) -> dict[int, float]:
    """Reciprocal rank fusion: chunks by the sum of 1 / (60 + rank), rank from 1, over the orders that have them, best first.

    Equal sums keep the order of the first one.
    """
    score: dict[int, float] = {}
    for order in orders:
        for rank, chunk in enumerate(order, 1):
            score[chunk] = score.get(chunk, 0.0) + 1.0 / (RANK_OFFSET + rank)
    return dict(sorted(score.items(), key=lambda item: -item[1]))


def look_once(
    questions: Sequence[str],
    documents: Sequence[Document],
    near: Mapping[int, Scorer],
    states: Float[np.ndarray, "Q D"] | None,
    allowed: Bool[np.ndarray, " N"] | None,
    mode: Mode,
    count: int,
    bins: int,
) -> Iterator[Look]:
    """The ``count`` best chunks for each question in the document beside it, found in one look.

    ``near``: the scorer of each document by its id, and ``states`` the embedded questions, unless the mode is bm25. ``allowed``: the chunks
    that may be picked (None: all). ``bins``: stretches of the curve, which a hybrid search does not have.
    """
    for i, (question, document) in enumerate(zip(questions, documents, strict=True)):
        orders: list[Best] = []
        if states is not None:
            orders.append(partial(_nearest, near[id(document)], states[i : i + 1], bins))
        if mode != "single":
            scores = _words_of(document).scores(words([question])[0])
            orders.append(partial(_best_by_words, scores, allowed, bins))
        yield _distinct(orders[0] if len(orders) == 1 else partial(_fused, orders), document.equals, count)


def _nearest(scorer: Scorer, state: Float[np.ndarray, "1 D"], bins: int, top: int) -> Look:
    return scorer(state, [()], top, bins)[0]


def _words_of(document: Document) -> WordIndex:
    """BM25 of a document, which an index and a document in memory keep."""
    kept = getattr(document, "words", None)
    return kept() if kept else WordIndex.build(document.chunk(i).text for i in range(len(document)))


def _fused(orders: Sequence[Best], top: int) -> Look:
    """Several orders as one, by their ranks: similarities and BM25 scores cannot be compared."""
    found = fuse(*(order(max(top, FUSED)).chunks for order in orders))
    return Look(tuple(found)[:top], tuple(found.values())[:top])


def _best_by_words(scores: Float[np.ndarray, " N"], allowed: Bool[np.ndarray, " N"] | None, bins: int, top: int) -> Look:
    """The chunks with the highest BM25 scores. Those that share no word with the question (score 0) are never among them."""
    left = np.where(scores > 0 if allowed is None else (scores > 0) & allowed, scores, -np.inf)
    return look(left, (), top, bins)


def _distinct(best: Best, equals: Callable[[int], Sequence[int]], count: int) -> Look:
    """The ``count`` best chunks, of which no two hold the same text of several documents. ``best(k)`` gives the k best of all."""
    asked = count
    while True:
        seen = best(asked)
        gone: set[int] = set()
        kept: list[int] = []
        for place, chunk in enumerate(seen.chunks):
            if chunk not in gone and len(kept) < count:
                kept.append(place)
                gone.update(equals(chunk))
        if len(kept) == count or len(seen.chunks) < asked:
            return Look(tuple(seen.chunks[i] for i in kept), tuple(seen.q[i] for i in kept), seen.curve)
        asked *= 2


def as_path(seen: Look, budget: int) -> SearchPath:
    """The first ``budget`` chunks of an order as picks; each was looked at with those after it."""
    picked, q = seen.chunks[:budget], seen.q[:budget]
    return SearchPath(picked, q, tuple(Look(seen.chunks[t:], seen.q[t:], seen.curve) for t in range(len(picked))))
