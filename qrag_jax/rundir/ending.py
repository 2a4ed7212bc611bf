"""How every command ends: exit codes, one line for what went wrong, and streams that do not end a command when nobody reads them.

    0    done, also when the output goes into a pipe that was closed
    64   bad input, or a place that cannot be read or written
    70   NaN or infinity in an update; the same command would fail again
    74   the disk is full or broken, or the bucket refuses files; once that is fixed, the same command resumes
    75   stopped by SIGTERM, another process writes to the folder, the reader cannot be reached, or other processes did not come; run the
         same command again
    130  stopped by Ctrl-C

What there is to save is saved first. Only a fault of this program is a traceback.
"""

from __future__ import annotations

import errno
import os
import re
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from qrag_jax.config.secrets import redact
from qrag_jax.rundir.early import INTERRUPTED, STOPPED, decide
from qrag_jax.rundir.files import disk_error
from qrag_jax.rundir.lock import Busy
from qrag_jax.rundir.log import CannotWrite, Interrupted, NotFinite, Preempted, Unreachable, close_bars
from qrag_jax.rundir.printable import printable
from qrag_jax.rundir.stop import stop_requests

DONE, BAD_INPUT, NOT_FINITE, CANNOT_WRITE = 0, 64, 70, 74
DEVICES = "unset it to let JAX choose, or use cpu, cuda or tpu"
NOT_OURS = (errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.EAGAIN)  # of this machine, whatever the command


def execute(run: Callable[[], int | None], tell: Callable[[str], str] = str) -> int:
    """Runs a command, and returns its exit code: the value of ``run`` (None: 0), or one of the codes above, with one line on stderr.

    ``tell`` changes that line to what the user is told. ``--help``, which raises SystemExit, is 0. An exception that is a fault of this
    program is raised.
    """
    try:
        for name in ("stdout", "stderr"):
            setattr(sys, name, console(getattr(sys, name)))
        with stop_requests():
            code = run() or DONE
        sys.stdout.flush()
    except SystemExit as stop:
        if stop.code:
            raise
        code = DONE
    except BaseException as error:
        if (end := ending(error)) is None:
            raise
        code, message = end
        with suppress(OSError):  # a stderr on a full disk
            close_bars()
            over = "\r" if code == INTERRUPTED and sys.stderr.isatty() else ""  # the terminal has written ^C there
            sys.stderr.write(over + printable(redact(" ".join(tell(message).split()))) + "\n")
    finally:
        sys.stdout, sys.stderr = (getattr(stream, "inner", stream) for stream in (sys.stdout, sys.stderr))
        for stream in (sys.stdout, sys.stderr):
            _flush(stream)
    decide(code)
    return code


def ending(error: BaseException) -> tuple[int, str] | None:
    """Exit code and line for what a user or the machine did; None for a fault of this program."""
    text = str(error)
    if isinstance(error, (Interrupted, KeyboardInterrupt)):
        return INTERRUPTED, f"interrupted: {text or 'run the same command again'}"
    if isinstance(error, Busy):
        return STOPPED, f"error: {text}"
    if isinstance(error, Preempted):
        return STOPPED, f"preempted: {text}"
    if isinstance(error, NotFinite):
        return NOT_FINITE, f"error: {text}"
    if isinstance(error, CannotWrite):
        return CANNOT_WRITE, f"error: {text}"
    if isinstance(error, Unreachable):
        return STOPPED, f"error: {text}; nothing is lost: run the same command again to go on"
    if (told := disk_error(error)) is not None:
        place = getattr(error, "filename", None) or "the disk or the output"
        advice = "fix that" if isinstance(error, OSError) and error.errno in (errno.EIO, errno.EROFS) else "make room"
        return CANNOT_WRITE, f"error: {place}: cannot be written to ({told}); {advice}, then run the same command again"
    if isinstance(error, ValueError):
        return BAD_INPUT, f"error: {text}"
    if isinstance(error, OSError):
        return _place(error)
    if isinstance(error, RuntimeError):
        return _jax(text)
    if isinstance(error, AssertionError) and not text and _has_no_device():
        return BAD_INPUT, f"error: JAX_PLATFORMS = {os.environ['JAX_PLATFORMS']!r}: this machine has no such device; {DEVICES}"
    return None


def _has_no_device() -> bool:
    """Whether JAX finds none of the devices that JAX_PLATFORMS names. Without the GPUs it raises an empty AssertionError."""
    if not os.environ.get("JAX_PLATFORMS") or "jax" not in sys.modules:
        return False
    try:
        sys.modules["jax"].devices()
    except (AssertionError, RuntimeError):
        return True
    return False


def _place(error: OSError) -> tuple[int, str] | None:
    """A file or folder that cannot be read or written."""
    if error.errno in NOT_OURS:
        return CANNOT_WRITE, f"error: this machine has no resources left for the command: {error.strerror}"
    if error.errno is None or error.filename is None:
        return None
    place = os.fsdecode(error.filename) if isinstance(error.filename, (str, bytes)) else error.filename
    if error.errno == errno.ENOENT:
        return BAD_INPUT, f"error: {place}: no such file or folder; it may have been removed while the command was running"
    return BAD_INPUT, f"error: {place}: {error.strerror}; choose another place"


def _jax(text: str) -> tuple[int, str] | None:
    """What JAX says about devices and processes that the environment names."""
    first = next((line for line in text.splitlines() if line.strip()), "")
    if "Unable to initialize backend" in text or "Unknown backend" in text:
        named = os.environ.get("JAX_PLATFORMS", "")
        return BAD_INPUT, f"error: JAX_PLATFORMS = {named!r}: {first}; {DEVICES}"
    if re.search(r"DEADLINE_EXCEEDED|UNAVAILABLE|ALREADY_EXISTS|ABORTED", text):
        return STOPPED, (
            f"error: the processes of this run did not come together ({first}); start all of them with the same JAX_COORDINATOR_ADDRESS "
            "and JAX_NUM_PROCESSES, and each with a JAX_PROCESS_ID of its own"
        )
    return None


class _Console:
    """A standard stream. A closed pipe makes it silent, and a character that its encoding lacks is written as an escape."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def write(self, text: str) -> int:
        try:
            return int(self.inner.write(text) or 0)
        except BrokenPipeError:
            _silence(self.inner)
            return len(text)

    def flush(self) -> None:
        try:
            self.inner.flush()
        except BrokenPipeError:
            _silence(self.inner)


def console(stream: Any) -> Any:
    """``stream`` as a stream that can take every text; a stream that the shell has closed becomes one that goes nowhere."""
    if stream is None:
        return open(os.devnull, "w", encoding="utf-8")
    if isinstance(stream, _Console):
        return stream
    with suppress(AttributeError, ValueError):  # a stream of a test or a notebook
        stream.reconfigure(errors="backslashreplace")
    return _Console(stream)


def _flush(stream: Any) -> None:
    """Writes what is left; what cannot be written is dropped, since Python would fail on it again as it ends."""
    try:
        stream.flush()
    except (OSError, ValueError):
        _silence(stream)


def _silence(stream: Any) -> None:
    """Lets everything that is written to a stream from now on, or waits in its buffer, go nowhere."""
    with suppress(OSError, ValueError, AttributeError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
