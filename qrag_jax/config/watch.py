"""How a run is watched, beyond metrics.jsonl. Nothing here changes its result, so it is no part of its configuration."""

from __future__ import annotations

import re
from dataclasses import dataclass

from qrag_jax.config.parse import unknown

TRACKERS = ("tensorboard", "wandb")


@dataclass(frozen=True)
class Watch:
    """How the run is watched. This changes no result; a run may change it when it resumes."""

    track: tuple[str, ...] = ()
    """Where else figures go. tensorboard: files in RUN_DIR/tensorboard. wandb: Weights & Biases, in RUN_DIR/wandb, offline unless the
    environment variable WANDB_MODE is online. Needs qrag-jax[log]."""
    profile: str | None = None
    """FIRST:LAST, such as 20:30: record these updates with jax.profiler, in RUN_DIR/profile."""

    def __post_init__(self) -> None:
        for name in self.track:
            if name not in TRACKERS:
                raise unknown("track", name, TRACKERS)
        if self.profile is not None:
            allowed = "must be FIRST:LAST, two updates counted from 1, such as 20:30"
            found = re.fullmatch(r"([1-9]\d{0,8}):([1-9]\d{0,8})", self.profile)
            if found is None or int(found[1]) > int(found[2]):
                raise ValueError(f"profile = {self.profile!r}: {allowed}")

    @property
    def profiled(self) -> range:
        """The updates to record; empty if none."""
        if self.profile is None:
            return range(0)
        first, last = map(int, self.profile.split(":"))
        return range(first, last + 1)
