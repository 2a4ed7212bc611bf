"""Command lines of the experiments: presets, short names for the fields people type most, exit codes."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, TypeVar

import tyro

from experiments import parallel_seeds, seeds
from experiments.options import EVAL_SHORT, long_names, short_names
from experiments.paper.compare import write_comparison
from qrag_jax.config import RunConfig, benchmarks, command_line, presets
from qrag_jax.config.retarget import typed_folder
from qrag_jax.config.watch import Watch
from qrag_jax.rundir.compilations import prepare_compiling
from qrag_jax.rundir.ending import execute
from qrag_jax.rundir.log import NotFinite, Preempted, aside, say

__all__ = ["Command", "execute", "main", "parse", "read", "typed", "working_folder"]

T = TypeVar("T")
C = TypeVar("C", bound="Command")

# Short name -> configuration field.
SHORT = {
    "--task": "--data.task",
    "--data-dir": "--data.data-dir",
    "--data": "--data.data-dir",
    "--embedder": "--model.embedder",
    "--steps": "--train.steps",
    "--seed": "--train.seed",
    "--init-from": "--train.init-from",
    "--curriculum": "--train.curriculum",
    "--reward": "--rl.reward",
    **EVAL_SHORT,
}


@dataclass(frozen=True)
class Command:
    config: Annotated[RunConfig, tyro.conf.arg(name="")]
    preset: str = "tiny"
    """Settings to start from: a name, a .json or .yaml file of settings (a run's config.json, a sweep's best.json), or the folder of a run
    or of an export. A file or folder also sets the default task."""
    run_dir: str = ""
    """Folder of the run, or gs://BUCKET/NAME. The same command on the same folder resumes. Default: runs/BENCHMARK-TASK-PRESET, and the
    name of the data folder if the task could also be generated. If the preset is a file or folder, PRESET is its name. With --seeds, the
    default name ends in -seeds."""
    seeds: tuple[int, ...] = ()
    """Train once with each of these seeds, in RUN_DIR/seed-N, and report their mean and spread. You can add seeds later."""
    parallel: int = 1
    """How many of the seeds to train at a time on this machine, each in a process of its own on its own accelerator or cores."""
    watch: Annotated[Watch, tyro.conf.arg(name="")] = Watch()  # noqa: RUF009  (frozen)
    dry_run: bool = False
    """Show what the run would be, and write nothing: questions, model, devices, memory, time of an update; then all settings as YAML.
    The text is a preset: ... --dry-run > mine.yaml, and later --preset mine.yaml."""


def typed(kind: type, more: Mapping[str, str] | None = None) -> Callable[[str], str]:
    """What :func:`execute` makes of a message: it names options as a user of the command ``kind`` types them.

    ``more``: further names of its options.
    """
    more = {"--benchmark": "--data.benchmark", "--budget": "--eval.budget", **(more or {})}
    return partial(command_line.as_typed, flags=command_line.flags(kind, SHORT if issubclass(kind, Command) else {**SHORT, **more}))


def read(
    kind: type[T],
    words: Sequence[str] | None,
    prog: str,
    description: str,
    default: T | None = None,
    short: Mapping[str, str] | None = None,
) -> T:
    """A command line -> ``kind``. Raises ValueError, with a message of one line, on bad words; ``--help`` exits with 0.

    ``short``: the short names that the caller has replaced in ``words``.
    """
    found: T = command_line.read(kind, words, f"python -m {prog}", description, default, short)
    command_line.refuse_urls(found, "; only experiments.evaluate and the experiments that train take gs://")
    return found


def parse(benchmark: str, description: str, argv: Sequence[str] | None = None, kind: type[C] = Command, default: str = "tiny") -> C:  # type: ignore[assignment]
    """A command line -> a checked configuration. ``default``: the preset if none is given.

    Raises ValueError on unknown options and bad values.
    """
    words = long_names(sys.argv[1:] if argv is None else argv, SHORT)
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    # An option without its value is refused below, in one line.
    first.add_argument("--preset", nargs="?", const=default, default=default)
    first.add_argument("--data.task", dest="task", nargs="?")
    first.add_argument("--data.data-dir", "--data.data_dir", dest="data", nargs="?")
    first.add_argument("--train.seed", dest="seed", nargs="?", const="")
    first.add_argument("--seeds", nargs="*")
    known, _ = first.parse_known_args(words)
    config = presets.preset(known.preset, benchmark, known.task)
    name = Path(known.preset).stem if presets.is_run(known.preset) else known.preset
    run_dir = f"runs/{benchmark}-{config.data.task}-{name}{_data_name(benchmark, config.data.task, known.data)}" + (
        "" if known.seeds is None else "-seeds"
    )
    about = f"{description}\n\n{_lists(benchmark)}"
    command = read(kind, words, f"experiments.{benchmark}", about, kind(config, known.preset, run_dir), SHORT)
    data = command.config.data
    command = replace(command, config=replace(command.config, data=replace(data, data_dir=typed_folder(data.data_dir))))
    if known.seeds is not None:
        if known.seed is not None:
            raise ValueError("--seed and --seeds: give one of them")
        seeds.check_seeds(command.config, command.seeds)
    parallel_seeds.check_parallel(command.parallel, command.seeds)
    return command


def _data_name(benchmark: str, task: str, folder: str | None) -> str:
    """The end of the default run directory of a task that can be generated, if its data is read from a folder instead."""
    if folder in (None, "none") or not benchmarks.task(benchmark, task).generated:
        return ""
    return f"-{Path(str(folder)).expanduser().resolve().stem}"


def _lists(benchmark: str) -> str:
    """Tasks, presets and short names, for the help."""
    tasks = ", ".join(benchmarks.find(benchmark).names)
    named = f"{', '.join(presets.PRESETS)}, a .json or .yaml file, or the folder of a run"
    return f"Tasks: {tasks}. Presets: {named}. {short_names(SHORT)}"


def main(
    benchmark: str,
    description: str,
    argv: Sequence[str] | None = None,
    *,
    kind: type[C] = Command,  # type: ignore[assignment]
    default: str = "tiny",
    prepare: Callable[[C, Path], RunConfig | None] = lambda command, folder: command.config,
) -> int:
    """Runs the experiment of a benchmark and returns its exit code; see :mod:`qrag_jax.rundir.ending`.

    ``kind`` and ``default``: as for :func:`parse`. ``prepare``: what comes before the training in the folder of the run; the configuration
    to train with, or None to train nothing.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

    def run() -> int | None:
        command = parse(benchmark, description, argv, kind, default)
        from experiments.paper.plots import draw_context
        from qrag_jax.rundir import hosts
        from qrag_jax.train import training

        if command.dry_run:
            _show_dry_run(command)
            return None
        prepare_compiling()
        hosts.start()
        with working_folder(command.run_dir) as folder:
            config = prepare(command, folder)
            if config is None:
                return None
            if command.parallel > 1:
                return parallel_seeds.run(config, folder, command.seeds, command.watch, command.parallel)
            if command.seeds:
                seeds.run(config, folder, command.seeds, command.watch)
                return None
            rows = training.run(config, folder, watch=command.watch)
            if hosts.is_leader():
                write_comparison(folder, rows, config, config)
                draw_context(rows, folder / "context.png")
        return None

    return execute(run, typed(kind))


