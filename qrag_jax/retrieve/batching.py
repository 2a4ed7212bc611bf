"""Searches of one index that share its passes: each begins when it comes, has a budget of its own, and ends when it is done."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from typing import Literal

import jax
import numpy as np
from jaxtyping import Bool, Float

from qrag_jax.config.parse import require
from qrag_jax.retrieve.clock import SearchClock
from qrag_jax.retrieve.embed import FEW, States, embed_state_texts
from qrag_jax.retrieve.filters import Condition, Filter, chunks_that_match, conditions
from qrag_jax.retrieve.index import Index
from qrag_jax.retrieve.picks import as_step
from qrag_jax.retrieve.questions import check_questions, cut_states
from qrag_jax.retrieve.ranking import FUSED, Mode, as_path, check_options, look_once
from qrag_jax.retrieve.retriever import Retriever
from qrag_jax.retrieve.search import Scorer, SearchPath, check_budget, extended, look
from qrag_jax.retrieve.types import Look, Step
from qrag_jax.rl.env import StateLayout

TOGETHER = FEW
"""Questions that share a pass: so many states are embedded in few shapes, whatever their lengths."""
SIZES = (1, 2, 4, TOGETHER)  # states embedded at once
FILTERS = 64  # whose chunks are kept


@dataclass
class Asked:
    """A question in search. ``path``: its picks so far; ``notes``: what the one who asked should know; ``done``: nothing more to pick."""

    question: str
    budget: int
    mode: Mode
    stop: bool
    filter: tuple[Condition, ...]
    path: SearchPath = field(default_factory=SearchPath)
    notes: list[str] = field(default_factory=list)
    done: bool = False


@dataclass(frozen=True)
class Part:
    """A part of a pass, and when it began and ended: in nanoseconds since 1970."""

    name: Literal["embed", "scan"]
    start: int
    end: int


class Batcher:
    """Searches ``index`` with ``retriever`` for up to :data:`TOGETHER` questions at a time. Use it in one thread.

    What :meth:`step` finds for a question is what ``retriever.stream`` finds for it alone, up to rounding. ``budget``: the most picks of a
    question; None: 8, or as many as the retriever reads. ``modes``: how questions may be searched, the usual one first; empty: those that
    need nothing more than what the retriever has. ``parts``: those of the latest step. Raises ValueError when the retriever cannot read so
    many picks or has not such a mode.
    """

    def __init__(self, retriever: Retriever, index: Index, budget: int | None = None, modes: Sequence[Mode] = ()) -> None:
        self.retriever, self.index = retriever, index
        self.modes = tuple(dict.fromkeys(modes)) or _usual_modes(retriever)
        for mode in self.modes:
            check_options(mode, 1, False, retriever.encoder, retriever.threshold)
        self.budget = checked_budget(retriever, budget, self.modes)
        self._rooms = _rooms(self.budget if "multi" in self.modes else 1)
        self._allowed = lru_cache(maxsize=FILTERS)(self._find_allowed)
        self._scorer = lru_cache(maxsize=2 * FILTERS)(self._make_scorer)
        self.parts: list[Part] = []

    def prepare(self) -> None:
        """Compiles what a search runs, and reads what it needs: words, and rows on an accelerator."""
        if {"bm25", "hybrid"} & set(self.modes):
            self.index.words()
        text = self.index.chunk(0).text
        for room in self._rooms:
            for size in SIZES:
                self._embed(["a"] * size, [[text] * (room - 1)] * size, room)
        if jax.default_backend() != "cpu":  # where the scan is compiled, too
            for mode in self.modes:
                for size in SIZES:
                    asked = [self.begin("a", self.budget, mode=mode) for _ in range(size)]
                    while asked := [one for one in asked if not one.done]:
                        self.step(asked)

    def begin(self, question: str, budget: int = 4, *, mode: Mode | None = None, stop: bool = False, filter: Filter | None = None) -> Asked:
        """A question that can take part in a step. Raises ValueError as ``retriever.search`` does, and on a larger budget and another mode
        than are served."""
        mode = mode or self.modes[0]
        check_budget(budget)
        require(budget <= self.budget, "budget", budget, f"at most {self.budget}, the most picks of a question here")
        check_options(mode, 1, stop, self.retriever.encoder, self.retriever.threshold)
        require(mode in self.modes, "mode", mode, f"one that is served: {', '.join(self.modes)}")
        cut = check_questions([question], self.retriever.tokenizer, self.retriever.config.data.question_tokens)
        wanted = tuple(conditions(filter)) if filter else ()
        if wanted:
            self._allowed(wanted)
        return Asked(question, budget, mode, stop, wanted, notes=[cut] if cut else [])

    def step(self, asked: Sequence[Asked]) -> list[list[Step]]:
        """The next pick of each question, or all of them in a mode of one look, from one pass that they share.

        Nothing has changed if it raises: ValueError when a Q is not finite, or what the index raises when it is damaged.
        """
        several = [one for one in asked if one.mode == "multi"]
        once = [one for one in asked if one.mode != "multi"]
        self.parts = []
        with SearchClock() as clock:
            paths = self._next_picks(several) if several else {}
            for mode in dict.fromkeys(one.mode for one in once):
                paths |= self._one_look([one for one in once if one.mode == mode], mode)
        found = [self._steps(one, paths[id(one)], clock.searching) for one in asked]
        for one, steps in zip(asked, found, strict=True):
            self._advance(one, paths[id(one)], steps)
        return found

    def _next_picks(self, asked: Sequence[Asked]) -> dict[int, SearchPath]:
        """One more step of each path: states are embedded together, and each filter's scorer reads the index once."""
        order = sorted if self.retriever.config.data.state_order == "document" else list
        texts = [[self.index.chunk(i).text for i in order(one.path.picked)] for one in asked]
        with self._part("embed"):
            states = self._embed([one.question for one in asked], texts, self._room(max(map(len, texts)) + 1))
        for one, length in zip(asked, states.lengths, strict=True):
            if (cut := cut_states(length[None], states.tokens)) and not any(note.startswith("a state ") for note in one.notes):
                one.notes.append(cut)
        scorers = [self._scorer("multi", one.filter) for one in asked]
        with self._part("scan"):
            looks = look(states.vectors, scorers, [one.path.picked for one in asked], 1, 0)
        return {id(one): extended(one.path, seen, 0) if seen.chunks else one.path for one, seen in zip(asked, looks, strict=True)}

    def _one_look(self, asked: Sequence[Asked], mode: Mode) -> dict[int, SearchPath]:
        near: list[Scorer | None] = [None] * len(asked)
        vectors: Float[np.ndarray, "P D"] | None = None
        if mode != "bm25":
            with self._part("embed"):
                vectors = self._embed([one.question for one in asked], [[]] * len(asked), 1).vectors
        paths = {}
        with self._part("scan"):
            if vectors is not None:
                scorers = [self._scorer(mode, one.filter) for one in asked]
                top = max(FUSED if mode == "hybrid" else 1, *(one.budget for one in asked))
                looks = look(vectors, scorers, [()] * len(asked), top, 0)
                near = [_Seen(seen, top, scorer) for seen, scorer in zip(looks, scorers, strict=True)]
            for i, one in enumerate(asked):
                scorer, state = near[i], None if vectors is None else vectors[i : i + 1]
                known = {} if scorer is None else {id(self.index): scorer}
                (seen,) = look_once([one.question], [self.index], known, state, self._mask(one.filter), mode, one.budget, 0)
                paths[id(one)] = as_path(seen, one.budget)
        return paths

    @contextmanager
    def _part(self, name: Literal["embed", "scan"]) -> Iterator[None]:
        start = time.time_ns()
        yield
        self.parts.append(Part(name, start, time.time_ns()))

    def _steps(self, one: Asked, path: SearchPath, seconds: float) -> list[Step]:
        threshold = self.retriever.threshold if one.mode == "multi" else None
        make = partial(as_step, self.index, path, qhead=self.retriever.qhead(one.mode), runners_up=0, threshold=threshold)
        new = range(len(one.path.picked), len(path.picked))
        return [make(t, seconds=seconds / len(new)) for t in new]

    def _advance(self, one: Asked, path: SearchPath, steps: Sequence[Step]) -> None:
        one.path = path
        ended = any(one.stop and step.stop for step in steps)
        one.done = ended or not steps or one.mode != "multi" or len(path.picked) == one.budget
        if one.done and not ended and len(path.picked) < one.budget:
            which = "chunks that match the filter" if one.filter else "chunks"
            which += " that share a word with the question" if one.mode == "bm25" else ""
            one.notes.append(f"{len(path.picked)} picks, fewer than budget = {one.budget}: the index has no more {which}")

    def _embed(self, questions: Sequence[str], picked: Sequence[Sequence[str]], room: int) -> States:
        return embed_state_texts(self.retriever, questions, picked, room, sizes=SIZES)

    def _room(self, states: int) -> int:
        return next(room for room in self._rooms if room >= states)

    def _mask(self, wanted: tuple[Condition, ...]) -> Bool[np.ndarray, " N"] | None:
        return self._allowed(wanted) if wanted else None

    def _find_allowed(self, wanted: tuple[Condition, ...]) -> Bool[np.ndarray, " N"]:
        return chunks_that_match(wanted, self.index.sources)

    def _make_scorer(self, mode: Mode, wanted: tuple[Condition, ...]) -> Scorer:
        return self.retriever.scorer(self.index, self._mask(wanted), self.retriever.qhead(mode))


