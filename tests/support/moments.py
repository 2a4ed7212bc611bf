"""Copies of a folder as a kill would leave it, at each moment when this process changes it."""

from __future__ import annotations

import os
import shutil
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHANGES = ("os.rename", "os.mkdir", "os.rmdir", "os.remove", "os.truncate")


class _Moments:
    def __init__(self, folder: Path, copies: Path) -> None:
        self.folder, self.copies, self.found = folder, copies, list[Path]()
        self._last: object = None
        self._lock = threading.RLock()
        self._copying = False

    def look(self) -> None:
        """Keeps a copy if the folder has changed since the last look."""
        with self._lock:
            if self._copying:  # this is the copying itself
                return
            self._copying = True
            try:
                if (now := self._fingerprint()) != self._last:
                    self._last = now
                    copy = self.copies / str(len(self.found))
                    shutil.copytree(self.folder, copy, ignore_dangling_symlinks=True)
                    self.found.append(copy)
            finally:
                self._copying = False

    def _fingerprint(self) -> object:
        found = {}
        for folder, _, files in os.walk(self.folder):
            found[folder] = 0, 0, 0
            for name in files:
                try:
                    stat = os.stat(os.path.join(folder, name))
                except FileNotFoundError:  # renamed meanwhile
                    continue
                found[os.path.join(folder, name)] = stat.st_ino, stat.st_size, stat.st_mtime_ns
        return found


_watched: list[_Moments] = []


def _hook(event: str, args: tuple[Any, ...]) -> None:
    if _watched and (event in CHANGES or (event == "open" and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))):
        for moments in _watched:
            moments.look()


@contextmanager
def moments_of(folder: Path, copies: Path) -> Iterator[list[Path]]:
    """Copies ``folder`` into ``copies`` before each change that Python's own file functions make, on any thread, and at the end.

    The list is complete when the context ends. A killed process leaves the files that it has written so far, so each copy is the folder
    that a kill at that moment would leave.
    """
    moments = _Moments(folder, copies)
    if not _watched:
        _install()
    _watched.append(moments)
    try:
        yield moments.found
        moments.look()
    finally:
        _watched.remove(moments)


_installed: list[bool] = []


def _install() -> None:
    """Installs the hook. Hooks cannot be removed, so it does nothing while no folder is watched."""
    if not _installed:
        sys.addaudithook(_hook)
        _installed.append(True)
