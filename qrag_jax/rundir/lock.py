"""One writer at a time for a folder: a run directory, or an index."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from qrag_jax.rundir.log import Preempted

# All count as unfinished files (rundir/files.py), so nothing takes them for the content of the folder.
LOCK, WRITER = ".lock.tmp", ".writer.tmp"
HELPERS = ".lock-*.tmp"
"""Pattern of the locks of processes that help the writer."""


class Busy(Preempted):
    """Another process, or another thread, writes to the folder. Nothing was changed; run the same command again later."""


@contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Makes the folder if it is missing, and locks it for this block. The system frees the lock of a process that dies.

    Raises Busy, at once, if the folder is locked already; the message says by whom. Readers need no lock.
    """
    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    lock = _locked(folder, LOCK, lambda: _writer(folder))
    try:
        for helper in folder.glob(HELPERS):
            _locked(folder, helper.name, lambda: "a process of an earlier run").release()
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        (folder / WRITER).write_text(f"process {os.getpid()} on {platform.node()}, started {since},", encoding="utf-8")
        yield
    finally:
        # Unlinked while locked: a process that has just opened this file will notice, and open the next one.
        for name in (WRITER, LOCK):
            (folder / name).unlink(missing_ok=True)
        lock.release()
        if made and not any(folder.glob("*")) and not any(folder.glob(".*")):
            folder.rmdir()


@contextmanager
def only_helper(folder: Path, number: int) -> Iterator[None]:
    """Locks the place of helper ``number`` of a folder that :func:`only_writer` of another process has locked. No later writer begins
    before this block ends. Raises Busy if there is such a helper already."""
    name = HELPERS.replace("*", str(number))
    lock = _locked(folder, name, lambda: f"another process {number}")
    try:
        yield
    finally:
        (folder / name).unlink(missing_ok=True)
        lock.release()


def _locked(folder: Path, name: str, whose: Callable[[], str]) -> FileLock:
    lock = FileLock(folder / name, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise Busy(f"{folder}: {whose()} is writing to it; run the same command again when it has ended") from None
    return lock


def _writer(folder: Path) -> str:
    try:
        return (folder / WRITER).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return "another process"
