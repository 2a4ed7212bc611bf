"""Needles of RULER's NIAH tasks (Hsieh et al. 2024, arXiv 2404.06654): the eight tasks, their keys and values, sentences and questions.

Needles and questions are worded as in the official generator. Word keys are "adjective-noun" pairs, as there, but from the short lists
below (about 20 000 pairs) instead of the ``wonderwords`` package; training has other words (:class:`WordKeys`). No key and no number
occurs in two splits; each split draws its uuids from its own random stream.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Literal

import numpy as np

from qrag_jax.data.documents import ENDLESS, Item, Noise, Piece
from qrag_jax.data.splits import SPLITS, Split, hashed_split
from qrag_jax.types import VALUES_SEPARATOR

NOISE_LINE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
TRAINING_LISTS = (12, 15)
"""Words in the place of the adjective and of the noun, in training. Each word of a key is then in 7 or 8 of 100 needles, as often as in the
test's documents of 19 000 tokens."""
_ITEM, _WORDS = 111, 114  # first words of the keys of the random streams

Kind = Literal["numbers", "words", "uuids"]


@dataclass(frozen=True)
class NiahTask:
    """``keys`` keys with ``values`` values each are hidden in the haystack; a question asks for all values of ``queries`` of them."""

    haystack: Literal["noise", "essays", "needles"]
    key_kind: Kind = "words"
    value_kind: Kind = "numbers"
    keys: int = 1
    values: int = 1
    queries: int = 1


NIAH = {
    "niah_single_1": NiahTask("noise"),
    "niah_single_2": NiahTask("essays"),
    "niah_single_3": NiahTask("essays", value_kind="uuids"),
    "niah_multikey_1": NiahTask("essays", keys=4),
    "niah_multikey_2": NiahTask("needles"),
    "niah_multikey_3": NiahTask("needles", key_kind="uuids", value_kind="uuids"),
    "niah_multivalue": NiahTask("essays", values=4),
    "niah_multiquery": NiahTask("essays", keys=4, queries=4),
}


def needle(kind: Kind, key: str, value: str) -> str:
    """The sentence that states one value of a key."""
    return f"One of the special magic {kind} for {key} is: {value}."


def question(kind: Kind, keys: tuple[str, ...], values: int) -> str:
    """The question that asks for all values of ``keys``; there are ``values`` of them."""
    named = keys[0] if len(keys) == 1 else f"{', '.join(keys[:-1])}, and {keys[-1]}"
    what = f"are all the special magic {kind}" if values > 1 else f"is the special magic {kind.removesuffix('s')}"
    return f"What {what} for {named} mentioned in the provided text?"


class WordKeys:
    """The word keys of a split, for documents whose noise is of one group (:meth:`of`).

    Validation and test have pairs of the listed words: one pair in ten, and three. To train, give ``words``: each group has short lists of
    its own (``TRAINING_LISTS``), drawn from all words but the listed ones. So a retriever never gets to know the words of keys by heart,
    and even in short documents it meets many keys that share a word. Raises ValueError if there are too few words.
    """

    def __init__(self, split: Split, *, seed: int = 0, words: Sequence[str] = ()) -> None:
        self._key = (seed, _WORDS)
        self._listed = () if words else listed_pairs(split)
        self._words = sorted(set(words) - {*ADJECTIVES, *NOUNS})
        if words and len(self._words) < sum(TRAINING_LISTS):
            raise ValueError(
                f"the texts to train on: have only {len(self._words)} different words to make keys of, but {sum(TRAINING_LISTS)} are "
                "needed; add books to books/train"
            )
        self._drawn = lru_cache(maxsize=8)(self._draw)

    def of(self, group: int) -> tuple[str, ...]:
        """All keys of a group."""
        return self._listed or self._drawn(group)

    def _draw(self, group: int) -> tuple[str, ...]:
        draw, first = np.random.default_rng((*self._key, group)), TRAINING_LISTS[0]
        words = [self._words[k] for k in draw.choice(len(self._words), size=sum(TRAINING_LISTS), replace=False)]
        return tuple(f"{adjective}-{noun}" for adjective in words[:first] for noun in words[first:])


@cache
def listed_pairs(split: Split) -> tuple[str, ...]:
    """The pairs of the listed words that are keys of validation (one in ten) or of the test (three in ten)."""
    pairs = (f"{adjective}-{noun}" for adjective in ADJECTIVES for noun in NOUNS)
    return tuple(pair for pair in pairs if hashed_split(pair, validation=0.1, test=0.3) == split)


