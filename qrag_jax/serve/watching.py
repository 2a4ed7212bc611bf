"""Notices that an index on disk has changed, and brings the new one."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from qrag_jax.retrieve.batching import Batcher
from qrag_jax.retrieve.index import Index
from qrag_jax.retrieve.meta import stamp
from qrag_jax.rundir.log import say

EVERY = 1.0  # seconds between two looks at the folder
AGAIN = 30.0  # seconds after which an index that could not be used is tried again


class Watcher:
    """Opens the folder of ``index`` again whenever it has changed: ``prepare`` makes the new index ready, and ``use`` takes it.

    ``stale``: why the index in the folder is not the one in use; None: it is. It is "being read" until ``use`` has been called.
    """

    def __init__(self, index: Index, prepare: Callable[[Index], Batcher], use: Callable[[Batcher], None]) -> None:
        self.stale: str | None = None
        self._told: str | None = None
        self._path, self._version = index.path, index.version
        self._prepare, self._use = prepare, use
        self._seen: object = None
        self._again = 0.0  # when to try again (time.monotonic)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="index", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()

    def _watch(self) -> None:
        while True:
            self.look()
            if self._stopped.wait(EVERY):
                return

    def look(self) -> None:
        """Compares the folder with the index in use."""
        found = stamp(self._path)
        if found is not None and found == self._seen and (self.stale is None or time.monotonic() < self._again):
            return
        self._seen, self._again = found, time.monotonic() + AGAIN
        if found is None:
            self._refuse(f"{self._path}: is no longer there; questions are asked to the index as it was")
            return
        try:
            index = Index.open(self._path)
            if index.version != self._version:
                self.stale = f"{self._path}: has changed, and is being read"
                batcher = self._prepare(index)
                self._use(batcher)
                self._version = index.version
            self.stale = self._told = None
        except Exception as error:  # the service goes on with the index that it has
            self._refuse(f"{self._path}: has changed and cannot be used ({error}); questions are asked to the index as it was")

    def _refuse(self, reason: str) -> None:
        if reason != self._told:
            say(reason)
        self.stale = self._told = reason