def _show_dry_run(command: Command) -> None:
    from qrag_jax.rundir import hosts
    from qrag_jax.train.dry_run import dry_run

    with aside():  # all else that is said, so that the output is a preset
        prepare_compiling()
        hosts.start()
        config = seeds.with_seed(command.config, command.seeds[0]) if command.seeds else command.config
        run_dir = f"{command.run_dir}/seed-{command.seeds[0]}" if command.seeds else command.run_dir
        text = dry_run(config, run_dir)
    say(text.rstrip())


@contextmanager
def working_folder(run_dir: str) -> Iterator[Path]:
    """The local folder to work in: ``run_dir`` itself, or for gs:// a local copy, which process 0 keeps sending to the bucket to the end.

    Called by all processes. Raises what :class:`qrag_jax.rundir.bucket.Mirror` raises.
    """
    from qrag_jax.rundir import bucket, hosts
    from qrag_jax.rundir.stop import stop_requests

    if not bucket.is_url(run_dir):
        yield Path(run_dir)
        return
    with stop_requests():
        try:
            with hosts.leader_only(lambda: bucket.Mirror(run_dir)):
                yield bucket.home(run_dir) / "run"
        except (Preempted, NotFinite):
            hosts.barrier()
            raise
        hosts.barrier()  # process 0, which sends, leaves last
