"""BabiLong (Kuratov et al. 2024, arXiv 2406.10149): bAbI facts, in order, at random places among sentences of long books.

Example i is a function of the configuration and (seed, split, i) alone: any worker can build any example, in any order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from qrag_jax.config import DataConfig, lengths
from qrag_jax.data.babilong.simulator import FEWEST_FACTS, QUESTIONS, simulate_story
from qrag_jax.data.babilong.stories import BabiQuestion, Story, check_task, load_stories
from qrag_jax.data.documents import ENDLESS, Documents, Item, Noise, Piece, SharedNoise, TextHaystack, choose_noise
from qrag_jax.data.splits import SPLITS, Split, check_split
from qrag_jax.data.text.haystack import HAYSTACK_SENTENCES, Haystack, load_haystack

_GIVE_UP = 10_000
"""Number of generated stories to try for one example before giving up on its limit of facts."""
_ORDER = 101  # first word of the keys of a random stream


class GeneratedQuestions:
    """Generated questions. Each belongs to its own story and has at most ``max_facts`` facts before it."""

    def __init__(self, task: str, split: Split, *, seed: int, max_facts: int) -> None:
        check_task(task)
        if max_facts < FEWEST_FACTS[task]:
            raise _no_question(task, max_facts, FEWEST_FACTS[task])
        self.task, self.split, self.seed, self.most_pieces = task, split, seed, max_facts

    def __len__(self) -> int:
        return ENDLESS

    def item(self, i: int) -> Item:
        return _item(*self.question(i))

    def question(self, i: int) -> tuple[Story, BabiQuestion]:
        for attempt in range(_GIVE_UP):
            pick = int(np.random.default_rng((self.seed, _ORDER, SPLITS.index(self.split), i, attempt)).integers(QUESTIONS[self.task]))
            story = simulate_story(self.task, self.split, self.seed, i + attempt * (ENDLESS + 1), pick + 1)
            if story.questions[pick].facts <= self.most_pieces:
                return story, story.questions[pick]
        raise _no_question(self.task, self.most_pieces, FEWEST_FACTS[self.task])


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
        self.most_pieces = max_facts
        self._order = lru_cache(maxsize=4)(
            lambda epoch: np.random.default_rng((seed, _ORDER, SPLITS.index(split), epoch)).permutation(len(self.questions))
        )

    def __len__(self) -> int:
        return len(self.questions)

    def item(self, i: int) -> Item:
        return _item(*self.question(i))

    def question(self, i: int) -> tuple[Story, BabiQuestion]:
        epoch, place = divmod(i, len(self.questions))
        return self.questions[self._order(epoch)[place]]


QuestionSource = GeneratedQuestions | OfficialQuestions


def _item(story: Story, question: BabiQuestion) -> Item:
    facts = tuple(Piece(fact, fact) for fact in story.facts[: question.facts])
    return Item(question.question, question.answer, facts, question.support)


def _no_question(task: str, max_facts: int, shortest: int) -> ValueError:
    return ValueError(
        f"task {task}: no question with at most {max_facts} facts before it; the shortest has {shortest}. "
        "Raise data.chunks (by default at most 80 % of a document's chunks are facts) or max_facts"
    )


class BabiLong(Documents):
    """The facts before a question, at random places among sentences of a haystack."""

    BENCHMARK, NOISE, EXAMPLE = "babilong", 102, 103

    def __init__(
        self, questions: QuestionSource, haystack: Haystack, noise: Noise, *, task: str, split: Split, seed: int, chunks: int
    ) -> None:
        if isinstance(noise, SharedNoise) and not 1 <= noise.sentences <= len(haystack.sentences):
            raise ValueError(
                f"shared_noise = {noise.sentences}: must be in 1..{len(haystack.sentences)}, the number of sentences in the haystack "
                f"{haystack.source!r} ({split})"
            )
        super().__init__(questions, TextHaystack(haystack.sentences), noise, task=task, split=split, seed=seed, chunks=chunks)


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
    """The BabiLong examples of a split. A document has ``chunks`` chunks; None: ``config.chunks``. Questions with more than ``max_facts``
    facts before them are left out; None: 80 % of the chunks.

    Give exactly one of ``group`` (training: the number of consecutive examples that share ``config.shared_noise`` noise sentences) and
    ``haystacks`` (evaluation: the number of stretches of running text, to which examples are assigned in turn). With ``config.data_dir``,
    questions and noise come from its official files and books; otherwise stories are generated and the noise is Python's documentation,
    whose text depends on the version of Python. Raises ValueError on missing or broken files and on documents too short for any question.
    """
    check_split(split)
    noise = choose_noise(group, haystacks, config.shared_noise)
    chunks = config.chunks if chunks is None else chunks
    if max_facts is None:
        max_facts = chunks - math.ceil(chunks / 5)
    elif not 1 <= max_facts <= chunks:
        raise ValueError(f"max_facts = {max_facts}: must be in 1..{chunks}, the number of chunks of a document")
    questions: QuestionSource
    if config.data_dir is None:
        questions = GeneratedQuestions(config.task, split, seed=seed, max_facts=max_facts)
    else:
        stories = load_stories(config.data_dir, config.task, split)
        questions = OfficialQuestions(config.task, split, stories, seed=seed, max_facts=max_facts)
    haystack = load_haystack(config.data_dir, split, max(haystack_sentences, chunks * (haystacks or 0)))
    return BabiLong(questions, haystack, noise, task=config.task, split=split, seed=seed, chunks=chunks)
