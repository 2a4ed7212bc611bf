"""What a service accepts, and the errors with which it refuses the rest."""

from __future__ import annotations

import math
from dataclasses import dataclass

from qrag_jax.config.parse import require


@dataclass(frozen=True)
class Limits:
    """``budget``: the most picks of a question (None: 8, or fewer if the retriever reads fewer). ``characters``: its longest length.
    ``requests``: how many are accepted at once, in search, in line or being answered. ``answers``: how many the reader writes
    at once. ``seconds``: the longest time of a request."""

    budget: int | None = None
    characters: int = 2000
    requests: int = 64
    answers: int = 4
    seconds: float = 60.0

    def __post_init__(self) -> None:
        for name in ("budget", "characters", "requests", "answers"):
            value = getattr(self, name)
            require(value is None or 1 <= value <= 1_000_000, name, value, "in 1..1,000,000")
        require(0 < self.seconds < math.inf, "seconds", self.seconds, "above 0")


class Refused(Exception):
    """A request that the service does not answer; the message says what to do."""


class Overloaded(Refused):
    """More requests than are accepted at once. ``wait``: seconds after which to ask again."""

    def __init__(self, most: int, wait: int) -> None:
        super().__init__(f"requests = {most}: so many are being answered already; ask again in {wait} s")
        self.wait = wait


class Stopping(Refused):
    """The service accepts no more requests, since it is stopping."""

    def __init__(self) -> None:
        super().__init__("the service is stopping and accepts no more questions; ask again when it has been started again")


class TooLate(Refused):
    """A request that took longer than the limit."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"seconds = {seconds:g}: the request was not answered within that time; ask again, or lower the budget")


class Gone(Refused):
    """The one who asked is no longer there."""

    def __init__(self) -> None:
        super().__init__("the client has gone")
