"""What a reader is: a frozen LLM that answers from retrieved text, behind one method."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable


@dataclass(frozen=True)
class Prompt:
    """What the model is told. ``system`` None: no system message. ``shots``: earlier questions and their answers, as examples."""

    system: str | None
    user: str
    shots: tuple[tuple[str, str], ...] = ()

    @property
    def messages(self) -> list[dict[str, str]]:
        """The conversation, as chat templates and endpoints take it."""
        system = [] if self.system is None else [("system", self.system)]
        turns = [turn for asked, answer in self.shots for turn in (("user", asked), ("assistant", answer))]
        return [{"role": role, "content": text} for role, text in (*system, *turns, ("user", self.user))]


@dataclass(frozen=True)
class Answer:
    """What the model said. Counts are in its own tokens, None where they were not reported. ``finish``: "stop" (it came to an end) or
    "length" (it was cut off)."""

    text: str
    prompt_tokens: int | None
    completion_tokens: int | None
    finish: str


@runtime_checkable
class Reader(Protocol):
    name: str
    """The model and every setting that changes its answers."""

    def answer(self, prompts: Sequence[Prompt]) -> list[Answer]:
        """One answer a prompt, in order. Raises ReaderError when a prompt cannot be answered: a missing answer is never made up."""


class ReaderError(RuntimeError):
    """A prompt was refused, or an outage outlasted its retries: which endpoint, which prompt, the last failure, what to do."""
