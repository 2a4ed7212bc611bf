"""The locks of a sweep's folder, and what a process that died left in its journal."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path


class Lock:
    """A lock on a file, held by this process and by children that inherit ``file``; released when all of them have ended."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.file: int | None = None

    def acquire(self) -> bool:
        """Waits for the lock."""
        return self._take(fcntl.LOCK_EX)

    def attempt(self) -> bool:
        """Takes the lock if it is free."""
        return self._take(fcntl.LOCK_EX | fcntl.LOCK_NB)

    def release(self) -> None:
        if self.file is not None:
            os.close(self.file)
            self.file = None

    def _take(self, how: int) -> bool:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(self._path, os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(file, how)
        except BlockingIOError:
            os.close(file)
            return False
        except BaseException:
            os.close(file)
            raise
        self.file = file
        return True

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(self, *error: object) -> None:
        self.release()


def drop_half_line(journal: Path, lock: Lock) -> None:
    """Removes the end of a journal that has no line end: its process died, or its disk was full, while it wrote that line."""
    with lock:
        if not journal.exists() or (content := journal.read_bytes()).endswith(b"\n") or not content:
            return
        os.truncate(journal, content.rfind(b"\n") + 1)
