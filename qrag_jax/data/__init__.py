"""Where questions come from. A benchmark is one file with a ``load`` function, and one line here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from qrag_jax.config import DataConfig, lengths
from qrag_jax.data import mixture
from qrag_jax.data.babilong import documents as babilong
from qrag_jax.data.multihop import hotpotqa, musique, own, twowiki
from qrag_jax.data.ruler import tasks as ruler
from qrag_jax.data.splits import Split
from qrag_jax.types import QAExample


@dataclass(frozen=True)
class Benchmark:
    """``load(config, split, *, seed, chunks=None, group=None, haystacks=None)``; ``chunks(task, tokens)``: how many fill a context,
    None where documents come as they are. ``task``: the one that is meant where none is named."""

    load: Callable[..., Sequence[QAExample]]
    chunks: Callable[[str, int], int] | None = None
    task: str = "all"


BENCHMARKS: dict[str, Benchmark] = {
    "babilong": Benchmark(babilong.load, lambda task, tokens: lengths.context_chunks(tokens), "qa2"),
    "hotpotqa": Benchmark(hotpotqa.load),
    "musique": Benchmark(musique.load),
    "own": Benchmark(own.load),
    "ruler": Benchmark(ruler.load, ruler.context_chunks, "niah_mk3"),
    "twowiki": Benchmark(twowiki.load),
}


def load(config: DataConfig, split: Split, **options: Any) -> Sequence[QAExample]:
    """Examples of ``config.benchmark``, or of several: "hotpotqa:2+musique". ``options`` are those of the benchmark's own ``load``.
    Raises ValueError on an unknown name."""
    if "+" in config.benchmark:
        return mixture.load({name: entry.load for name, entry in BENCHMARKS.items()}, config, split, **options)
    return benchmark(config.benchmark).load(config, split, **options)


def benchmark(name: str) -> Benchmark:
    """Raises ValueError on an unknown name."""
    if name not in BENCHMARKS:
        raise ValueError(f"data.benchmark = {name!r}: unknown; known: {', '.join(BENCHMARKS)}")
    return BENCHMARKS[name]


def others(config: DataConfig, names: Sequence[str]) -> list[DataConfig]:
    """``config`` for other benchmarks, each BENCHMARK or BENCHMARK/TASK.

    Raises ValueError on unknown ones, repeated ones, and those that ``config`` is of.
    """
    known = {(part.benchmark, part.task) for part in parts(config)}
    found = []
    for name in names:
        benchmark_name, _, task = name.partition("/")
        try:
            one = (benchmark_name, task or benchmark(benchmark_name).task)
        except ValueError:
            raise ValueError(f"eval.benchmarks: {benchmark_name!r} is unknown; known: {', '.join(BENCHMARKS)}") from None
        if one in known:
            raise ValueError(f"eval.benchmarks: {'/'.join(one)} is tested already; name each benchmark and task once")
        known.add(one)
        found.append(replace(config, benchmark=one[0], task=one[1]))
    return found


def parts(config: DataConfig) -> list[DataConfig]:
    """The benchmarks of a mixture, or RULER's needle tasks, one by one."""
    if config.benchmark == "ruler" and config.task == ruler.ALL_NEEDLES:
        return [replace(config, task=alias) for alias in ruler.ALIASES]
    return [replace(config, benchmark=name) for name in mixture.parse_mixture(config.benchmark, tuple(BENCHMARKS))]
