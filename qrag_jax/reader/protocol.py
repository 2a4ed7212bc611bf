"""The interface of readers: frozen LLMs that answer from retrieved text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from qrag_jax.rundir.log import Unreachable


@dataclass(frozen=True)
class Prompt:
    """The input of the model. ``system`` None: no system message. ``shots``: earlier questions and answers, as examples."""

    system: str | None
    user: str
    shots: tuple[tuple[str, str], ...] = ()

    @property
    def messages(self) -> list[dict[str, str]]:
        """The conversation in the format of chat templates and endpoints."""
        system = [] if self.system is None else [("system", self.system)]
        turns = [turn for asked, answer in self.shots for turn in (("user", asked), ("assistant", answer))]
        return [{"role": role, "content": text} for role, text in (*system, *turns, ("user", self.user))]


@dataclass(frozen=True)
class Answer:
    """The output of the model. Counts are in its own tokens, None if not reported. ``finish``: "stop" (it finished) or "length" (it was
    cut off)."""

    text: str
    prompt_tokens: int | None
    completion_tokens: int | None
    finish: str


@runtime_checkable
class Reader(Protocol):
    name: str
    """Names the model and every setting that changes its answers."""

    def answer(self, prompts: Sequence[Prompt]) -> list[Answer]:
        """One answer per prompt, in order. Raises ReaderError if a prompt cannot be answered: a missing answer is never invented."""


@runtime_checkable
class StreamingReader(Reader, Protocol):
    """A reader whose answer can be read while it is written."""

    def stream(self, prompt: Prompt, hear: Callable[[str], None]) -> Answer:
        """The answer to one prompt. Each new piece of its text is given to ``hear``; together they are the text of the answer, up to white
        space at its ends."""


class TooLong(Exception):
    """A prompt with its answer is longer than the reader's context."""


class ReaderError(Unreachable):
    """A prompt was refused, or the retries failed. The message names the endpoint, the prompt, the last failure, and what to do."""


class PromptTooLong(TooLong, ValueError):
    """Known before the prompt was asked."""


class RefusedAsTooLong(TooLong, ReaderError):
    """Said by an endpoint."""
