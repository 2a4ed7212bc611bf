"""Several benchmarks as one: "hotpotqa+musique", with weights "hotpotqa:2+musique:1"."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, SupportsIndex

import numpy as np

from qrag_jax.config import DataConfig
from qrag_jax.data.splits import SPLITS, Split, check_split
from qrag_jax.types import QAExample

_MIX = 303  # first word of the key of a random stream


class Mixture(Sequence[QAExample]):
    """Of every sum(weights) examples, weights[k] come from source k, in an order drawn for them from (seed, split, their number).

    ``self[i]`` exists for every i >= 0, as in the sources, whose examples are each used in turn. ``len`` is the number of different
    questions in all sources.
    """

    def __init__(self, sources: Sequence[Sequence[QAExample]], weights: Sequence[int], split: Split, *, seed: int) -> None:
        check_split(split)
        self.sources, self.weights, self.split, self.seed = tuple(sources), tuple(weights), split, seed
        self._round = np.repeat(np.arange(len(weights)), weights)

    def __len__(self) -> int:
        return sum(map(len, self.sources))

    def __iter__(self) -> Iterator[QAExample]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, i: SupportsIndex) -> QAExample:  # type: ignore[override]  # slices of an endless sequence are not offered
        i = operator.index(i)
        if i < 0:
            raise IndexError(f"example {i}: indices begin at 0; negative ones have no meaning in a sequence that does not end")
        number, place = divmod(i, len(self._round))
        order = np.random.default_rng((self.seed, _MIX, SPLITS.index(self.split), number)).permutation(self._round)
        source = int(order[place])
        before = int(np.count_nonzero(order[:place] == source))
        return self.sources[source][number * self.weights[source] + before]


def parse_mixture(text: str, known: Sequence[str]) -> dict[str, int]:
    """'hotpotqa:2+musique' -> {'hotpotqa': 2, 'musique': 1}. Raises ValueError on anything else and on unknown names."""
    weights: dict[str, int] = {}
    for part in text.split("+"):
        match = re.fullmatch(r"(\w+)(?::([1-9]\d{0,3}))?", part)
        if not match:
            raise ValueError(f"data.benchmark = {text!r}: write names joined by +, with weights of 1 to 9999, as hotpotqa:2+musique:1")
        if match[1] not in known:
            raise ValueError(f"data.benchmark = {text!r}: {match[1]!r} is unknown; known: {', '.join(known)}")
        if match[1] in weights:
            raise ValueError(f"data.benchmark = {text!r}: names {match[1]} twice; give it a weight")
        weights[match[1]] = int(match[2] or 1)
    return weights


def load(
    benchmarks: Mapping[str, Callable[..., Sequence[QAExample]]], config: DataConfig, split: Split, *, seed: int, **options: Any
) -> Mixture:
    """The mixture that ``config.benchmark`` names, each part loaded with the same configuration and options."""
    weights = parse_mixture(config.benchmark, tuple(benchmarks))
    sources = [benchmarks[name](replace(config, benchmark=name), split, seed=seed, **options) for name in weights]
    return Mixture(sources, list(weights.values()), split, seed=seed)
