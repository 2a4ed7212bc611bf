"""Command lines of the experiments: presets, short names for the fields people type most, exit codes."""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import platform
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

import tyro

from experiments.paper.compare import write_comparison
from qrag_jax.config import RunConfig, presets
from qrag_jax.reader.protocol import ReaderError
from qrag_jax.rundir.log import CannotWrite, NotFinite, Preempted

T = TypeVar("T")
EXIT_BAD_CONFIGURATION = 64
EXIT_NOT_FINITE = 70
EXIT_CANNOT_WRITE = 74
EXIT_PREEMPTED = 75

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
    "--eval": "--eval.benchmarks",
    "--eval-tokens": "--eval.tokens",
    "--eval-episodes": "--eval.episodes",
    "--reader": "--eval.reader",
    "--reward": "--rl.reward",
}


@dataclass(frozen=True)
class Command:
    config: Annotated[RunConfig, tyro.conf.arg(name="")]
    preset: str = "tiny"
    """Settings to start from: a name, or a .json file with a configuration (a run's config.json, a sweep's best.json), whose task is then
    the default."""
    run_dir: str = ""
    """Folder of the run, or gs://BUCKET/NAME; the same command on the same folder resumes. Default: runs/BENCHMARK-TASK-PRESET (of a file:
    its name)."""


def read(kind: type[T], words: Sequence[str] | None, prog: str, description: str, default: T | None = None) -> T:
    """A command line -> ``kind``. Raises ValueError, in one line, on anything it cannot read; ``--help`` exits with 0."""
    shown = io.StringIO()
    options: Any = {} if default is None else {"default": default}
    try:
        with contextlib.redirect_stderr(shown):
            found = tyro.cli(kind, args=words, prog=f"python -m {prog}", description=description, **options)
    except SystemExit as stop:
        if not stop.code:
            raise
        # tyro draws a box around what it has to say.
        raise ValueError(" ".join(re.sub(r"[^\S ]|[\u2500-\u257f]|-{3,}", " ", shown.getvalue()).split())) from None
    for name, value in vars(found).items():
        if isinstance(value, Path) and value.parts[:1] == ("gs:",):
            raise ValueError(f"{name} = {value}: must be a folder of this machine; only experiments that train, and evaluate, take gs://")
    return found


def parse(benchmark: str, tasks: Sequence[str], default_task: str, description: str, argv: Sequence[str] | None = None) -> Command:
    """A command line -> a checked configuration. Raises ValueError on unknown options and bad values."""
    words = [_long(word) for word in (sys.argv[1:] if argv is None else argv)]
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--preset", default="tiny")
    first.add_argument("--data.task", dest="task")
    known, _ = first.parse_known_args(words)
    if known.task is None:
        known.task = presets.read(known.preset, benchmark).data.task if presets.is_file(known.preset) else default_task
    if known.task not in tasks:
        raise ValueError(f"task {known.task!r}: unknown; known: {', '.join(tasks)}")
    short = "\n".join(f"  {name} = {field}" for name, field in SHORT.items())
    text = f"{description}\n\nPresets: {', '.join(presets.PRESETS)}, or a .json file. Short names:\n{short}"
    name = Path(known.preset).stem if presets.is_file(known.preset) else known.preset
    default = Command(presets.preset(known.preset, benchmark, known.task), known.preset, f"runs/{benchmark}-{known.task}-{name}")
    return read(Command, words, f"experiments.{benchmark}", text, default)


def _long(word: str) -> str:
    name, equals, value = word.partition("=")
    return SHORT.get(name, name) + equals + value


def main(benchmark: str, tasks: Sequence[str], default_task: str, description: str, argv: Sequence[str] | None = None) -> int:
    """Runs an experiment and returns its exit code, as :func:`execute`."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

    def run() -> None:
        command = parse(benchmark, tasks, default_task, description, argv)
        from experiments.paper.plots import draw_context
        from qrag_jax.train import hosts, training

        keep_compilations()
        hosts.start()
        with working_folder(command.run_dir) as folder:
            rows = training.run(command.config, folder)
            if hosts.is_leader():
                write_comparison(folder, rows, command.config, command.config)
                draw_context(rows, folder / "context.png")

    return execute(run)


@contextmanager
def working_folder(run_dir: str) -> Iterator[Path]:
    """Where to work on a run directory: there, or for one in a bucket in a folder that process 0 keeps the bucket like, to the end.

    Called by all processes. Raises what :class:`qrag_jax.rundir.bucket.Mirror` does.
    """
    from qrag_jax.rundir import bucket
    from qrag_jax.train import hosts
    from qrag_jax.train.stop import stop_requests

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
        hosts.barrier()  # the last to leave is the one that sends


def keep_compilations() -> None:
    """Compiled programs are kept for the next start: in JAX_COMPILATION_CACHE_DIR, or the user's cache, a folder for each machine."""
    import jax

    if getattr(jax.config, "jax_compilation_cache_dir") is None:  # noqa: B009 (jax makes it at run time, unseen by mypy)
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(cache / "qrag-jax" / f"compiled-{platform.node()}"))


def execute(run: Callable[[], None]) -> int:
    """The exit code of a command.

    0    done
    64   bad input
    70   NaN or infinity in an update; the same command would meet it again
    74   the disk is full or broken, or the bucket takes nothing; the same command goes on once that is mended
    75   preempted, or the reader is out of reach, with everything so far saved: run the same command again
    """
    try:
        run()
    except ValueError as error:
        sys.stderr.write(f"error: {error}\n")
        return EXIT_BAD_CONFIGURATION
    except NotFinite as error:
        sys.stderr.write(f"error: {error}\n")
        return EXIT_NOT_FINITE
    except CannotWrite as error:
        sys.stderr.write(f"error: {error}\n")
        return EXIT_CANNOT_WRITE
    except Preempted as stop:
        sys.stderr.write(f"preempted: {stop}\n")
        return EXIT_PREEMPTED
    except ReaderError as error:
        sys.stderr.write(f"error: {error}\nnothing is lost; run the same command again to ask the rest\n")
        return EXIT_PREEMPTED
    return 0
