"""Changes a configuration to other questions: another benchmark, task or data folder, or another test."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from qrag_jax.config import DataConfig, EvalConfig, RunConfig, benchmarks

GENERATED = "none"
"""The value of --data-dir that asks for generated questions."""


def retarget(
    config: RunConfig,
    *,
    benchmark: str | None = None,
    task: str | None = None,
    data_dir: str | None = None,
    skip_bad: bool | None = None,
    chunks: int | None = None,
    seed: int | None = None,
) -> RunConfig:
    """``config`` with other questions. An argument of None changes nothing, except that a new benchmark without a task gets its usual
    task. A new benchmark or task is tested alone: the other benchmarks that the old one was tested with are dropped.

    A ``data_dir`` of "none" asks for generated questions. Raises ValueError on an unknown benchmark or task.
    """
    old = config.data
    if benchmark is not None and benchmark != old.benchmark:
        usual = old.task if "+" in benchmark else benchmarks.find(benchmark).default_task
    else:
        benchmark, usual = old.benchmark, old.task
    new = replace(
        old,
        benchmark=benchmark,
        task=usual if task is None else task,
        data_dir=old.data_dir if data_dir is None else typed_folder(data_dir),
        skip_bad=old.skip_bad if skip_bad is None else skip_bad,
        chunks=old.chunks if chunks is None else chunks,
    )
    test = config.eval
    if (new.benchmark, new.task) != (old.benchmark, old.task):
        benchmarks.task(new.benchmark, new.task)
        test = replace(test, benchmarks=())
    return replace(config, data=new, eval=test, train=config.train if seed is None else replace(config.train, seed=seed))


def typed_folder(data_dir: str | None) -> str | None:
    """The value of --data-dir -> ``DataConfig.data_dir``: "none" becomes None."""
    return None if data_dir is None or data_dir.lower() == GENERATED else data_dir


def retest(test: EvalConfig, **changes: Any) -> EvalConfig:
    """``test`` with the fields of ``changes`` that are not None. Raises ValueError on bad values.

    Fields that would no longer fit are adapted, unless they are given too: there are at most as many haystacks as questions, and without
    a reader that runs here, its number of devices and its dtype are the defaults.
    """
    given = {name: value for name, value in changes.items() if value is not None}
    if not given.get("reader", test.reader).startswith("flax:"):
        given = {"reader_devices": EvalConfig.reader_devices, "reader_dtype": EvalConfig.reader_dtype} | given
    if "haystacks" not in given:
        given["haystacks"] = min(test.haystacks, max(1, given.get("episodes", test.episodes)))
    return replace(test, **given)


def only_tested(config: RunConfig, test: EvalConfig) -> RunConfig:
    """``config`` for ``test`` alone. Training settings that would be refused or have no use are reset: the curriculum and, without a
    reader, rewards from answers."""
    rl = config.rl if test.reader != "none" else replace(config.rl, reward="support")
    return replace(config, rl=rl, train=replace(config.train, curriculum=()), eval=test)


def parts(data: DataConfig) -> list[DataConfig]:
    """The parts that are tested one by one: the benchmarks of a mixture, and the tasks behind a name that stands for several."""
    each = [replace(data, benchmark=name) for name in benchmarks.weights(data.benchmark)]
    return [replace(one, task=task) for one in each for task in benchmarks.task(one.benchmark, one.task).parts or (one.task,)]


def others(data: DataConfig, names: Sequence[str]) -> list[DataConfig]:
    """``data`` for other benchmarks, each BENCHMARK or BENCHMARK/TASK.

    Raises ValueError on unknown names, repeated names, and those that ``data`` covers already.
    """
    known = {(part.benchmark, part.task) for part in parts(data)}
    found = []
    for name in names:
        one = benchmarks.named(name)
        if one in known:
            raise ValueError(f"eval.benchmarks: {'/'.join(one)} is tested already; name each benchmark and task once")
        known.add(one)
        found.append(replace(data, benchmark=one[0], task=one[1]))
    return found
