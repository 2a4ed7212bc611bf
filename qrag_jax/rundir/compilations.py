"""Compiled programs: a cache in which the next start of a command finds them, and how long compiling took."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from qrag_jax.rundir.log import say

COMPILED = "/jax/core/compile/backend_compile_duration"


def keep_compilations() -> None:
    """Keeps compiled programs in JAX_COMPILATION_CACHE_DIR or in the user's cache, with one folder per machine.

    If there is no home folder, or nothing can be written there, nothing is kept, and one line says so.
    """
    import jax

    if getattr(jax.config, "jax_compilation_cache_dir") is not None:  # noqa: B009 (jax makes it at run time, unseen by mypy)
        return
    try:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "qrag-jax" / f"compiled-{platform.node()}"
        cache.mkdir(parents=True, exist_ok=True)
        reason = None if os.access(cache, os.W_OK) else f"{cache} cannot be written to"
    except RuntimeError:
        reason = "there is no home folder"
    except OSError as error:
        reason = f"{error.filename}: {error.strerror}"
    if reason is not None:
        say(f"compiled programs are not kept ({reason}); JAX_COMPILATION_CACHE_DIR names a folder for them")
        return
    jax.config.update("jax_compilation_cache_dir", str(cache))


@contextmanager
def compilations() -> Iterator[list[float]]:
    """Seconds of each XLA compilation inside the block, as they happen."""
    import jax

    found: list[float] = []

    def listen(event: str, duration_secs: float, **_: Any) -> None:
        if event == COMPILED:
            found.append(duration_secs)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield found
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
