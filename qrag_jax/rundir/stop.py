"""Requests to stop: SIGTERM and the first Ctrl-C ask a command to save what there is to save, and to end."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from qrag_jax.rundir.early import SIGNALS
from qrag_jax.rundir.log import Interrupted, Preempted

AGAIN = 0.5  # seconds after which a request that somebody swallowed is made again
_open: StopRequest | None = None  # that of the outermost block


class StopRequest:
    """Whether the command was ``asked`` to stop. Asking raises Preempted (after Ctrl-C: its kind Interrupted) at once, except inside
    :meth:`later`: there the loop saves first. A second Ctrl-C raises KeyboardInterrupt at once, also there.

    Code that catches everything, such as a callback of C code, may swallow the request. It is therefore repeated until the
    exception is on its way up, or :func:`acknowledge` is called.
    """

    def __init__(self) -> None:
        self.asked = False
        self._kind: type[Preempted] = Preempted
        self._at_once = True

    @property
    def kind(self) -> type[Preempted]:
        """The exception to raise for the request."""
        return self._kind

    def ask(self, number: int = signal.SIGTERM, frame: FrameType | None = None) -> None:
        """The handler of the signals."""
        if number == signal.SIGINT and self._kind is Interrupted:
            raise KeyboardInterrupt("stopped at once")
        if not self.asked or number == signal.SIGINT:
            self._kind = Interrupted if number == signal.SIGINT else Preempted
        self.asked = True
        if self._at_once and not _on_its_way():
            self._raise()

    @contextmanager
    def later(self) -> Iterator[None]:
        """Inside this block, a request only sets ``asked``. If the block ends normally after a request, Preempted is raised."""
        self._at_once = False
        try:
            yield
        finally:
            self._at_once = True
        if self.asked:
            self._raise()

    def again(self, *signal_and_frame: object) -> None:
        """The handler of the clock: repeats a request that was swallowed."""
        if not self._at_once:
            return
        if _on_its_way():
            signal.setitimer(signal.ITIMER_REAL, AGAIN)
        else:
            self._raise()

    def _raise(self) -> None:
        signal.setitimer(signal.ITIMER_REAL, AGAIN)
        raise self._kind("run the same command again to resume")


def _on_its_way() -> bool:
    """Whether a Preempted is being handled now, such as in the cleaning up of a ``with`` block that it leaves."""
    error = sys.exception()
    while error is not None and not isinstance(error, (Preempted, KeyboardInterrupt)):
        error = error.__context__
    return error is not None


def acknowledge() -> None:
    """Stops the repetition of a request: the caller has caught Preempted and will raise it later."""
    signal.setitimer(signal.ITIMER_REAL, 0)


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Inside this block, SIGTERM (a preempted machine) and Ctrl-C ask to stop; afterwards the old handlers are restored.

    If a request was swallowed to the end of the block, it is raised there. Blocks may be nested. An inner one has the request of the outer
    one, so that what was asked before it began, and swallowed, still holds.
    """
    global _open
    if threading.current_thread() is not threading.main_thread():  # the caller handles signals
        yield StopRequest()
        return
    if _open is not None:
        yield _open
        return
    request = _open = StopRequest()
    old = {number: signal.getsignal(number) for number in (*SIGNALS, signal.SIGALRM)}
    told = sys.unraisablehook

    def tell(info: sys.UnraisableHookArgs) -> None:
        if not isinstance(info.exc_value, Preempted):  # which is raised again
            told(info)

    sys.unraisablehook = tell
    try:
        signal.signal(signal.SIGALRM, request.again)
        for number in SIGNALS:
            signal.signal(number, request.ask)
        yield request
        if request.asked:  # swallowed, and the command ended before it was repeated
            raise request.kind("run the same command again to resume")
    finally:
        _open = None
        sys.unraisablehook = told
        acknowledge()
        for number, handler in old.items():
            signal.signal(number, handler)
