"""The methods that are compared on an open corpus: baselines, and ways to use a trained retriever."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from qrag_jax.evaluate.baselines import Encoder, bm25
from qrag_jax.evaluate.corpus import UNTIL_STOP, Corpus, Method, Order, fuse, tailed
from qrag_jax.evaluate.metrics import calibrate_threshold
from qrag_jax.retrieve.retriever import Retriever
from qrag_jax.retrieve.search import stopped
from qrag_jax.retrieve.types import PoolRows

DEPTH = 100
"""How many chunks of each order take part in a fusion, and are kept as a tail."""


def baseline_methods(corpus: Corpus, encoders: Mapping[str, Encoder]) -> list[Method]:
    """BM25, and for each encoder: one look; asked again with its first pick; BM25 and one look fused by their ranks."""
    words = [found.picked for found in bm25(corpus.questions, DEPTH)]
    methods = [Method("BM25", False, {DEPTH: words})]
    for name, encoder in encoders.items():
        once, again = looks(encoder, corpus)
        methods += [Method(f"{name}, one look", False, {DEPTH: once}), Method(f"{name}, asked again", False, {DEPTH: again})]
        methods.append(Method(f"BM25 + {name}", False, {DEPTH: fuse(words, once)}))
    return methods


def looks(encoder: Encoder, corpus: Corpus) -> tuple[list[Order], list[Order]]:
    """The chunks nearest to each question; and the first of them, followed by those nearest to the question together with it."""
    asked = [question.question for question in corpus.questions]
    scorer = encoder.scorer(PoolRows(encoder.chunks(corpus.texts), np.arange(len(corpus.texts), dtype=np.int32)))
    once = [seen.chunks for seen in scorer(encoder.states(asked), [()] * len(asked), DEPTH)]
    first = [order[:1] for order in once]
    states = encoder.states(asked, [[corpus.texts[i] for i in picked] for picked in first])
    again = [(*picked, *seen.chunks) for picked, seen in zip(first, scorer(states, first, DEPTH - 1), strict=True)]
    return once, again


@dataclass(frozen=True)
class Searched:
    """What a trained retriever found in a corpus. ``once``: its own first look. ``paths``: width of the beam (1: greedy) -> number of
    picks -> the picks of each question in the order in which they were made. ``q``: the values of the greedy picks."""

    once: list[Order]
    paths: Mapping[int, Mapping[int, list[Order]]]
    q: list[tuple[float, ...]]

    @property
    def greedy(self) -> list[Order]:
        return self.paths[1][max(self.paths[1])]


def search(retriever: Retriever, corpus: Corpus, picks: Sequence[int], beams: Sequence[int] = ()) -> Searched:
    """Searches the corpus for every question, greedily and with ``beams``, up to the largest number of ``picks``."""
    document = retriever.document(list(corpus.texts), label="chunks")
    asked = [question.question for question in corpus.questions]
    empty = [()] * len(asked)
    once = [seen.chunks for seen in retriever.scorer(document)(retriever.embed_states(asked, empty, 2), empty, DEPTH)]
    found = {}
    for beam in sorted({1, *beams}):
        label = "greedy" if beam == 1 else f"beam {beam}"
        found[beam] = list(retriever.trajectories(asked, [document] * len(asked), max(picks), beam=beam, label=label))
    most = len(found[1])  # a corpus with fewer chunks gives all that it has
    paths = {beam: {k: [one.picked for one in steps[min(k, most) - 1]] for k in picks} for beam, steps in found.items()}
    return Searched(once, paths, [one.q for one in found[1][-1]])


def open_threshold(found: Searched, corpus: Corpus) -> float | None:
    """The stop threshold with the highest Fact F1 in a corpus of validation questions; None if only one pick is made."""
    if max(map(len, found.greedy)) < 2:
        return None
    return calibrate_threshold(found.greedy, found.q, [question.support for question in corpus.questions])


def trained_methods(found: Searched, threshold: float | None, baselines: Sequence[Method]) -> list[Method]:
    """Ways to use a trained retriever, each followed by its own first look when its search makes no more picks.

    Searches: greedy; with each beam; until the best Q falls below ``threshold`` (None: left out), also without further picks.
    Fusions by ranks: the greedy search with its own first look, and with each baseline.
    """
    greedy = tailed(found.greedy, found.once)
    methods = [Method("Q-RAG, greedy", True, {DEPTH: greedy})]
    for beam, paths in found.paths.items():
        if beam > 1:
            methods.append(Method(f"Q-RAG, beam {beam}", True, {count: tailed(order, found.once) for count, order in paths.items()}))
    methods.append(Method("Q-RAG, one look", True, {DEPTH: found.once}))
    if threshold is not None:
        kept = [tuple(stopped(order, q, threshold)) for order, q in zip(found.greedy, found.q, strict=True)]
        methods.append(Method(UNTIL_STOP, True, {DEPTH: kept}))
        methods.append(Method("Q-RAG, stop, then one look", True, {DEPTH: tailed(kept, found.once)}))
    methods.append(Method("Q-RAG + its one look", True, {DEPTH: fuse(greedy, found.once)}))
    for other in baselines:
        methods.append(Method(f"Q-RAG + {other.name}", True, {DEPTH: fuse(greedy, other.picks(DEPTH))}))
    return methods
