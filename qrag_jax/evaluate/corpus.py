"""Questions over one open corpus, and the scores of the methods that search it.

In a benchmark's own setting, a question is searched among its own ten or twenty paragraphs. Here the paragraphs of all questions are one
collection, in which each text stands once, and every question is searched in all of it. A method gives an order of chunks for each
question; its first k chunks are the k picks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from jaxtyping import Float

from qrag_jax.evaluate.metrics import bootstrap_means, fact_em, recall
from qrag_jax.retrieve import ranking
from qrag_jax.types import QAExample

Order = tuple[int, ...]
"""Chunks of a corpus, best first."""
Metric = Literal["all_support", "recall"]
"""All supporting chunks are among the picks (Fact EM); the share of the supporting chunks among the picks."""
METRICS: dict[Metric, Callable[[Sequence[int], Sequence[int], int], float]] = {"all_support": fact_em, "recall": recall}
ALL = "all"
UNTIL_STOP = "Q-RAG, until it stops"
"""The one method that may make fewer picks than asked for."""
MANY_HOPS = 5
"""Questions with this many supporting chunks or more are one group."""


@dataclass(frozen=True)
class Corpus:
    """``texts``: distinct chunks. ``questions``: each has all of ``texts`` as its chunks (the same tuple), and its own support."""

    texts: tuple[str, ...]
    questions: tuple[QAExample, ...]


def gather(examples: Iterable[QAExample], more: Iterable[str] = ()) -> Corpus:
    """The corpus of the documents of ``examples``, in order, and of the texts ``more``; equal texts stand once.

    Raises ValueError when there is no question, and when a question has no supporting chunk.
    """
    examples = list(examples)
    if not examples:
        raise ValueError("a corpus needs at least one question")
    for example in examples:
        if not example.support and not example.missing:
            raise ValueError(f"question {example.id!r}: has no supporting chunks, so its search cannot be scored")
    place: dict[str, int] = {}
    support = [
        tuple(sorted({places[i] for i in example.support}))
        for example in examples
        for places in [[place.setdefault(text, len(place)) for text in example.chunks]]
    ]
    for text in more:
        place.setdefault(text, len(place))
    texts = tuple(place)
    return Corpus(
        texts, tuple(replace(e, chunks=texts, support=found, titles=(), path=()) for e, found in zip(examples, support, strict=True))
    )


@dataclass(frozen=True)
class Method:
    """A way to search, with its orders of chunks, one for each question of a corpus.

    ``orders``: number of picks asked for -> orders. A search that plans ahead finds other chunks for two picks than for six; other methods
    have one entry. ``trained``: whether it uses the trained retriever, so that it is compared with the baselines. An order may be shorter
    than asked for: a search that stops.
    """

    name: str
    trained: bool
    orders: Mapping[int, Sequence[Order]]

    def picks(self, k: int) -> list[Order]:
        """The first ``k`` chunks of each question, of the shortest search that makes so many picks, or of the longest search."""
        asked = min((count for count in self.orders if count >= k), default=max(self.orders))
        return [order[:k] for order in self.orders[asked]]


def tailed(orders: Sequence[Order], tails: Sequence[Order]) -> list[Order]:
    """Each order, followed by the chunks of its tail that it does not have."""
    return [(*order, *(i for i in tail if i not in set(order))) for order, tail in zip(orders, tails, strict=True)]


def fuse(*methods: Sequence[Order]) -> list[Order]:
    """The orders of several methods as one for each question: :func:`qrag_jax.retrieve.ranking.fuse`."""
    return [tuple(ranking.fuse(*found)) for found in zip(*methods, strict=True)]


@dataclass(frozen=True)
class Score:
    """A metric of a method at ``k`` picks: its mean over ``questions`` and the 95 % interval of that mean (bootstrap over questions).

    ``hops``: "all", or the number of supporting chunks of these questions ("5+": five and more). ``picks``: how many were made on average.
    ``best``: the baseline with the highest value here, for trained methods (else None); ``difference``: how far the method is ahead of it,
    with the 95 % interval over the same resampled questions.
    """

    method: str
    trained: bool
    hops: str
    metric: Metric
    k: int
    questions: int
    picks: float
    value: float
    low: float
    high: float
    best: str | None = None
    difference: float | None = None
    difference_low: float | None = None
    difference_high: float | None = None


def measured(method: Method, corpus: Corpus, metric: Metric, k: int) -> Float[np.ndarray, " Q"]:
    """The metric of each question."""
    score = METRICS[metric]
    return np.array([score(picked, q.support, q.missing) for picked, q in zip(method.picks(k), corpus.questions, strict=True)])


def scores(corpus: Corpus, methods: Sequence[Method], cuts: Mapping[Metric, Sequence[int]], *, seed: int = 0) -> list[Score]:
    """The scores of every method, baselines first in ``methods``. ``cuts``: metric -> numbers of picks."""
    hops = np.array([_hops(question) for question in corpus.questions])
    groups = [ALL, *sorted(set(hops.tolist()))] if len(set(hops.tolist())) > 1 else [ALL]
    columns = [(metric, k) for metric, ks in cuts.items() for k in ks]
    values = np.stack([[measured(method, corpus, metric, k) for metric, k in columns] for method in methods])
    made = np.array([[[len(order) for order in method.picks(k)] for _, k in columns] for method in methods], float)
    found = []
    for group in groups:
        inside = np.ones(len(hops), bool) if group == ALL else hops == group
        part = values[:, :, inside]
        draws = bootstrap_means(part.reshape(-1, part.shape[2]).T, seed=seed).reshape(-1, len(methods), len(columns))
        for c, (metric, k) in enumerate(columns):
            picks = made[:, c, inside].mean(axis=1)
            found += _column(
                methods, part[:, c], draws[:, :, c], Score("", False, group, metric, k, int(inside.sum()), 0.0, 0.0, 0.0, 0.0), picks
            )
    return found


def _column(
    methods: Sequence[Method],
    values: Float[np.ndarray, "M Q"],
    draws: Float[np.ndarray, "R M"],
    frame: Score,
    picks: Float[np.ndarray, " M"],
) -> list[Score]:
    means = values.mean(axis=1)
    baselines = [i for i, method in enumerate(methods) if not method.trained]
    best = max(baselines, key=lambda i: means[i], default=None)
    found = []
    for i, method in enumerate(methods):
        low, high = _interval(draws[:, i])
        one = replace(frame, method=method.name, trained=method.trained, picks=float(picks[i]), value=float(means[i]), low=low, high=high)
        if method.trained and best is not None:
            low, high = _interval(draws[:, i] - draws[:, best])
            ahead = float(means[i] - means[best])
            one = replace(one, best=methods[best].name, difference=ahead, difference_low=low, difference_high=high)
        found.append(one)
    return found


def _interval(draws: Float[np.ndarray, " R"]) -> tuple[float, float]:
    low, high = np.percentile(draws, [2.5, 97.5])
    return float(low), float(high)


def _hops(question: QAExample) -> str:
    count = len(question.support) + question.missing
    return str(count) if count < MANY_HOPS else f"{MANY_HOPS}+"


def choose(corpus: Corpus, methods: Sequence[Method], cuts: Mapping[Metric, Sequence[int]]) -> dict[int, str]:
    """Number of picks -> the method to use for it: the best on ``corpus``, which holds validation questions.

    A number in two metrics is judged by the first of them; equal methods by their recall; and then the first method wins, so list first
    what you prefer. No method here is worse on these questions than any other one, one look included.
    """
    found: dict[int, str] = {}
    for metric, ks in cuts.items():
        for k in ks:
            rank = lambda m: tuple(measured(m, corpus, name, k).mean() for name in (metric, "recall"))  # noqa: B023  (used at once)
            found.setdefault(k, max(methods, key=rank).name)
    return found


def chosen(name: str, choice: Mapping[int, str], methods: Sequence[Method]) -> Method:
    """The method that uses for each number of picks the one that :func:`choose` names."""
    by_name = {method.name: method for method in methods}
    return Method(name, True, {k: by_name[used].picks(k) for k, used in sorted(choice.items())})
