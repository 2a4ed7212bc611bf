"""The time of a search, without the time that JAX needs to compile when it sees a shape for the first time."""

from __future__ import annotations

import time

import jax.monitoring

COMPILING = "/jax/core/compile/"  # prefix of jax.monitoring's spans for tracing, lowering and compiling


class SearchClock:
    """Use as ``with SearchClock() as clock: ...``; afterwards ``clock.searching`` and ``clock.compiling`` are the seconds of each."""

    def __init__(self) -> None:
        self.searching = self.compiling = 0.0
        self._spans: list[tuple[float, float]] = []

    def __enter__(self) -> SearchClock:
        self._begun = time.time()  # the clock of jax.monitoring's spans
        jax.monitoring.register_event_time_span_listener(self._hear)
        return self

    def __exit__(self, *_: object) -> None:
        jax.monitoring.unregister_event_time_span_listener(self._hear)
        reached = self._begun
        for start, end in sorted(self._spans):  # spans overlap, since functions are traced inside others: count each second once
            self.compiling += max(0.0, end - max(start, reached))
            reached = max(reached, end)
        self.searching = max(0.0, time.time() - self._begun - self.compiling)

    def _hear(self, event: str, start_time: float, end_time: float, **kwargs: str | int) -> None:
        if event.startswith(COMPILING):
            self._spans.append((start_time, end_time))
