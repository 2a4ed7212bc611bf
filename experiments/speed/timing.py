"""How ``experiments.speed`` measures: times of alternatives in turn, and the peak speed of the machine."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

PAUSE = 0.05  # seconds before each sample, so that the threads of the previous call fall asleep
SAMPLE = 0.02  # seconds: shorter calls are repeated until they fill this time, and make one sample together
PATIENCE, ENOUGH = 20.0, 3  # a call with ENOUGH samples gets no more after PATIENCE seconds in all
DOT_ROWS, DOT_WIDTH = 2**18, 256  # 256 MiB of float32: more than any cache


def times(seconds: Sequence[float]) -> dict[str, Any]:
    return {"median_s": statistics.median(seconds), "min_s": min(seconds), "max_s": max(seconds), "samples": len(seconds)}


def alternate(
    calls: Mapping[str, Callable[[], object]], repeats: int, prepare: Callable[[], object] | None = None
) -> dict[str, dict[str, Any]]:
    """Seconds of each call, measured in turn (A B A B ...) after a first round that does not count.

    ``prepare`` runs before each sample and is not timed; each sample is then a single call.
    """

    def sample(name: str, loops: int) -> float:
        if prepare:
            prepare()
        start = time.perf_counter()
        for _ in range(loops):
            calls[name]()
        return (time.perf_counter() - start) / loops

    loops = {}
    for name in calls:
        once = sample(name, 1)
        if prepare is None and once < 1:  # the first call also compiles and reads from disk
            once = sample(name, 1)
        loops[name] = 1 if prepare else math.ceil(SAMPLE / max(once, 1e-7))
    found: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, seconds in found.items():
            if len(seconds) < ENOUGH or sum(seconds) * loops[name] < PATIENCE:
                time.sleep(PAUSE)
                seconds.append(sample(name, loops[name]))
    return {name: times(seconds) for name, seconds in found.items()}


def ratio(slow: Mapping[str, Any] | None, fast: Mapping[str, Any] | None) -> float | None:
    """Ratio of the medians; None if one was not measured."""
    return None if slow is None or fast is None else slow["median_s"] / fast["median_s"]


def cores() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def missing_torch() -> str | None:
    """Why PyTorch and sentence-transformers cannot be compared with; None if they can."""
    absent = [name for name in ("torch", "sentence_transformers") if importlib.util.find_spec(name) is None]
    return f"not installed: {', '.join(absent)} (pip install 'qrag-jax[torch]')" if absent else None


def describe_machine(size: int, repeats: int) -> dict[str, Any]:
    """Describes the machine and its peak speed: GFLOP/s of a float32 matrix product of ``size`` (2 size^3 operations) in JAX and in NumPy,
    and the GB/s (10^9 bytes) that ``np.dot`` reads when it multiplies a matrix in memory with a vector."""
    draw = np.random.default_rng(0)
    a, b = (draw.standard_normal((size, size), np.float32) for _ in range(2))
    matrix, vector = np.ones((DOT_ROWS, DOT_WIDTH), np.float32), np.ones(DOT_WIDTH, np.float32)
    product, x, y = jax.jit(jnp.dot), jnp.asarray(a), jnp.asarray(b)
    calls = {"jax": lambda: product(x, y).block_until_ready(), "numpy": lambda: a @ b, "dot": lambda: matrix @ vector}
    found = alternate(calls, repeats)
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    packages = ("jax", "jaxlib", "flax", "numpy", "tokenizers", "torch", "sentence-transformers")
    installed = {name: importlib.metadata.version(name) for name in packages if importlib.util.find_spec(name.replace("-", "_"))}
    peak = {name: found[name] | {"gflops": 2 * size**3 / found[name]["median_s"] / 1e9} for name in ("jax", "numpy")}
    return {
        "cpu": next(names, platform.processor() or None),
        "cores": cores(),
        "python": platform.python_version(),
        "packages": {name: installed.get(name) for name in packages},
        "matmul": {"size": size} | peak,
        "plain_dot": found["dot"] | {"bytes": matrix.nbytes, "gb_per_s": matrix.nbytes / found["dot"]["median_s"] / 1e9},
    }
