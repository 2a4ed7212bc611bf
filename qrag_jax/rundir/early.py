"""Ctrl-C and SIGTERM before a command has begun and after it has ended: the process ends. Imports nothing but the standard library."""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
from itertools import pairwise
from pathlib import Path

INTERRUPTED, STOPPED = 130, 75  # exit codes after Ctrl-C and after SIGTERM
SIGNALS = (signal.SIGINT, signal.SIGTERM)
PACKAGES = ("qrag_jax", "experiments")
PATIENCE = 10  # seconds for what a command leaves behind, such as threads of libraries, to end
_code: int | None = None  # of the command that has ended
_ours = False  # whether this process does nothing but run a command of this project
_patience: float = PATIENCE


def end_at_once_while_importing() -> None:
    """Installs handlers if one of this project's command lines is starting; :func:`qrag_jax.rundir.ending.execute` takes over later.

    As long as Python looks for the module of ``python -m``, sys.argv[0] is "-m". A program that only imports the packages is left alone.
    """
    global _ours
    program = Path(sys.argv[0] if sys.argv else "")
    module = any(option == "-m" and module.partition(".")[0] in PACKAGES for option, module in pairwise(sys.orig_argv))
    ours = (str(program) == "-m" and module) or program.stem == "qrag"
    if ours and threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is not _end:
        for number in SIGNALS:
            signal.signal(number, _end)
        _ours = True
        atexit.register(_leave)  # called after the functions that are registered later


def decide(code: int) -> None:
    """The command has ended with this exit code, and its output is written: a signal that comes later does not change the code.

    The process ends soon, even if a thread of a library never does, such as one that writes into a folder that was removed.
    """
    global _code
    _code = code
    if _ours:
        leave = threading.Timer(_patience, os._exit, (code,))
        leave.daemon = True
        leave.start()


def be_patient(seconds: float) -> None:
    """What a command leaves behind has this long to end: with other processes, more than :data:`PATIENCE`."""
    global _patience
    _patience = seconds


def _end(number: int, frame: object) -> None:
    if _code is not None:
        os._exit(_code)
    interrupted = number == signal.SIGINT
    over = b"\r" if interrupted and os.isatty(2) else b""  # the terminal has written ^C there
    os.write(2, over + (b"stopped by Ctrl-C\n" if interrupted else b"stopped by SIGTERM; run the same command again\n"))
    os._exit(INTERRUPTED if interrupted else STOPPED)


def _leave() -> None:
    """Ends the process before Python frees what it holds.

    That takes seconds with JAX and PyTorch. Meanwhile, Python restores the system's handlers of signals, which kill. And after a request to
    stop, threads of JAX may still compile; they crash when Python frees what they use.
    """
    if _code is not None:
        os._exit(_code)