def draw_names(kind: Kind, count: int, split: Split, words: Sequence[str], draw: np.random.Generator) -> list[str]:
    """``count`` keys or values of a split. All are different, but ``words``, the word keys, repeat, evenly, once all are used."""
    if kind == "numbers":  # seven digits; the remainder modulo 3 tells the split
        thirds = draw.choice(3_000_000, size=count, replace=False)
        return [str(1_000_000 + 3 * third + SPLITS.index(split)) for third in thirds.tolist()]
    if kind == "uuids":
        return [str(uuid.UUID(bytes=draw.bytes(16), version=4)) for _ in range(count)]
    return [words[k] for k in np.resize(draw.permutation(len(words)), count).tolist()]


class NiahQuestions:
    """Question i is drawn from (seed, split, i) alone."""

    def __init__(self, task: NiahTask, split: Split, words: WordKeys, noise: Noise, *, seed: int) -> None:
        self.task, self.split, self.words, self.noise, self.seed = task, split, words, noise, seed
        self.most_pieces = task.keys * task.values

    def __len__(self) -> int:
        return ENDLESS

    def item(self, i: int) -> Item:
        task = self.task
        draw = np.random.default_rng((self.seed, _ITEM, SPLITS.index(self.split), i))
        words = self.words.of(self.noise.group_of(i))
        keys = draw_names(task.key_kind, task.keys, self.split, words, draw)
        drawn = draw_names(task.value_kind, task.keys * task.values, self.split, words, draw)
        values = {key: drawn[n * task.values : (n + 1) * task.values] for n, key in enumerate(keys)}
        needles = [Piece(key, needle(task.value_kind, key, value)) for key in keys for value in values[key]]
        pieces = tuple(needles[k] for k in draw.permutation(len(needles)))
        asked = tuple(keys[k] for k in draw.permutation(task.keys)[: task.queries])
        answers = [value for key in asked for value in values[key]]
        return Item(
            question=question(task.value_kind, asked, len(answers)),
            answer=VALUES_SEPARATOR.join(answers),
            pieces=pieces,
            support=tuple(n for n, piece in enumerate(pieces) if piece.name in asked),
        )


class NeedleHaystack:
    """Noise made of needles that no question asks for, each with its own key and value (MK-2, MK-3)."""

    def __init__(self, task: NiahTask, split: Split, words: WordKeys) -> None:
        self.task, self.split, self.words = task, split, words

    def sample(self, count: int, key: tuple[int, ...], group: int) -> list[Piece]:
        words, draw = self.words.of(group), np.random.default_rng((*key, group))
        keys = draw_names(self.task.key_kind, count, self.split, words, draw)
        values = draw_names(self.task.value_kind, count, self.split, words, draw)
        return [Piece(key, needle(self.task.value_kind, key, value)) for key, value in zip(keys, values, strict=True)]

    def stretch(self, count: int, key: tuple[int, ...], group: int, groups: int) -> list[Piece]:
        return self.sample(count, key, group)


_ADJECTIVES = """
able afraid amber ancient angry awake awkward bare bitter blank bold brave brief bright brisk broad broken busy calm careful careless cheap
cheerful clean clear clever cloudy clumsy coarse cold common copper crimson crooked curious damp dark dear deep dim dizzy double dreary dry
dull dusty eager early easy empty even faint fair faithful false famous fancy fast fierce firm flat fluffy foggy foolish fragile frank free
fresh frosty full gentle giant glad golden grand grateful gray greedy green grim half handy happy harsh hasty heavy hidden high hollow
honest huge humble hungry icy idle ivory jolly keen kind large late lazy light lively lonely long loud lucky mad marble mellow merry mild
modern muddy narrow neat nervous noble noisy odd old orange pale patient plain
"""
_NOUNS = """
acorn actor anchor ankle apple apron arrow atlas attic autumn badge baker barn barrel basin basket beacon beard beaver bell bench berry
bicycle blanket bonnet border bottle boulder bracelet branch bread brick bridge broom brush bucket butter button cabin cactus camel candle
canoe canyon captain carpet carrot castle cattle cavern cellar chair chalk chapel cherry chimney circus cliff clock closet cloud coach coat
cobbler collar comet compass copy corner cottage cotton cousin cradle crayon cricket crown curtain cushion dagger dairy dancer desert
diamond dinner doctor dolphin donkey dragon drawer drum eagle easel elbow engine envelope falcon farmer feather fence ferry fiddle field
finger flame flute forest fountain fox garden garlic gate ginger glacier glove goose grape guitar hammer harbor hatch hazel helmet heron
hill honey horse hotel iceberg island jacket jelly jewel jungle kettle kitchen kite ladder lagoon lantern lemon leopard letter lily lizard
lobster magnet maple market meadow melon mirror monkey mountain museum mustard napkin needle nephew
"""
ADJECTIVES, NOUNS = tuple(_ADJECTIVES.split()), tuple(_NOUNS.split())
