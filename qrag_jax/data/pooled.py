"""The questions of a batch in one haystack: each question's document becomes the chunks of all of them."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import replace

from qrag_jax.config import benchmarks
from qrag_jax.types import QAExample

_WORDS = re.compile(r"\w+")


def check_pooled(benchmark: str, positions: str) -> None:
    """Raises ValueError unless the documents of a benchmark (or mixture) may be joined."""
    if (reason := why_not_pooled(benchmark, positions)) is not None:
        raise ValueError(f"data.haystack = 'batch': {reason}")


def why_not_pooled(benchmark: str, positions: str) -> str | None:
    """Why the documents of a benchmark (or mixture) may not be joined: facts of another story would be false evidence, and positions mean
    nothing among chunks of several documents. None: they may."""
    for name in benchmarks.weights(benchmark):
        if benchmarks.made_to_length(name):
            return (
                f"not for {name}, where facts of another document would be false evidence; use own, and more data.chunks for a larger "
                "haystack"
            )
        if benchmarks.find(name).tasks[benchmarks.ALL].ordered and positions != "none":
            return (
                f"the chunks of {name} have an order, which is lost among those of other questions; use own, or qhead.positions none if "
                "the order means nothing"
            )
    return None


def in_one_haystack(examples: Sequence[QAExample]) -> list[QAExample]:
    """The same questions, each over the distinct chunks of all of them, in order of first use. A text that stands twice is one chunk.

    A question's document leaves out chunks of other questions that answer it too: those whose title or words are a supporting chunk's.
    Its own chunks all stay, since they are labelled.
    """
    named = lambda example: zip(example.chunks, example.titles or ("",) * len(example.chunks), strict=True)
    titles = {text: title for example in examples for text, title in named(example)}
    texts_of: dict[str, set[str]] = {}
    for text, title in titles.items():
        for name in _names(text, title):
            texts_of.setdefault(name, set()).add(text)
    return [_in_haystack(example, titles, texts_of) for example in examples]


def _in_haystack(example: QAExample, titles: dict[str, str], texts_of: dict[str, set[str]]) -> QAExample:
    """``example`` over the texts of ``titles``. ``texts_of``: name of :func:`_names` -> the texts that have it."""
    support = {example.chunks[i] for i in example.support}
    alike = {text for one in support for name in _names(one, titles[one]) for text in texts_of[name]} - set(example.chunks)
    place = {text: i for i, text in enumerate(text for text in titles if text not in alike)}
    return replace(
        example,
        chunks=tuple(place),
        titles=tuple(titles[text] for text in place),
        support=tuple(sorted(place[text] for text in support)),
        path=tuple(dict.fromkeys(place[example.chunks[i]] for i in example.path)),
    )


def _names(text: str, title: str) -> list[str]:
    """What two chunks have in common if they say the same: their words, or their title."""
    words = lambda what: " ".join(_WORDS.findall(unicodedata.normalize("NFKC", what).casefold()))
    return [f"text {words(text)}", *([f"title {words(title)}"] if title else [])]
