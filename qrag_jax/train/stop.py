"""Requests to stop: SIGTERM asks a run to save and leave."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

from qrag_jax.rundir.log import Preempted


class StopRequest:
    """``asked``: somebody wants the run to end. That raises Preempted at once, but inside :meth:`later`, where it must first be saved."""

    def __init__(self) -> None:
        self.asked = False
        self._at_once = True

    def ask(self, *signal_and_frame: object) -> None:
        self.asked = True
        if self._at_once:
            raise Preempted("run the same command again to go on")

    @contextmanager
    def later(self) -> Iterator[None]:
        self._at_once = False
        try:
            yield
        finally:
            self._at_once = True
        if self.asked:
            self.ask()


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """SIGTERM (a preempted machine) asks a run to save and leave; the old handler comes back afterwards."""
    request = StopRequest()
    try:
        old = signal.signal(signal.SIGTERM, request.ask)
    except ValueError:  # not the main thread: whoever runs us there handles signals
        yield request
        return
    try:
        yield request
    finally:
        signal.signal(signal.SIGTERM, old)
