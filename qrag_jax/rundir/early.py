"""Ctrl-C and SIGTERM while a command is still being imported: one line, and the process ends. Imports nothing but the standard library."""

from __future__ import annotations

import os
import signal
import sys
import threading
from itertools import pairwise
from pathlib import Path

INTERRUPTED, STOPPED = 130, 75  # exit codes after Ctrl-C and after SIGTERM
PACKAGES = ("qrag_jax", "experiments")


def end_at_once_while_importing() -> None:
    """Installs handlers if one of this project's command lines is starting; :func:`qrag_jax.rundir.ending.execute` takes over later.

    As long as Python looks for the module of ``python -m``, sys.argv[0] is "-m". A program that only imports the packages is left alone.
    """
    program = sys.argv[0] if sys.argv else ""
    named = any(option == "-m" and module.partition(".")[0] in PACKAGES for option, module in pairwise(sys.orig_argv))
    if ((program == "-m" and named) or Path(program).stem == "qrag") and threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, _end)


def _end(number: int, frame: object) -> None:
    interrupted = number == signal.SIGINT
    os.write(2, b"stopped by Ctrl-C\n" if interrupted else b"stopped by SIGTERM; run the same command again\n")
    os._exit(INTERRUPTED if interrupted else STOPPED)
