"""Multi-step search of many questions in lockstep, each over its document, greedy or with a beam ("Plan Q-RAG")."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from qrag_jax.retrieve.types import Look

EncodeStates = Callable[[Sequence[tuple[int, tuple[int, ...]]]], Float[np.ndarray, "P D"]]
"""(question number, picks) of each path -> state embeddings."""
GIVEN_AWAY = 2.0  # weight of the value that picks gave away, chosen on validation questions of qa2 and qa3


@runtime_checkable
class Scorer(Protocol):
    """One document, ready to be scored."""

    def __call__(self, states: Float[np.ndarray, "B D"], picked: Sequence[Sequence[int]], top: int, bins: int = 0) -> list[Look]: ...


@dataclass(frozen=True)
class SearchPath:
    """Picks in the order of picking, the Q of each when it was picked, and the look at each step, before its pick."""

    picked: tuple[int, ...] = ()
    q: tuple[float, ...] = ()
    looks: tuple[Look, ...] = ()


def search(
    encode: EncodeStates, scorers: Sequence[Scorer], budget: int, *, beam: int = 1, runners_up: int = 0, bins: int = 0
) -> Iterator[list[list[SearchPath]]]:
    """Yields the ``beam`` best paths of every question, best first, after each of ``budget`` steps.

    ``scorers``: the document of each question; questions with the same scorer share each pass over it. A beam of 1 is greedy. Paths with
    the same picks in another order are the same state; only the better path is kept. A beam ranks its paths after the next look, since the
    value of a pick shows in the state after it; so the paths after k steps are those of a search with budget k. Once all chunks of a
    document are picked, its paths stay as they are. Raises ValueError when a Q is NaN or infinite.
    """
    paths = [[SearchPath()] for _ in scorers]
    for step in range(budget + (beam > 1)):
        looks = _look(encode, scorers, paths, beam + runners_up if step < budget else 1, bins if step < budget else 0)
        both = [list(zip(*found, strict=True)) for found in zip(paths, looks, strict=True)]
        if beam > 1 and step > 0:
            yield [_best([replace(path, looks=(*path.looks, seen)) for path, seen in found], beam) for found in both]
        if step < budget:
            longer = [[extended(path, seen, i) for path, seen in found for i in range(min(beam, len(seen.chunks)))] for found in both]
            paths = [_best(found, beam) or old for found, old in zip(longer, paths, strict=True)]
            if beam == 1:
                yield paths


def _look(encode: EncodeStates, scorers: Sequence[Scorer], paths: Sequence[Sequence[SearchPath]], top: int, bins: int) -> list[list[Look]]:
    """The look of every path, question by question."""
    flat = [(question, path.picked) for question, found in enumerate(paths) for path in found]
    looks = iter(look(encode(flat), [scorers[question] for question, _ in flat], [picked for _, picked in flat], top, bins))
    return [[next(looks) for _ in found] for found in paths]


def look(states: Float[np.ndarray, "P D"], scorers: Sequence[Scorer], picked: Sequence[Sequence[int]], top: int, bins: int) -> list[Look]:
    """The look of each state with the scorer beside it; states with the same scorer share a pass. Raises ValueError when a Q is NaN or
    infinite."""
    places: dict[int, list[int]] = defaultdict(list)
    for place, scorer in enumerate(scorers):
        places[id(scorer)].append(place)
    seen: list[Look] = [Look((), ())] * len(scorers)
    for group in places.values():
        scorer = scorers[group[0]]
        for place, found in zip(group, scorer(states[group], [picked[place] for place in group], top, bins), strict=True):
            if not all(map(math.isfinite, found.q)):
                raise ValueError("Q is not finite: the model gives NaN or infinity on this question or document; its weights are unusable")
            seen[place] = found
    return seen


def extended(path: SearchPath, seen: Look, i: int) -> SearchPath:
    """The path with chunk ``i`` of its look as the next pick."""
    return SearchPath((*path.picked, seen.chunks[i]), (*path.q, seen.q[i]), (*path.looks, seen))


def _best(candidates: list[SearchPath], beam: int) -> list[SearchPath]:
    kept: dict[frozenset[int], SearchPath] = {}
    for path in sorted(candidates, key=plan_score, reverse=True):
        kept.setdefault(frozenset(path.picked), path)
    return list(kept.values())[:beam]


def plan_score(path: SearchPath) -> float:
    """The score by which a beam ranks its paths: the reward that they seem to have earned, minus the value that their picks gave away.

    By the Bellman equation, Q(s, a) - max Q(s', .) is the reward of picking a: about 1 when the last supporting chunk is found, about 0
    otherwise. A path has earned its largest such reward. The last pick counts with its Q until the next state has been seen. Each pick
    gives away max Q(s, .) - Q(s, a). A ranking by Q itself would prefer paths that never finish, and chunks whose Q is overestimated.
    """
    values = [seen.q[0] if seen.q else 0.0 for seen in path.looks]
    earned = [q - after for q, after in zip(path.q, [*values[1:], 0.0], strict=False)]
    given_away = sum(best - q for best, q in zip(values, path.q, strict=False))
    return max(earned) - GIVEN_AWAY * given_away


def stopped(picked: Sequence[int], q: Sequence[float], threshold: float) -> list[int]:
    """The picks before the first one whose Q is below ``threshold``; the first pick is always kept."""
    for t in range(1, len(picked)):
        if q[t] < threshold:
            return list(picked[:t])
    return list(picked)


def check_budget(budget: int) -> None:
    """Raises ValueError unless at least one chunk is to be picked. A document with fewer chunks gives all that it has."""
    if budget < 1:
        raise ValueError(f"budget = {budget}: must be >= 1, the number of chunks to pick")
