"""The time of a search without that of compiling it, which JAX does once in a process, in the midst of the first search."""

from __future__ import annotations

import threading
import time
from typing import Any

import jax.monitoring

COMPILING = "/jax/core/compile/"  # what the events of tracing, lowering and compiling begin with
_here = threading.local()  # of each thread, the spans in which it compiled, in order, none over another


def _heard(event: str, duration_secs: float, **_: Any) -> None:
    """An event ends when it is heard. Tracing a function may trace and compile others: their spans are within its own."""
    if not event.startswith(COMPILING):
        return
    end = time.perf_counter()
    start, spans = end - duration_secs, _spans()
    while spans and spans[-1][1] > start:
        start = min(start, spans.pop()[0])
    spans.append((start, end))


def _spans() -> list[tuple[float, float]]:
    if not hasattr(_here, "spans"):
        _here.spans = []
    return _here.spans


jax.monitoring.register_event_duration_secs_listener(_heard)


class WorkClock:
    """Counts this thread's seconds from now on, without those in which it compiled."""

    def __init__(self) -> None:
        self._start = time.perf_counter()

    def seconds(self) -> float:
        compiled = sum(end - max(start, self._start) for start, end in _spans() if end > self._start)
        return max(0.0, time.perf_counter() - self._start - compiled)
