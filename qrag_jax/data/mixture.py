"""Several benchmarks as one: "hotpotqa+musique", with weights "hotpotqa:2+musique:1"."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from typing import SupportsIndex

import numpy as np

from qrag_jax.data.splits import SPLITS, Split, check_split
from qrag_jax.types import QAExample

_MIX = 303  # first word of the key of a random stream


class Mixture(Sequence[QAExample]):
    """Several sources mixed: of every sum(weights) examples, weights[k] come from source k, in an order drawn from (seed, split, round).

    ``self[i]`` exists for every i >= 0, as in the sources. The examples of a source are used in order. ``len`` is the number of different
    questions in all sources together.
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
            raise IndexError(f"example {i}: must be >= 0, since the sequence has no end")
        number, place = divmod(i, len(self._round))
        order = np.random.default_rng((self.seed, _MIX, SPLITS.index(self.split), number)).permutation(self._round)
        source = int(order[place])
        before = int(np.count_nonzero(order[:place] == source))
        return self.sources[source][number * self.weights[source] + before]
