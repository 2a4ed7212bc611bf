"""Requests to stop: SIGTERM asks a run to save and exit."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

from qrag_jax.rundir.log import Preempted


class StopRequest:
    """Whether the run was ``asked`` to stop. Asking raises Preempted at once, except inside :meth:`later`: there the loop saves first."""

    def __init__(self) -> None:
        self.asked = False
        self._at_once = True

    def ask(self, *signal_and_frame: object) -> None:
        self.asked = True
        if self._at_once:
            raise Preempted("run the same command again to resume")

    @contextmanager
    def later(self) -> Iterator[None]:
        """Inside this block, a request only sets ``asked``. If the block ends normally after a request, Preempted is raised."""
        self._at_once = False
        try:
            yield
        finally:
            self._at_once = True
        if self.asked:
            self.ask()


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Inside this block, SIGTERM (a preempted machine) asks the run to save and stop; afterwards the old handler is restored."""
    request = StopRequest()
    try:
        old = signal.signal(signal.SIGTERM, request.ask)
    except ValueError:  # not the main thread: the caller handles signals
        yield request
        return
    try:
        yield request
    finally:
        signal.signal(signal.SIGTERM, old)
