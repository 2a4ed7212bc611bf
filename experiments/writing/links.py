"""Passages that belong together: those that share a rare word, such as a name, and stand apart."""

from __future__ import annotations

import math
import random
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from qrag_jax.data.splits import Split
from qrag_jax.retrieve.words import words

SHORTEST = 3
"""Characters; shorter words and numbers link nothing."""
TRIPLE = 3
"""Every third link has three passages."""
ALIKE = 0.5
"""Passages that share more of their words than this (Jaccard index) say the same, so that one of them is enough."""

PLACES: dict[int, Split] = {3: "validation", 7: "test"}
"""Of ten links without a passage that is linked already, those that are not for training."""


@dataclass(frozen=True)
class Link:
    """The numbers of two or three ``passages``; ``words[i]`` stands in passage i and in passage i + 1. ``split``: of its question."""

    passages: tuple[int, ...]
    words: tuple[str, ...]
    split: Split = "train"


class Linker:
    """Links the passages ``texts``, but no neighbours in one of the ``sources``."""

    def __init__(self, texts: Sequence[str], sources: Sequence[str | None]) -> None:
        self.sources = sources
        self.words = words(texts)
        self._sets = [set(found) for found in self.words]
        counts = Counter(word for found in self._sets for word in found)
        most = max(3, len(texts) // 50)
        self._weights = {
            word: math.log(len(texts) / count)
            for word, count in counts.items()
            if 2 <= count <= most and len(word) >= SHORTEST and not word.isdigit()
        }
        self._where: dict[str, list[int]] = defaultdict(list)
        for number, found in enumerate(self._sets):
            for word in found & self._weights.keys():
                self._where[word].append(number)

    def links(self, seed: int) -> Iterator[Link]:
        """Every pair and triple of passages once at most, in a random order: from each passage to the one with the most in common."""
        order = list(range(len(self.words)))
        random.Random(seed).shuffle(order)
        known: set[frozenset[int]] = set()
        for place, number in enumerate(order):
            link = self.grown(Link((number,), ()))
            if link is not None and place % TRIPLE == TRIPLE - 1:
                link = self.grown(link) or link
            if link is not None and (together := frozenset(link.passages)) not in known:
                known.add(together)
                yield link

    def grown(self, link: Link) -> Link | None:
        """``link`` with one passage more: the one that has most in common with the last one, by a word that the others do not have."""
        last, before = link.passages[-1], link.passages[:-1]
        shared = self._sets[last] & self._weights.keys()
        for earlier in before:
            shared -= self._sets[earlier]
        scores: Counter[int] = Counter()
        for word in sorted(shared):
            for number in self._where[word]:
                if self._apart(number, link.passages):
                    scores[number] += self._weights[word]  # type: ignore[assignment]
        if not scores:
            return None
        best = min(scores, key=lambda number: (-scores[number], number))
        word = max(sorted(shared & self._sets[best]), key=self._weights.__getitem__)
        return Link((*link.passages, best), (*link.words, word))

    def _apart(self, number: int, passages: Sequence[int]) -> bool:
        for other in passages:
            near = abs(number - other) <= 1 and self.sources[number] == self.sources[other]
            both = len(self._sets[number] & self._sets[other])
            alike = both > ALIKE * (len(self._sets[number]) + len(self._sets[other]) - both)
            if near or alike:
                return False
        return True


def in_splits(links: Iterator[Link]) -> Iterator[Link]:
    """The links with their splits, a tenth for validation and a tenth for the test; no passage is linked in two of them.

    A link whose passages are in several splits is left out.
    """
    of: dict[int, Split] = {}
    fresh = 0
    for link in links:
        known = {of[passage] for passage in link.passages if passage in of}
        if len(known) > 1:
            continue
        if known:
            split = known.pop()
        else:
            split, fresh = PLACES.get(fresh % 10, "train"), fresh + 1
        of |= dict.fromkeys(link.passages, split)
        yield replace(link, split=split)
