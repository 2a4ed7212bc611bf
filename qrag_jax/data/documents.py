"""Documents of exactly the requested number of chunks: those of a question, in a fixed order, at random places among noise.

Example i depends only on (seed, split, i) and the sources, so any worker can build any example, in any order.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import cycle, islice
from typing import ClassVar, NamedTuple, Protocol, SupportsIndex, runtime_checkable

import numpy as np

from qrag_jax.data.splits import SPLITS, Split, check_split
from qrag_jax.types import QAExample

ENDLESS = 2**31 - 1
"""Length of generated splits."""
_SPARE = 8
"""Extra pieces of noise to draw, since pieces with the same name as one of the document's own are left out."""


@dataclass(frozen=True)
class SharedNoise:
    """For training: ``group`` consecutive examples draw their noise from the same ``sentences`` pieces of the haystack, so that these
    are embedded only once. A document that needs more pieces repeats them evenly."""

    group: int
    sentences: int

    def __post_init__(self) -> None:
        if self.group < 1:
            raise ValueError(f"group = {self.group}: must be >= 1; it is the number of examples that share their noise")

    def group_of(self, i: int) -> int:
        return i // self.group


@dataclass(frozen=True)
class ContiguousNoise:
    """For evaluation: examples are assigned in turn to ``haystacks`` stretches of running text. A document takes its noise from the
    beginning of its stretch, in order. The stretches start at even distances, from a random place, and continue at the haystack's
    beginning when they reach its end."""

    haystacks: int

    def __post_init__(self) -> None:
        if self.haystacks < 1:
            raise ValueError(f"haystacks = {self.haystacks}: must be >= 1; it is the number of stretches of noise")

    def group_of(self, i: int) -> int:
        return i % self.haystacks


Noise = SharedNoise | ContiguousNoise


def choose_noise(group: int | None, haystacks: int | None, sentences: int) -> Noise:
    """:class:`SharedNoise` if ``group`` is given, :class:`ContiguousNoise` if ``haystacks`` is. Raises ValueError unless exactly one is."""
    if group is not None and haystacks is None:
        return SharedNoise(group, sentences)
    if haystacks is not None and group is None:
        return ContiguousNoise(haystacks)
    raise ValueError(f"group = {group}, haystacks = {haystacks}: give group to train, or haystacks to evaluate, not both")


class Piece(NamedTuple):
    """A chunk and its name, which occurs at most once in a document's noise: a needle's key, else the text itself."""

    name: str
    text: str


@dataclass(frozen=True)
class Item:
    """A question and the chunks that its document must hold, in document order. ``support``: indices into ``pieces``."""

    question: str
    answer: str
    pieces: tuple[Piece, ...]
    support: tuple[int, ...]


@runtime_checkable
class Questions(Protocol):
    """A source of questions. ``item(i)`` is defined for all i >= 0 and has at most ``most_pieces`` pieces; from i = ``len`` on, questions
    are repeated."""

    most_pieces: int

    def __len__(self) -> int: ...

    def item(self, i: int) -> Item: ...


@runtime_checkable
class NoiseSource(Protocol):
    def sample(self, count: int, key: tuple[int, ...], group: int) -> list[Piece]:
        """``count`` random pieces for a group, or all pieces if there are fewer; ``key`` and the group seed the randomness."""
        ...

    def stretch(self, count: int, key: tuple[int, ...], group: int, groups: int) -> list[Piece]:
        """``count`` pieces in order, for one of ``groups`` haystacks; ``key`` seeds the randomness that the haystacks share."""
        ...


class TextHaystack:
    """Noise from ``texts`` in order; after the last text comes the first again."""

    def __init__(self, texts: Sequence[str]) -> None:
        self.pieces = [Piece(text, text) for text in texts]

    def sample(self, count: int, key: tuple[int, ...], group: int) -> list[Piece]:
        picked = np.random.default_rng((*key, group)).choice(len(self.pieces), size=min(count, len(self.pieces)), replace=False)
        return [self.pieces[k] for k in picked]

    def stretch(self, count: int, key: tuple[int, ...], group: int, groups: int) -> list[Piece]:
        size = len(self.pieces)
        start = int(np.random.default_rng(key).integers(size)) + group * size // groups
        return [self.pieces[k % size] for k in range(start, start + count)]


class Documents(Sequence[QAExample]):
    """Documents of exactly ``chunks`` chunks. No piece of noise has the name (a needle's key, a text) of a chunk of the question.
    Chunks are the strings of the sources themselves, not copies.

    ``self[i]`` exists for every i >= 0: from ``len(self)`` on, questions are repeated with new noise and places. Iteration ends at ``len``.
    A benchmark is a subclass that names itself and the first words of the keys of its two random streams.
    """

    BENCHMARK: ClassVar[str]
    NOISE: ClassVar[int]
    EXAMPLE: ClassVar[int]

    def __init__(
        self, questions: Questions, haystack: NoiseSource, noise: Noise, *, task: str, split: Split, seed: int, chunks: int
    ) -> None:
        check_split(split)
        if chunks < questions.most_pieces:
            raise ValueError(
                f"chunks = {chunks}: must be >= {questions.most_pieces}, the most chunks of a question of task {task}; raise data.chunks"
            )
        self.questions, self.haystack, self.noise = questions, haystack, noise
        self.task, self.split, self.seed, self.chunks = task, split, seed, chunks
        self._pool = lru_cache(maxsize=8)(self._draw_pool)

    def __len__(self) -> int:
        return len(self.questions)

    def __iter__(self) -> Iterator[QAExample]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, i: SupportsIndex) -> QAExample:  # type: ignore[override]  # slices of an endless sequence are not offered
        i = operator.index(i)
        if i < 0:
            raise IndexError(f"example {i}: must be >= 0, since the sequence has no end")
        item = self.questions.item(i)
        draw = np.random.default_rng((self.seed, self.EXAMPLE, SPLITS.index(self.split), i))
        places = np.sort(draw.choice(self.chunks, size=len(item.pieces), replace=False)).tolist()
        noise = self._noise(item, i, draw)
        chunks: list[str] = []
        taken = 0
        for number, (place, piece) in enumerate(zip(places, item.pieces, strict=True)):
            chunks.extend(noise[taken : place - number])
            chunks.append(piece.text)
            taken = place - number
        chunks.extend(noise[taken:])
        return QAExample(
            id=f"{self.BENCHMARK}/{self.task}/{self.split}/{self.chunks}/{i}",
            question=item.question,
            chunks=tuple(chunks),
            answer=item.answer,
            support=tuple(places[k] for k in item.support),
        )

    def _draw_pool(self, group: int) -> list[Piece]:
        """The noise of a group."""
        key = (self.seed, self.NOISE, SPLITS.index(self.split))
        if isinstance(self.noise, SharedNoise):
            return self.haystack.sample(self.noise.sentences, key, group)
        return self.haystack.stretch(self.chunks + _SPARE, key, group, self.noise.haystacks)

    def _noise(self, item: Item, i: int, draw: np.random.Generator) -> list[str]:
        count = self.chunks - len(item.pieces)
        own = {piece.name for piece in item.pieces}
        pool = [text for name, text in self._pool(self.noise.group_of(i)) if name not in own]
        if count and not pool:
            raise ValueError(f"task {self.task}: all noise belongs to the question; raise data.shared_noise")
        if isinstance(self.noise, SharedNoise):
            order = draw.permutation(np.resize(draw.permutation(len(pool)), count))
            return [pool[k] for k in order]
        return list(islice(cycle(pool), count))
