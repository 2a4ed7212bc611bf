"""A recording of some updates by jax.profiler: what the device and the host do, and for how long."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax

from qrag_jax.rundir.log import say

TRACE = "perfetto_trace.json.gz"


class Profile:
    """Records ``updates`` into ``folder``. Call :meth:`before` and :meth:`after` around each update, :meth:`close` at the end."""

    def __init__(self, updates: range, folder: Path) -> None:
        self._updates, self._folder, self._on = updates, folder, False

    def before(self, step: int) -> None:
        """Starts the recording at its first update, or at a later one if the run resumes inside it."""
        if not self._on and step in self._updates:
            jax.profiler.start_trace(str(self._folder), create_perfetto_trace=True)
            self._on = True

    def after(self, step: int, results: Any) -> None:
        """Ends the recording after its last update, once the device has made ``results``."""
        if self._on and step == self._updates[-1]:
            jax.block_until_ready(results)
            self.close()

    def close(self) -> None:
        """Ends the recording, if it is on, and says how to look at it."""
        if not self._on:
            return
        self._on = False
        jax.profiler.stop_trace()
        found = sorted(self._folder.rglob(TRACE), key=lambda path: path.stat().st_mtime)
        where = found[-1] if found else self._folder
        say(
            f"updates {self._updates[0]} to {self._updates[-1]} are recorded. To look at them in a browser, open https://ui.perfetto.dev "
            f"and there the file {where}; or pip install xprof tensorboard, and tensorboard --logdir {self._folder}"
        )
