"""Documents of RULER: the chunks of a question, in a fixed order, at random places among noise.

Example i depends only on (seed, split, i) and the sources, so any worker can build any example, in any order.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import cycle, islice
from typing import NamedTuple, Protocol, SupportsIndex, runtime_checkable

import numpy as np

from qrag_jax.data.babilong.documents import ENDLESS, Noise, SharedNoise
from qrag_jax.data.splits import SPLITS, Split
from qrag_jax.types import QAExample

_NOISE, _EXAMPLE = 112, 113  # first words of the keys of independent random streams
_SPARE = 8
"""Extra pieces of noise to draw, since pieces with the same name as one of the document's own are left out."""


class Piece(NamedTuple):
    """A chunk and its name, which occurs at most once in a document: a needle's key, else the text itself."""

    name: str
    text: str


@dataclass(frozen=True)
class Item:
    """A question and the chunks that its document must hold, in document order. ``support``: ascending indices into ``pieces``."""

    question: str
    answer: str
    pieces: tuple[Piece, ...]
    support: tuple[int, ...]


@runtime_checkable
class Questions(Protocol):
    """A source of questions. ``item(i)`` is defined for all i >= 0 and has at most ``most_pieces`` pieces."""

    most_pieces: int

    def item(self, i: int) -> Item: ...


@runtime_checkable
class NoiseSource(Protocol):
    def sample(self, count: int, draw: np.random.Generator) -> list[Piece]:
        """``count`` random pieces, or all pieces if there are fewer."""
        ...

    def stretch(self, count: int, key: tuple[int, ...], group: int, groups: int) -> list[Piece]:
        """``count`` pieces in order, for one of ``groups`` haystacks; ``key`` seeds the randomness that the haystacks share."""
        ...


class TextHaystack:
    """Noise from ``texts`` in order; after the last text comes the first again."""

    def __init__(self, texts: Sequence[str]) -> None:
        self.texts = texts

    def sample(self, count: int, draw: np.random.Generator) -> list[Piece]:
        picked = draw.choice(len(self.texts), size=min(count, len(self.texts)), replace=False)
        return [Piece(self.texts[k], self.texts[k]) for k in picked]

    def stretch(self, count: int, key: tuple[int, ...], group: int, groups: int) -> list[Piece]:
        size = len(self.texts)
        start = int(np.random.default_rng(key).integers(size)) + group * size // groups
        return [Piece(text, text) for text in (self.texts[k % size] for k in range(start, start + count))]


class Documents(Sequence[QAExample]):
    """Documents of exactly ``chunks`` chunks. No piece of noise has the name (a needle's key, a text) of a chunk of the question.

    ``self[i]`` exists for every i >= 0: from ``len(self)`` on, questions are repeated with new noise and places. Iteration ends at ``len``.
    """

    def __init__(
        self,
        questions: Questions,
        haystack: NoiseSource,
        noise: Noise,
        *,
        task: str,
        split: Split,
        seed: int,
        chunks: int,
        length: int = ENDLESS,
    ) -> None:
        shared = isinstance(noise, SharedNoise)
        field, number = ("group", noise.group) if isinstance(noise, SharedNoise) else ("haystacks", noise.haystacks)
        if number < 1:
            what = "examples that share their noise" if shared else "haystacks"
            raise ValueError(f"{field} = {number}: must be >= 1; it is the number of {what}")
        if chunks < questions.most_pieces:
            raise ValueError(
                f"chunks = {chunks}: must be >= {questions.most_pieces}, the most chunks of a question of task {task}; raise data.chunks"
            )
        self.questions, self.haystack, self.noise = questions, haystack, noise
        self.task, self.split, self.seed, self.chunks = task, split, seed, chunks
        self._length = length
        self._pool = lru_cache(maxsize=8)(self._draw_pool)

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[QAExample]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, i: SupportsIndex) -> QAExample:  # type: ignore[override]  # slices of an endless sequence are not offered
        i = operator.index(i)
        if i < 0:
            raise IndexError(f"example {i}: must be >= 0, since the sequence has no end")
        item = self.questions.item(i)
        draw = np.random.default_rng((self.seed, _EXAMPLE, SPLITS.index(self.split), i))
        places = np.sort(draw.choice(self.chunks, size=len(item.pieces), replace=False)).tolist()
        chunks = self._noise(item, i, draw)
        for place, piece in zip(places, item.pieces, strict=True):
            chunks.insert(place, piece.text)
        return QAExample(
            id=f"ruler/{self.task}/{self.split}/{self.chunks}/{i}",
            question=item.question,
            chunks=tuple(chunks),
            answer=item.answer,
            support=tuple(places[k] for k in item.support),
        )

    def _draw_pool(self, group: int) -> list[Piece]:
        """The noise of a group."""
        key = (self.seed, _NOISE, SPLITS.index(self.split))
        if isinstance(self.noise, SharedNoise):
            return self.haystack.sample(self.noise.sentences, np.random.default_rng((*key, group)))
        return self.haystack.stretch(self.chunks + _SPARE, key, group, self.noise.haystacks)

    def _noise(self, item: Item, i: int, draw: np.random.Generator) -> list[str]:
        count = self.chunks - len(item.pieces)
        own = {piece.name for piece in item.pieces}
        pool = [piece.text for piece in self._pool(self.noise.group_of(i)) if piece.name not in own]
        if count and not pool:
            raise ValueError(f"task {self.task}: all noise belongs to the question; raise data.shared_noise")
        if isinstance(self.noise, SharedNoise):
            order = draw.permutation(np.resize(draw.permutation(len(pool)), count))
            return [pool[k] for k in order]
        return list(islice(cycle(pool), count))
