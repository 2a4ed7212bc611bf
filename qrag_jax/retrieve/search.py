"""Multi-step search: questions over their documents in lockstep, greedy or by beam ("Plan Q-RAG")."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from qrag_jax.retrieve.scan import Look

EncodeStates = Callable[[Sequence[tuple[int, tuple[int, ...]]]], Float[np.ndarray, "P D"]]
"""(question number, picks) of each path -> state embeddings."""


@runtime_checkable
class Scorer(Protocol):
    """One document, ready to be scored."""

    def __call__(self, states: Float[np.ndarray, "B D"], picked: Sequence[Sequence[int]], top: int, bins: int = 0) -> list[Look]: ...


@dataclass(frozen=True)
class Path:
    """Picks in the order they were made, their Q when picked, and what was seen at each step."""

    picked: tuple[int, ...] = ()
    q: tuple[float, ...] = ()
    looks: tuple[Look, ...] = ()

    def extended(self, chunk: int, q: float, seen: Look) -> Path:
        return Path((*self.picked, chunk), (*self.q, q), (*self.looks, seen))


def search(
    encode: EncodeStates, scorers: Sequence[Scorer], budget: int, *, beam: int = 1, runners_up: int = 0, bins: int = 0
) -> Iterator[list[list[Path]]]:
    """Yields, after each of ``budget`` steps, the ``beam`` best paths of every question, best first.

    ``scorers``: the document of each question; questions with the same scorer share its passes. Greedy is a beam of 1. Paths with the
    same picks are the same state, whatever their order: the better one is kept.
    """
    paths = [[Path()] for _ in scorers]
    for _ in range(budget):
        flat = [(question, path) for question, found in enumerate(paths) for path in found]
        states = encode([(question, path.picked) for question, path in flat])
        places: dict[int, list[int]] = defaultdict(list)
        for place, (question, _path) in enumerate(flat):
            places[id(scorers[question])].append(place)
        candidates: list[list[Path]] = [[] for _ in scorers]
        for group in places.values():
            scorer = scorers[flat[group[0]][0]]
            seen = scorer(states[group], [flat[place][1].picked for place in group], beam + runners_up, bins)
            for place, found in zip(group, seen, strict=True):
                question, path = flat[place]
                best = zip(found.chunks[:beam], found.q[:beam], strict=True)
                candidates[question] += [path.extended(chunk, q, found) for chunk, q in best]
        paths = [_best(found, beam) for found in candidates]
        yield paths


def _best(candidates: list[Path], beam: int) -> list[Path]:
    kept: dict[frozenset[int], Path] = {}
    for path in sorted(candidates, key=plan_score, reverse=True):
        kept.setdefault(frozenset(path.picked), path)
    return list(kept.values())[:beam]


def plan_score(path: Path) -> float:
    return sum(path.q)
