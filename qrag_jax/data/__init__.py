"""Where questions come from. A benchmark is one file with a ``load`` function, and one line here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from qrag_jax.config import DataConfig
from qrag_jax.data import babilong
from qrag_jax.data.splits import Split
from qrag_jax.types import QAExample

BENCHMARKS: dict[str, Callable[..., Sequence[QAExample]]] = {
    "babilong": babilong.load,
}
"""name -> load(config, split, *, seed, chunks=None, group=None, haystacks=None)"""


def load(config: DataConfig, split: Split, **options: Any) -> Sequence[QAExample]:
    """Examples of ``config.benchmark``. ``options`` are those of the benchmark's own ``load``. Raises ValueError on an unknown name."""
    if config.benchmark not in BENCHMARKS:
        raise ValueError(f"data.benchmark = {config.benchmark!r}: unknown; known: {', '.join(BENCHMARKS)}")
    return BENCHMARKS[config.benchmark](config, split, **options)
