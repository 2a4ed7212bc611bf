"""Answers from what a search found, with numbered citations."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from qrag_jax.config.parse import require
from qrag_jax.reader.citations import NOT_FOUND, TEMPLATE, CitedText, Passage, cited_prompt, says_not_found
from qrag_jax.reader.protocol import Answer, Prompt, Reader, StreamingReader, TooLong
from qrag_jax.retrieve.clock import SearchClock
from qrag_jax.retrieve.places import place
from qrag_jax.retrieve.ranking import Mode
from qrag_jax.retrieve.types import Pick, Step


@dataclass(frozen=True)
class Citation:
    """Passage ``number`` of a prompt: the pick, and the place where it stands, such as "report.pdf, page 3"."""

    number: int
    pick: Pick
    place: str


@dataclass(frozen=True)
class CitedAnswer:
    """An answer with its citations.

    ``text``: the answer, in which [n] is the citation with number n. ``found``: False if the documents do not hold the answer, which the
    ``judge`` said: "stop rule" (the reader was not asked), "reader", or "search" (nothing was picked). ``citations``: what the answer
    cites; ``also_read``: what the reader was given and the answer does not cite; ``left_out``: picks for which the reader's context has
    no room; ``removed``: numbers that the answer cited and no passage has. ``steps``: the search. Tokens are the reader's own, None where
    it reports none or was not asked. ``finish``: "length" if the answer was cut off. Seconds are without compiling.
    """

    question: str
    text: str
    found: bool
    judge: str | None
    mode: Mode
    steps: tuple[Step, ...]
    citations: tuple[Citation, ...] = ()
    also_read: tuple[Citation, ...] = ()
    left_out: tuple[Pick, ...] = ()
    removed: tuple[int, ...] = ()
    reader: str | None = None
    template: str = TEMPLATE
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    finish: str | None = None
    search_seconds: float = 0.0
    reader_seconds: float = 0.0

    def tree(self) -> dict[str, Any]:
        """The answer as ``qrag ask --json`` prints it, without the steps of the search."""
        cited = lambda some: [{"number": one.number, "chunk": one.pick.chunk, "place": one.place} for one in some]
        return {
            "text": self.text,
            "found": self.found,
            "judge": self.judge,
            "citations": cited(self.citations),
            "also_read": cited(self.also_read),
            "left_out": [{"chunk": pick.chunk, "place": place(pick)} for pick in self.left_out],
            "removed": list(self.removed),
            "reader": self.reader,
            "template": self.template,
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "finish": self.finish,
            "seconds": round(self.reader_seconds, 6),
        }


def least_to_fit(mode: Mode, usual: float | None, least_q: float | None) -> float | None:
    """The Q that a pick must reach to fit the question: the one given, else the retriever's ``usual`` one. Raises ValueError if a mode has
    no Q."""
    require(least_q is None or math.isfinite(least_q), "least_q", least_q, "a finite number")
    if mode == "multi":
        return usual if least_q is None else least_q
    require(least_q is None, "least_q", least_q, f"left out in mode {mode}, whose scores say nothing about whether a pick fits")
    return None


def kept_steps(steps: Sequence[Step], stop: bool) -> list[Step]:
    """The steps whose picks are read: with ``stop``, those before the first that stops."""
    return [step for step in steps if not (stop and step.stop)]


def read_answer(
    question: str,
    steps: Sequence[Step],
    reader: Reader,
    *,
    mode: Mode,
    least_q: float | None = None,
    hear: Callable[[str], None] | None = None,
) -> CitedAnswer:
    """The reader's answer from the picks of a search, in document order.

    Args:
        question: the question.
        steps: the steps of its search whose picks are read (:func:`kept_steps`).
        reader: asked once, or again with fewer picks (the last are left out first) if its context has no room for all of them.
        mode: of the search.
        least_q: if the Q of no pick reaches it, the answer is "not in the documents" and the reader is not asked. None: no such rule.
        hear: is given each new piece of the answer as the reader writes it.

    Raises ValueError if not even one pick has room, ReaderError if the reader cannot be reached.
    """
    picks = [step.pick for step in steps]
    searched = sum((step.seconds for step in steps), 0.0)
    silent = CitedAnswer(question, NOT_FOUND, False, "stop rule" if picks else "search", mode, tuple(steps), search_seconds=searched)
    if not picks or (least_q is not None and all(pick.q < least_q for pick in picks)):
        if hear is not None:
            hear(NOT_FOUND)
        return silent
    given, answer, cited, seconds = _ask(question, picks, reader, hear)
    found = bool(cited.used) or not says_not_found(cited.text)
    numbered = [Citation(number, pick, place(pick)) for number, pick in enumerate(given, 1)]
    return replace(
        silent,
        text=cited.text.strip(),
        found=found,
        judge=None if found else "reader",
        citations=tuple(one for one in numbered if one.number in cited.used),
        also_read=tuple(one for one in numbered if one.number not in cited.used),
        left_out=tuple(pick for pick in picks if pick not in given),
        removed=tuple(cited.removed),
        reader=reader.name,
        prompt_tokens=answer.prompt_tokens,
        completion_tokens=answer.completion_tokens,
        finish=answer.finish,
        reader_seconds=seconds,
    )


def _ask(
    question: str, picks: Sequence[Pick], reader: Reader, hear: Callable[[str], None] | None
) -> tuple[tuple[Pick, ...], Answer, CitedText, float]:
    """The picks that the reader was given, in document order; its answer; its checked text; the seconds, without compiling."""
    for count in range(len(picks), 0, -1):
        given = tuple(sorted(picks[:count], key=lambda pick: pick.chunk))
        prompt = cited_prompt(question, [Passage(place(pick), pick.text) for pick in given])
        cited = CitedText(len(given), hear)
        try:
            with SearchClock() as clock:
                answer, cited = _written(reader, prompt, cited, streamed=hear is not None)
        except TooLong as error:
            if count == 1:
                raise ValueError(
                    f"{error}; not even one passage has room: use a reader with a longer context, or shorter chunks"
                ) from error
            continue
        return given, answer, cited, clock.searching
    raise ValueError("picks is empty: nothing to read")


def _written(reader: Reader, prompt: Prompt, cited: CitedText, *, streamed: bool) -> tuple[Answer, CitedText]:
    """The reader's answer, and its checked text: ``cited``, unless what was heard is not the whole answer in the end."""
    if not (streamed and isinstance(reader, StreamingReader)):
        (answer,) = reader.answer([prompt])
        return answer, cited.whole(answer.text)
    pieces: list[str] = []

    def hear(piece: str) -> None:
        pieces.append(piece)
        cited.feed(piece)

    answer = reader.stream(prompt, hear)
    cited.end()
    same = "".join(pieces).strip() == answer.text.strip()
    return answer, cited if same else CitedText(cited.passages).whole(answer.text)
