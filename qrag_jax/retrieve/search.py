"""Multi-step search: questions over their documents in lockstep, greedy or by beam ("Plan Q-RAG")."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from qrag_jax.retrieve.types import Look

EncodeStates = Callable[[Sequence[tuple[int, tuple[int, ...]]]], Float[np.ndarray, "P D"]]
"""(question number, picks) of each path -> state embeddings."""
GIVEN_AWAY = 2.0  # weight of what picks gave away, chosen on validation questions of qa2 and qa3


@runtime_checkable
class Scorer(Protocol):
    """One document, ready to be scored."""

    def __call__(self, states: Float[np.ndarray, "B D"], picked: Sequence[Sequence[int]], top: int, bins: int = 0) -> list[Look]: ...


@dataclass(frozen=True)
class SearchPath:
    """Picks in the order they were made, their Q when picked, and what was seen at each step, before picking."""

    picked: tuple[int, ...] = ()
    q: tuple[float, ...] = ()
    looks: tuple[Look, ...] = ()


def search(
    encode: EncodeStates, scorers: Sequence[Scorer], budget: int, *, beam: int = 1, runners_up: int = 0, bins: int = 0
) -> Iterator[list[list[SearchPath]]]:
    """Yields, after each of ``budget`` steps, the ``beam`` best paths of every question, best first.

    ``scorers``: the document of each question; questions with the same scorer share its passes. Greedy is a beam of 1. Paths with the
    same picks are the same state, whatever their order: the better one is kept. A beam looks once more after its last step, since what a
    pick was worth shows in the state it leads to.
    """
    paths = [[SearchPath()] for _ in scorers]
    for _ in range(budget):
        looks = _look(encode, scorers, paths, beam + runners_up, bins)
        paths = [
            _best([_extended(path, seen, i) for path, seen in zip(*both, strict=True) for i in range(min(beam, len(seen.chunks)))], beam)
            for both in zip(paths, looks, strict=True)
        ]
        if beam > 1 and len(paths[0][0].picked) == budget:
            looks = _look(encode, scorers, paths, 1, 0)
            paths = [
                _best([replace(path, looks=(*path.looks, seen)) for path, seen in zip(*both, strict=True)], beam)
                for both in zip(paths, looks, strict=True)
            ]
        yield paths


def _look(encode: EncodeStates, scorers: Sequence[Scorer], paths: Sequence[Sequence[SearchPath]], top: int, bins: int) -> list[list[Look]]:
    """What every path sees, question by question."""
    flat = [(question, path.picked) for question, found in enumerate(paths) for path in found]
    states = encode(flat)
    places: dict[int, list[int]] = defaultdict(list)
    for place, (question, _) in enumerate(flat):
        places[id(scorers[question])].append(place)
    seen: list[Look] = [Look((), ())] * len(flat)
    for group in places.values():
        scorer = scorers[flat[group[0]][0]]
        for place, found in zip(group, scorer(states[group], [flat[place][1] for place in group], top, bins), strict=True):
            seen[place] = found
    looks = iter(seen)
    return [[next(looks) for _ in found] for found in paths]


def _extended(path: SearchPath, seen: Look, i: int) -> SearchPath:
    return SearchPath((*path.picked, seen.chunks[i]), (*path.q, seen.q[i]), (*path.looks, seen))


def _best(candidates: list[SearchPath], beam: int) -> list[SearchPath]:
    kept: dict[frozenset[int], SearchPath] = {}
    for path in sorted(candidates, key=plan_score, reverse=True):
        kept.setdefault(frozenset(path.picked), path)
    return list(kept.values())[:beam]


def plan_score(path: SearchPath) -> float:
    """How a beam ranks its paths: by the reward they seem to have earned, less what their picks gave away.

    By the Bellman equation Q(s, a) - max Q(s', .) is the reward of picking a, about 1 where the last supporting chunk is found and about
    0 elsewhere; a path has earned its largest. The last pick counts with its Q until the next state has been seen. Each pick gives away
    max Q(s, .) - Q(s, a). Ranking by Q itself prefers paths that never finish, and chases the chunks whose Q is most overestimated.
    """
    values = [seen.q[0] if seen.q else 0.0 for seen in path.looks]
    earned = [q - after for q, after in zip(path.q, [*values[1:], 0.0], strict=False)]
    given_away = sum(best - q for best, q in zip(values, path.q, strict=False))
    return max(earned) - GIVEN_AWAY * given_away


def stopped(picked: Sequence[int], q: Sequence[float], threshold: float) -> list[int]:
    """The picks up to the first whose Q is below ``threshold`` (that one is not taken; the first pick always is)."""
    for t in range(1, len(picked)):
        if q[t] < threshold:
            return list(picked[:t])
    return list(picked)


def check_budget(budget: int, chunks: int, what: str) -> None:
    """Raises ValueError unless ``budget`` chunks can be picked from ``chunks``; ``what`` names those in the message."""
    if not 1 <= budget <= chunks:
        raise ValueError(f"budget = {budget}: must be in 1..{chunks}, {what}")
