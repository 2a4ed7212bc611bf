"""Retrieval metrics on the host. Fact EM and Fact F1 are defined as in Q-RAG's tables 2-6.

Importing scipy.stats takes most of a second, so only the two functions that need it import it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from qrag_jax.retrieve.search import stopped


def fact_em(picked: Sequence[int], support: Sequence[int], missing: int = 0) -> float:
    """1 if every supporting chunk was picked (others may be picked too), else 0. It is 0 if the document lacks ``missing`` of them."""
    _check(support, missing)
    return float(not missing and set(support) <= set(picked))


def fact_f1(picked: Sequence[int], support: Sequence[int], missing: int = 0) -> float:
    """F1 of the set of picked chunks against the supporting set, to which ``missing`` chunks belong that the document lacks."""
    _check(support, missing)
    both = len(set(picked) & set(support))
    return 2 * both / (len(set(picked)) + len(set(support)) + missing)


def recall(picked: Sequence[int], support: Sequence[int], missing: int = 0) -> float:
    """The share of the supporting chunks that were picked; ``missing`` ones, which the document lacks, count as not picked."""
    _check(support, missing)
    return len(set(picked) & set(support)) / (len(set(support)) + missing)


def calibrate_threshold(picked: Sequence[Sequence[int]], q: Sequence[Sequence[float]], support: Sequence[Sequence[int]]) -> float:
    """The stop threshold with the highest mean Fact F1. Call it with validation episodes only.

    Among equally good thresholds, it is the middle of the widest gap between observed Q values.
    """
    values = np.unique(np.concatenate([np.asarray(row[1:], float) for row in q]))
    if values.size == 0:
        raise ValueError("a stop threshold needs episodes of at least two picks; use a budget of 2 or more")
    edges = np.concatenate([[values[0] - 1.0], values, [values[-1] + 1.0]])
    middles, gaps = (edges[1:] + edges[:-1]) / 2, np.diff(edges)
    if middles.size > 400:  # quantiles keep the cost linear in the number of episodes, and lose nothing visible
        keep = np.unique(np.linspace(0, middles.size - 1, 400).astype(int))
        middles, gaps = middles[keep], gaps[keep]
    scores = [np.mean([fact_f1(stopped(p, v, threshold), s) for p, v, s in zip(picked, q, support, strict=True)]) for threshold in middles]
    best = max(range(len(middles)), key=lambda i: (round(float(scores[i]), 9), gaps[i]))
    return float(middles[best])


def calibrate_refusal(there: Sequence[float], gone: Sequence[float], most: float = 0.01) -> float:
    """The limit below which the best Q of a question refuses the most of ``gone``, and at most the share ``most`` of ``there``: the best Q
    of questions whose supporting chunks are in the documents, and are not. Call it with validation questions only.

    Among equally good limits, it is the middle of the widest gap between observed Q values.
    """
    values = np.unique(np.asarray([*there, *gone], float))
    edges = np.concatenate([[values[0] - 1.0], values, [values[-1] + 1.0]])
    limits, gaps = (edges[1:] + edges[:-1]) / 2, np.diff(edges)
    refused, rightly = (np.searchsorted(np.sort(np.asarray(one, float)), limits) for one in (there, gone))
    allowed = np.flatnonzero(refused <= most * len(there))
    return float(limits[max(allowed, key=lambda i: (rightly[i], gaps[i]))])


@dataclass(frozen=True)
class Stopping:
    """Results of stopping below each threshold (Tables 5 and 6 of the paper), as means over episodes. ``length``: number of picks.
    ``perfect``: share of episodes that stop right after their last supporting chunk. ``roc_auc``: how well Q predicts that a supporting
    chunk is still missing; None if one always or never is."""

    threshold: tuple[float, ...]
    fact_f1: tuple[float, ...]
    fact_em: tuple[float, ...]
    length: tuple[float, ...]
    perfect: tuple[float, ...]
    roc_auc: float | None


def stopping(
    picked: Sequence[Sequence[int]], q: Sequence[Sequence[float]], support: Sequence[Sequence[int]], points: int = 101
) -> Stopping:
    """The trade-off over ``points`` thresholds that span the Q of second and later picks."""
    later = np.concatenate([np.asarray(row[1:], float) for row in q])
    missing = np.concatenate([[fact_em(p[:t], s) == 0 for t in range(1, len(p))] for p, s in zip(picked, support, strict=True)])
    thresholds = np.linspace(later.min() - 1e-6, later.max() + 1e-6, points)
    rows = []
    for threshold in thresholds:
        kept = [stopped(p, v, threshold) for p, v in zip(picked, q, strict=True)]
        done = [fact_em(k, s) for k, s in zip(kept, support, strict=True)]
        f1 = [fact_f1(k, s) for k, s in zip(kept, support, strict=True)]
        perfect = [em and not fact_em(k[:-1], s) for k, s, em in zip(kept, support, done, strict=True)]
        rows.append([np.mean(f1), np.mean(done), np.mean([len(k) for k in kept]), np.mean(perfect)])
    auc = None
    if 0 < missing.sum() < len(missing):
        # The probability that Q is higher in a state that misses a chunk than in one that does not; ties count half.
        from scipy.stats import rankdata

        ones = int(missing.sum())
        auc = float((rankdata(later)[missing].sum() - ones * (ones + 1) / 2) / (ones * (len(missing) - ones)))
    columns = [tuple(map(float, column)) for column in zip(*rows, strict=True)]
    return Stopping(tuple(thresholds.tolist()), columns[0], columns[1], columns[2], columns[3], auc)


def wilson_interval(successes: int, trials: int) -> tuple[float, float]:
    """95 % confidence interval of a proportion (Wilson 1927, z = 1.96). At 0 and 1, where the normal interval has no width, it has one."""
    from scipy.stats import binomtest

    if trials < 1:
        raise ValueError(f"trials = {trials}: a proportion needs at least one episode")
    found = binomtest(successes, trials).proportion_ci(confidence_level=math.erf(1.96 / math.sqrt(2)), method="wilson")
    return float(found.low), float(found.high)


def bootstrap_means(values: Float[np.ndarray, "Q M"], *, resamples: int = 10_000, seed: int = 0) -> Float[np.ndarray, "resamples M"]:
    """The means of M columns over resampled questions (Efron 1979): Q questions are drawn with replacement, the same for all columns.

    So the percentiles of a column are the interval of its mean, and those of the difference of two columns a paired comparison.
    """
    count = len(values)
    draws = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=resamples)
    return draws @ values / count


def _check(support: Sequence[int], missing: int) -> None:
    if not support and not missing:
        raise ValueError("support is empty: Fact EM and Fact F1 are undefined without supporting chunks; leave out the example")
