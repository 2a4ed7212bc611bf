"""Which differences between runs are real: paired bootstrap over test questions, compared with the spread over seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import mean, stdev
from typing import get_args

import numpy as np

from experiments.overlay.runs import Group, Key, Metric, Run, keys
from experiments.paper.compare import markdown
from experiments.seeds import cell
from qrag_jax.config.lengths import format_tokens
from qrag_jax.evaluate.metrics import bootstrap_means
from qrag_jax.rundir.files import markdown_text

TITLES: dict[Metric, str] = {"fact_em": "Fact EM", "answer_em": "answer EM"}
ENDS = (2.5, 97.5)
"""Percentiles of a 95 % interval."""
INTRODUCTION = (
    "Difference: the second minus the first. Its 95 % interval is a bootstrap over test questions: paired, where both have the same seeds, "
    "which asked the same ones. Spread: the larger sample standard deviation over the seeds of the two. A difference is real if its "
    "interval leaves out 0 and it is larger than the spread."
)


@dataclass(frozen=True)
class Difference:
    """One test of two groups. ``interval`` None: the questions were not kept. ``spread`` None: neither has two seeds."""

    key: Key
    metric: Metric
    names: tuple[str, str]
    values: tuple[float, float]
    interval: tuple[float, float] | None
    paired: bool
    questions: int
    spread: float | None

    @property
    def value(self) -> float:
        return self.values[1] - self.values[0]

    @property
    def verdict(self) -> str:
        if self.interval is None:
            return "unknown: a run has no episodes/"
        if self.interval[0] <= 0 <= self.interval[1]:
            return "may be chance"
        if self.spread is None:
            return "beyond chance; one seed each, so the spread is unknown"
        return "real" if abs(self.value) > self.spread else "within the spread of the seeds"


def differences(groups: Sequence[Group]) -> list[Difference]:
    """Every pair of groups in every test that both have made."""
    return [
        found
        for key in keys(groups)
        for metric in get_args(Metric)
        for pair in combinations(groups, 2)
        if (found := difference(key, metric, *pair)) is not None
    ]


def difference(key: Key, metric: Metric, one: Group, two: Group) -> Difference | None:
    """None if a group has not measured it."""
    scores = one.scores(key, metric), two.scores(key, metric)
    if not all(scores):
        return None
    spreads = [stdev(part) for part in scores if len(part) > 1]
    interval, paired, questions = interval_of(key, metric, one, two)
    values = (mean(scores[0]), mean(scores[1]))
    return Difference(key, metric, (one.name, two.name), values, interval, paired, questions, max(spreads, default=None))


def interval_of(key: Key, metric: Metric, one: Group, two: Group) -> tuple[tuple[float, float] | None, bool, int]:
    """The 95 % interval of the difference, whether it is paired, and of how many questions. None if a run has kept none.

    Questions are resampled; those of all seeds together, so a seed's own luck is not in the interval: the spread shows that.
    """
    pairs = [(a.questions(key, metric), b.questions(key, metric)) for a, b in same_seeds(one, two)]
    rows = [(a[question], b[question]) for a, b in pairs for question in a.keys() & b.keys()]
    if rows and len(pairs) == len(one.runs) == len(two.runs) and all(a.keys() == b.keys() for a, b in pairs):
        means = bootstrap_means(np.array(rows))
        apart, paired, count = means[:, 1] - means[:, 0], True, len(rows)
    else:
        alone = [np.array([v for run in group.runs for v in run.questions(key, metric).values()])[:, None] for group in (one, two)]
        if not all(map(len, alone)):
            return None, False, 0
        drawn = [bootstrap_means(part, seed=number)[:, 0] for number, part in enumerate(alone)]
        apart, paired, count = drawn[1] - drawn[0], False, min(map(len, alone))
    low, high = np.percentile(apart, ENDS)
    return (float(low), float(high)), paired, count


def same_seeds(one: Group, two: Group) -> list[tuple[Run, Run]]:
    """The runs of the same seed in both groups: they asked the same questions if they had the same test."""
    theirs = {run.seed: run for run in two.runs}
    return [(run, theirs[run.seed]) for run in one.runs if run.seed in theirs]


def report(groups: Sequence[Group]) -> str:
    """The text of overlay.md."""
    last = [[v[-1][1] for run in group.runs if (v := run.validations)] for group in groups]
    best = [[max(score for _, score in run.validations) for run in group.runs if run.validations] for group in groups]
    lines = [
        [
            markdown_text(group.name),
            str(len(group.runs)),
            *(cell(mean(part), stdev(part) if len(part) > 1 else None) if part else "-" for part in parts),
        ]
        for group, *parts in zip(groups, best, last, strict=True)
    ]
    several = ", mean ± spread over the seeds" if any(len(group.runs) > 1 for group in groups) else ""
    parts = [f"Validation Fact EM{several}:", markdown(["run", "seeds", "best", "last"], lines)]
    if found := differences(groups):
        parts += ["Tests:", markdown(HEADS, [line(one) for one in found]), INTRODUCTION]
    else:
        parts.append("No two of these runs have made the same test, so only their validations are compared.")
    return "\n\n".join(parts)


HEADS = [
    "test",
    "tokens",
    "metric",
    "first run",
    "second run",
    "first score",
    "second score",
    "difference",
    "95 %",
    "questions",
    "spread",
    "verdict",
]


def line(found: Difference) -> list[str]:
    """A row of the table of differences."""
    benchmark, task, split, tokens = found.key
    interval = "-" if found.interval is None else f"{found.interval[0]:+.3f} to {found.interval[1]:+.3f}"
    count = "-" if found.interval is None else f"{found.questions:,}{'' if found.paired else ', not paired'}"
    return [
        f"{benchmark} {task}{'' if split == 'test' else f', {split}'}",
        "-" if tokens is None else format_tokens(tokens),
        TITLES[found.metric],
        *map(markdown_text, found.names),
        *(f"{value:.3f}" for value in found.values),
        *(f"{found.value:+.3f}", interval, count, "-" if found.spread is None else f"{found.spread:.3f}", found.verdict),
    ]
