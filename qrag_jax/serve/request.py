"""What an accepted request is, and what it gets."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass

from qrag_jax.retrieve.answering import CitedAnswer
from qrag_jax.retrieve.ranking import Mode
from qrag_jax.retrieve.types import Step
from qrag_jax.serve.limits import Gone, TooLate


class Request:
    """An accepted request: it must end ``until`` then (:func:`time.monotonic`), and costs nothing more once ``gone`` is set."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.until = time.monotonic() + seconds
        self.gone = threading.Event()

    @property
    def left(self) -> float:
        return max(0.0, self.until - time.monotonic())

    def check(self) -> None:
        """Raises Gone or TooLate."""
        if self.gone.is_set():
            raise Gone
        if time.monotonic() > self.until:
            raise TooLate(self.seconds)


@dataclass(frozen=True)
class Found:
    """The search of a question. ``steps``: in the order of picking; with ``stop``, the last may be below the stop ``threshold`` (None:
    there is none). ``least_q``: what a pick must reach to fit the question (None: not known). ``chunks``: how many were searched, in
    ``version`` of the index. ``notes``: what the one who asked should know, such as that the question was cut."""

    question: str
    mode: Mode
    steps: tuple[Step, ...]
    threshold: float | None
    least_q: float | None
    chunks: int
    version: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Answered:
    """The answer to a question, and the search that it comes from."""

    found: Found
    answer: CitedAnswer


@dataclass(frozen=True)
class Health:
    """``live``: questions can be searched. ``ready``: new ones are accepted. ``stale``: why the index on disk, which has changed, is not
    the one that is searched; None: it is."""

    live: bool
    ready: bool
    stale: str | None
    version: str
    chunks: int
    requests: int
