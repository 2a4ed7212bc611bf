"""How programs are compiled, how long it took, and where they are kept so that the next start of a command finds them."""

from __future__ import annotations

import importlib.util
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from qrag_jax.rundir.log import say

COMPILED = "/jax/core/compile/backend_compile_duration"
GPU_PLUGINS = ("jax_cuda12_plugin", "jax_cuda13_plugin")
TRITON = "--xla_gpu_enable_triton_gemm"


def prepare_compiling() -> None:
    """Sets how programs are compiled. Call it before JAX looks for devices.

    Compiled programs are kept in JAX_COMPILATION_CACHE_DIR or in the user's cache, with one folder per machine. If there is no home
    folder, or nothing can be written there, nothing is kept, and one line says so.
    """
    leave_products_to_cublas()
    _keep_compilations()


def leave_products_to_cublas() -> None:
    """For GPUs, adds to XLA_FLAGS that Triton makes no matrix products, unless the user has set this flag.

    On an H100, XLA then compiles an update in a third of the time, and the update is faster (docs/results/h100.md).
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if TRITON not in flags and any(map(importlib.util.find_spec, GPU_PLUGINS)):
        os.environ["XLA_FLAGS"] = f"{flags} {TRITON}=false".strip()


def _keep_compilations() -> None:
    import jax

    if getattr(jax.config, "jax_compilation_cache_dir") is not None:  # noqa: B009 (jax makes it at run time, unseen by mypy)
        return
    try:
        cache = cache_folder("compiled")
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


def cache_folder(kind: str) -> Path:
    """The folder of this machine in the user's cache. Raises RuntimeError when there is no home folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "qrag-jax" / f"{kind}-{platform.node()}"


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
