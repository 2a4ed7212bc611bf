"""Questions that need several passages: proposed, then checked.

A question is kept if the model answers it as proposed when it reads all of its passages, and does not when any one of them is missing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from experiments.writing.links import Link
from experiments.writing.prompts import Unusable, question_prompt, read_question
from qrag_jax.evaluate.answers import answer_f1
from qrag_jax.reader.prompts import make_prompt
from qrag_jax.reader.protocol import Answer, Prompt, Reader

TOGETHER = 16
"""Questions that are proposed and checked together, so that an endpoint is asked several things at once."""
RIGHT = 0.6
"""The least F1 with the proposed answer that counts as right."""
WRONG_ANSWER, ONE_MISSING = "not answered from its passages", "answered without one of its passages"


@dataclass(frozen=True)
class Written:
    """A question that needs all of the passages of ``link``."""

    link: Link
    question: str
    answer: str


@dataclass(frozen=True)
class Rejected:
    """``reason``: the same words for all with the same fault."""

    link: Link
    reason: str


class Meter:
    """A reader that counts what it is asked. ``tokens`` are the reader's own, None once it reports none."""

    def __init__(self, reader: Reader) -> None:
        self.reader, self.name = reader, reader.name
        self.prompts, self.tokens = 0, 0
        self.unknown = False

    def answer(self, prompts: Sequence[Prompt]) -> list[Answer]:
        answers = self.reader.answer(prompts)
        self.prompts += len(answers)
        for one in answers:
            self.unknown |= one.prompt_tokens is None or one.completion_tokens is None
            self.tokens += (one.prompt_tokens or 0) + (one.completion_tokens or 0)
        return answers

    def __str__(self) -> str:
        return f"{self.prompts:,} prompts" + ("" if self.unknown else f", {self.tokens:,} tokens")


def write_questions(links: Iterator[Link], texts: Sequence[str], reader: Reader) -> Iterator[Written | Rejected]:
    """One outcome for each link, in order. Raises ReaderError when the reader cannot be reached."""
    while some := list(islice(links, TOGETHER)):
        proposals = reader.answer([question_prompt([texts[i] for i in link.passages], link.words) for link in some])
        outcomes: dict[Link, Written | Rejected] = {}
        for link, proposal in zip(some, proposals, strict=True):
            try:
                outcomes[link] = Written(link, *read_question(proposal.text))
            except Unusable as reason:
                outcomes[link] = Rejected(link, str(reason))
        outcomes |= _checked([one for one in outcomes.values() if isinstance(one, Written)], texts, reader, left_out=False)
        outcomes |= _checked([one for one in outcomes.values() if isinstance(one, Written)], texts, reader, left_out=True)
        yield from (outcomes[link] for link in some)


def _checked(proposed: Sequence[Written], texts: Sequence[str], reader: Reader, *, left_out: bool) -> dict[Link, Written | Rejected]:
    """``left_out``: every passage is left out once, and the answer must be wrong each time. Otherwise none is, and it must be right."""
    asked: list[tuple[Written, Prompt]] = []
    for one in proposed:
        for missing in one.link.passages if left_out else (None,):
            read = [texts[i] for i in sorted(one.link.passages) if i != missing]
            asked.append((one, make_prompt("own", "all", one.question, read)))
    outcomes: dict[Link, Written | Rejected] = {one.link: one for one in proposed}
    for (one, _), said in zip(asked, reader.answer([prompt for _, prompt in asked]), strict=True):
        if (answer_f1(said.text, [one.answer]) >= RIGHT) == left_out:
            outcomes[one.link] = Rejected(one.link, ONE_MISSING if left_out else WRONG_ANSWER)
    return outcomes