@dataclass(frozen=True)
class _Seen:
    """The scorer of a state whose ``top`` best chunks are known already."""

    seen: Look
    top: int
    scorer: Scorer

    def __call__(self, states: Float[np.ndarray, "B D"], picked: Sequence[Sequence[int]], top: int, bins: int = 0) -> list[Look]:
        if top > self.top:  # equal texts of several documents are picked once, so more chunks are needed
            return self.scorer(states, picked, top, bins)
        return [replace(self.seen, chunks=self.seen.chunks[:top], q=self.seen.q[:top])]


def checked_budget(retriever: Retriever, budget: int | None, modes: Sequence[Mode]) -> int:
    """The most picks of a question: ``budget``, or as many as the retriever reads, up to 8. Raises ValueError if it cannot read so many."""
    usual = 8
    if budget is not None:
        check_budget(budget)
    if "multi" not in modes:
        return usual if budget is None else budget
    reads = lambda picks: StateLayout.make(retriever.config.data, picks, retriever.tokenizer).tokens <= retriever.embedder.config.max_tokens
    if budget is None:
        return next(picks for picks in range(usual, 0, -1) if picks == 1 or reads(picks))
    most = next(picks for picks in range(budget, 0, -1) if picks == 1 or reads(picks))
    require(budget == most, "budget", budget, f"at most {most}: the retriever reads {retriever.embedder.config.max_tokens} tokens")
    return budget


def _usual_modes(retriever: Retriever) -> tuple[Mode, ...]:
    return ("multi", "single") if retriever.encoder is None else ("hybrid", "single", "bm25")


def _rooms(budget: int) -> tuple[int, ...]:
    """The numbers of texts (the question and its picks) for which states are laid out: 1, 2, 4 ... up to ``budget``."""
    return (*(2**i for i in range(budget.bit_length()) if 2**i < budget), budget)
