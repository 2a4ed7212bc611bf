"""How long a training still takes, from the seconds of its updates and validations so far."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

MEMORY = 0.99
"""Weight of the past after each update: the speed is that of the last hundred or so."""


@dataclass(frozen=True)
class Leg:
    """A stage of training: its last update, and how much work each of its updates is compared with those of other stages."""

    until: int
    work: int


class TimeLeft:
    """Measures updates and validations, and foretells the rest. Updates are counted from 1.

    ``compiled``: the seconds of each compilation so far, a list that grows; they are left out, since a run compiles little after its start.
    """

    def __init__(
        self, legs: Sequence[Leg], eval_every: int, compiled: Sequence[float], now: Callable[[], float] = time.perf_counter
    ) -> None:
        self._legs, self._eval_every, self._compiled, self._now = tuple(legs), eval_every, compiled, now
        self._seconds = self._work = self._validation = 0.0
        self._last, self._programs = self._clock(), -1

    def updated(self, step: int) -> None:
        """Update ``step`` has just ended, with all that belongs to it except a validation. One that compiled does not count."""
        seconds, self._last = self._clock() - self._last, self._clock()
        if self._programs == len(self._compiled):
            self._seconds = MEMORY * self._seconds + seconds
            self._work = MEMORY * self._work + self._work_of(step)
        self._programs = len(self._compiled)

    @contextmanager
    def validating(self) -> Iterator[None]:
        """Around a validation, which is no part of an update."""
        began = self._clock()
        with self.aside():
            yield
        self._validation = self._clock() - began

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Around something that is no part of an update."""
        began = self._clock()
        yield
        self._last += self._clock() - began
        self._programs = len(self._compiled)

    def left(self, step: int) -> float | None:
        """Seconds from the end of update ``step`` to that of the last one's validation; None before anything is known."""
        if not self._work:
            return None
        work, first, last = 0, step, self._legs[-1].until
        for leg in self._legs:
            work += max(leg.until - first, 0) * leg.work
            first = max(first, leg.until)
        validations = last // self._eval_every + bool(last % self._eval_every) - step // self._eval_every
        return work * self._seconds / self._work + validations * self._validation

    def _clock(self) -> float:
        """A clock that stands still while something is compiled."""
        return self._now() - sum(self._compiled)

    def _work_of(self, step: int) -> int:
        return next((leg.work for leg in self._legs if step <= leg.until), self._legs[-1].work)
