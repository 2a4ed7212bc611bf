"""The processes that write and read one folder together."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import orbax.checkpoint as ocp

DAY_MS = 24 * 3600 * 1000  # a barrier waits so long; if a process dies, jax ends the others much sooner
_numbers = itertools.count()


def _call(make: Callable[[], Any]) -> Any:
    return make()


@dataclass(frozen=True)
class Peers:
    """This process among those that work on a folder together. All of them must make the same calls in the same order."""

    index: int = 0
    count: int = 1
    on_all: Callable[[Callable[[], Any]], Any] = _call
    """Makes a call on each process; an error of one is raised on all."""
    from_leader: Callable[[Callable[[], Any]], Any] = _call
    """Makes a call on process 0, and returns its result, a JSON tree, on each."""

    def barriers(self) -> tuple[Callable[[], None], Callable[[], None]]:
        """Two new barriers. A thread may wait at them while other threads use the devices."""
        number = next(_numbers)
        if self.count == 1:
            return _pass, _pass
        wait = ocp.multihost.get_barrier_sync_fn()
        first, second = (partial(wait, key=f"qrag-peers-{number}-{name}", timeout_ms=DAY_MS) for name in ("first", "second"))
        return first, second


def _pass() -> None:
    pass


ALONE = Peers()
