"""Where questions come from. A benchmark is a module with a ``load`` function and an entry in qrag_jax/config/benchmarks.py."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import replace
from types import ModuleType
from typing import Any

from qrag_jax.config import DataConfig, benchmarks
from qrag_jax.data.mixture import Mixture
from qrag_jax.data.splits import Split
from qrag_jax.types import QAExample


def reader(benchmark: str) -> ModuleType:
    """The module that reads a benchmark; see ``Benchmark.data``. Raises ValueError on an unknown name."""
    return importlib.import_module(f"qrag_jax.data.{benchmarks.find(benchmark).data}")


def load(config: DataConfig, split: Split, *, seed: int, **options: Any) -> Sequence[QAExample]:
    """Examples of ``config.benchmark``, which may be a mixture, "hotpotqa:2+musique". ``options`` go to the benchmark's own ``load``.
    Raises ValueError on an unknown name."""
    weights = benchmarks.weights(config.benchmark)
    sources = [reader(name).load(replace(config, benchmark=name), split, seed=seed, **options) for name in weights]
    return sources[0] if len(sources) == 1 else Mixture(sources, list(weights.values()), split, seed=seed)


def context_chunks(benchmark: str, task: str, tokens: int) -> int:
    """Number of chunks that fill a context of ``tokens`` tokens, for benchmarks whose documents have a chosen length."""
    return int(reader(benchmark).context_chunks(task, tokens))
