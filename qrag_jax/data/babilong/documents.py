"""BabiLong (Kuratov et al. 2024, arXiv 2406.10149): bAbI facts, in order, at random places among sentences of long books.

Example i is a function of the configuration and (seed, split, i) alone: any worker can build any example, in any order.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import SupportsIndex

import numpy as np

from qrag_jax.config import DataConfig, lengths
from qrag_jax.data.babilong.simulator import FEWEST_FACTS, QUESTIONS, simulate_story
from qrag_jax.data.babilong.stories import BabiQuestion, Story, check_task, load_stories
from qrag_jax.data.splits import SPLITS, Split, check_split
from qrag_jax.data.text.haystack import Haystack, load_haystack
from qrag_jax.types import QAExample

HAYSTACK_SENTENCES = 100_000
""":func:`load` reads at least this many sentences if there are as many: about 30 books, in three seconds from text files."""
ENDLESS = 2**31 - 1
"""Length of generated splits."""
_GIVE_UP = 10_000
"""Number of generated stories to try for one example before giving up on its limit of facts."""
_ORDER, _NOISE, _EXAMPLE = 101, 102, 103  # first words of the keys of independent random streams


@dataclass(frozen=True)
class SharedNoise:
    """For training: ``group`` consecutive examples draw their noise from the same ``sentences`` sentences of the haystack, so that these
    are embedded only once. A document that needs more sentences repeats them evenly."""

    group: int
    sentences: int

    def group_of(self, i: int) -> int:
        return i // self.group


@dataclass(frozen=True)
class ContiguousNoise:
    """For evaluation: examples are assigned in turn to ``haystacks`` stretches of running text. A document takes its noise from the
    beginning of its stretch, in order. The stretches start at even distances, from a random place, and continue at the haystack's
    beginning when they reach its end."""

    haystacks: int

    def group_of(self, i: int) -> int:
        return i % self.haystacks


Noise = SharedNoise | ContiguousNoise


class GeneratedQuestions:
    """Generated questions. Each belongs to its own story and has at most ``max_facts`` facts before it."""

    def __init__(self, task: str, split: Split, *, seed: int, max_facts: int) -> None:
        check_task(task)
        if max_facts < FEWEST_FACTS[task]:
            raise _no_question(task, max_facts, FEWEST_FACTS[task])
        self.task, self.split, self.seed, self.max_facts = task, split, seed, max_facts

    def __len__(self) -> int:
        return ENDLESS

    def question(self, i: int) -> tuple[Story, BabiQuestion]:
        for attempt in range(_GIVE_UP):
            pick = int(np.random.default_rng((self.seed, _ORDER, SPLITS.index(self.split), i, attempt)).integers(QUESTIONS[self.task]))
            story = simulate_story(self.task, self.split, self.seed, i + attempt * (ENDLESS + 1), pick + 1)
            if story.questions[pick].facts <= self.max_facts:
                return story, story.questions[pick]
        raise _no_question(self.task, self.max_facts, FEWEST_FACTS[self.task])


class OfficialQuestions:
    """All questions of the given stories with at most ``max_facts`` facts before them, in an order that depends on the seed.
    From i = len on, the questions are repeated in another order."""

    def __init__(self, task: str, split: Split, stories: Sequence[Story], *, seed: int, max_facts: int) -> None:
        check_task(task)
        self.questions = [(story, question) for story in stories for question in story.questions if question.facts <= max_facts]
        if not stories:
            raise ValueError(f"task {task}: no story is left for {split}; stories that are also in the test file are left out")
        if not self.questions:
            raise _no_question(task, max_facts, min(question.facts for story in stories for question in story.questions))
        self._order = lru_cache(maxsize=4)(
            lambda epoch: np.random.default_rng((seed, _ORDER, SPLITS.index(split), epoch)).permutation(len(self.questions))
        )

    def __len__(self) -> int:
        return len(self.questions)

    def question(self, i: int) -> tuple[Story, BabiQuestion]:
        epoch, place = divmod(i, len(self.questions))
        return self.questions[self._order(epoch)[place]]


QuestionSource = GeneratedQuestions | OfficialQuestions
"""A source of questions: ``question(i)`` is defined for all i >= 0; ``len`` is the number of different questions."""


def _no_question(task: str, max_facts: int, shortest: int) -> ValueError:
    return ValueError(
        f"task {task}: no question with at most {max_facts} facts before it; the shortest has {shortest}. "
        "Raise data.chunks (by default at most 80 % of a document's chunks are facts) or max_facts"
    )


class BabiLong(Sequence[QAExample]):
    """Documents of exactly ``chunks`` chunks: the facts before a question, and noise. Chunks are the strings of the haystack and the
    story themselves, not copies.

    ``self[i]`` exists for every i >= 0: from ``len(self)`` on, questions are repeated with new noise and places. Iteration ends at ``len``.
    ``max_facts`` defaults to 80 % of ``chunks``; questions with more facts before them are left out.
    ``haystack_repeats`` is a document's length divided by the haystack's: above 1, a document holds some sentences more than once.
    """

    def __init__(
        self, questions: QuestionSource, haystack: Haystack, noise: Noise, *, task: str, split: Split, seed: int, chunks: int
    ) -> None:
        check_split(split)
        if isinstance(noise, SharedNoise):
            if not 1 <= noise.sentences <= len(haystack.sentences):
                raise ValueError(
                    f"shared_noise = {noise.sentences}: must be in 1..{len(haystack.sentences)}, the number of sentences in the haystack "
                    f"{haystack.source!r} ({split})"
                )
            if noise.group < 1:
                raise ValueError(f"group = {noise.group}: must be >= 1; it is the number of examples that share their noise")
        elif noise.haystacks < 1:
            raise ValueError(f"haystacks = {noise.haystacks}: must be >= 1")
        self.questions, self.haystack, self.noise = questions, haystack, noise
        self.task, self.split, self.seed, self.chunks = task, split, seed, chunks
        self.haystack_repeats = chunks / len(haystack.sentences)
        self._pool = lru_cache(maxsize=8)(self._draw_pool)

    def __len__(self) -> int:
        return len(self.questions)

    def __iter__(self) -> Iterator[QAExample]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, i: SupportsIndex) -> QAExample:  # type: ignore[override]  # slices of an endless sequence are not offered
        i = operator.index(i)
        if i < 0:
            raise IndexError(f"example {i}: must be >= 0, since the sequence has no end")
        story, question = self.questions.question(i)
        draw = np.random.default_rng((self.seed, _EXAMPLE, SPLITS.index(self.split), i))
        places = np.sort(draw.choice(self.chunks, size=question.facts, replace=False)).tolist()
        noise = self._noise(self._pool(self.noise.group_of(i)), self.chunks - question.facts, draw)
        chunks: list[str] = []
        taken = 0
        for number, place in enumerate(places):
            chunks.extend(noise[taken : place - number])
            chunks.append(story.facts[number])
            taken = place - number
        chunks.extend(noise[taken:])
        return QAExample(
            id=f"babilong/{self.task}/{self.split}/{self.chunks}/{i}",
            question=question.question,
            chunks=tuple(chunks),
            answer=question.answer,
            support=tuple(places[fact] for fact in question.support),
        )

    def _draw_pool(self, group: int) -> list[str]:
        """The noise sentences of a group."""
        sentences = self.haystack.sentences
        if isinstance(self.noise, SharedNoise):
            draw = np.random.default_rng((self.seed, _NOISE, SPLITS.index(self.split), group))
            return [sentences[k] for k in draw.choice(len(sentences), size=self.noise.sentences, replace=False)]
        draw = np.random.default_rng((self.seed, _NOISE, SPLITS.index(self.split)))
        start = int(draw.integers(len(sentences))) + group * len(sentences) // self.noise.haystacks
        return [sentences[k % len(sentences)] for k in range(start, start + self.chunks)]

    def _noise(self, pool: list[str], count: int, draw: np.random.Generator) -> list[str]:
        if isinstance(self.noise, ContiguousNoise):
            return pool[:count]
        order = draw.permutation(np.resize(draw.permutation(len(pool)), count))
        return [pool[k] for k in order]


def context_chunks(task: str, tokens: int) -> int:
    """Number of chunks that fill a context of ``tokens`` tokens, for every task."""
    return lengths.context_chunks(tokens)


def load(
    config: DataConfig,
    split: Split,
    *,
    seed: int,
    chunks: int | None = None,
    group: int | None = None,
    haystacks: int | None = None,
    max_facts: int | None = None,
    haystack_sentences: int = HAYSTACK_SENTENCES,
) -> BabiLong:
    """The BabiLong examples of a split. A document has ``chunks`` chunks; None: ``config.chunks``.

    Give exactly one of ``group`` (training: the number of consecutive examples that share ``config.shared_noise`` noise sentences) and
    ``haystacks`` (evaluation: the number of stretches of running text, to which examples are assigned in turn). With ``config.data_dir``,
    questions and noise come from its official files and books; otherwise stories are generated and the noise is Python's documentation,
    whose text depends on the version of Python. Raises ValueError on missing or broken files and on documents too short for any question.
    """
    check_split(split)
    if (group is None) == (haystacks is None):
        raise ValueError(f"group = {group}, haystacks = {haystacks}: give group to train, or haystacks to evaluate, not both")
    chunks = config.chunks if chunks is None else chunks
    if max_facts is None:
        max_facts = chunks - math.ceil(chunks / 5)
    elif not 1 <= max_facts <= chunks:
        raise ValueError(f"max_facts = {max_facts}: must be in 1..{chunks}, the number of chunks of a document")
    noise = SharedNoise(group, config.shared_noise) if group is not None else ContiguousNoise(haystacks or 0)
    questions: QuestionSource
    if config.data_dir is None:
        questions = GeneratedQuestions(config.task, split, seed=seed, max_facts=max_facts)
    else:
        stories = load_stories(config.data_dir, config.task, split)
        questions = OfficialQuestions(config.task, split, stories, seed=seed, max_facts=max_facts)
    haystack = load_haystack(config.data_dir, split, max(haystack_sentences, chunks * (haystacks or 0)))
    return BabiLong(questions, haystack, noise, task=config.task, split=split, seed=seed, chunks=chunks)
