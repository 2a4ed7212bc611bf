"""Searches for good settings: trains a benchmark many times, compares the trials on validation questions, and saves the best as a preset.

    python -m experiments.sweep experiments/sweep/qa1.yaml                   # starts or resumes; on another machine, joins the sweep
    python -m experiments.sweep experiments/sweep/qa1.yaml --retry-failed
    python -m experiments.sweep report runs/sweep-qa1                        # rewrites the report, also while trials run
    python -m experiments.babilong --preset runs/sweep-qa1/best.json         # trains with the best settings

docs/sweeps.md explains the keys of a specification, and how trials are chosen, shared and stopped. Test questions are never used: settings
are chosen on validation questions only. Needs Optuna: pip install 'qrag-jax[sweep]'.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import tyro

from experiments.cli import execute, read, typed, working_folder
from experiments.sweep.spec import Spec, read_spec
from qrag_jax.config import RunConfig
from qrag_jax.rundir.log import say

REPORT = "report"


@dataclass(frozen=True)
class Command:
    spec: tyro.conf.Positional[Path]
    """Specification, a .yaml or .toml file; or the word report, followed by a sweep's folder."""
    run_dir: str | None = None
    """Folder of the sweep, or gs://BUCKET/NAME for a sweep on one machine. The same command on the same folder resumes. Default: run_dir of
    the specification, or runs/sweep-NAME."""
    retry_failed: bool = False
    """Try failed trials again, from their last checkpoint."""
    parallel: int | None = None
    """How many trials to run at a time on this machine, each on its own accelerator or cores. Default: parallel of the specification."""


@dataclass(frozen=True)
class Report:
    run_dir: tyro.conf.Positional[Path]
    """Folder of a sweep."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code: 0 done (even if trials failed), 64 bad input, 75 interrupted (run again to resume)."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] == [REPORT]:
        return execute(lambda: report(read(Report, words[1:], f"experiments.sweep {REPORT}", __doc__ or "")))
    return execute(lambda: run(read(Command, words, "experiments.sweep", __doc__ or "")), typed(Command))


def run(command: Command) -> None:
    from qrag_jax.rundir import hosts

    hosts.start()

    def read_all() -> tuple[Spec, str]:
        spec, run_dir = read_spec(command.spec)
        if command.parallel is not None:
            spec = replace(spec, settings=replace(spec.settings, parallel=command.parallel))
        need_optuna()
        check_data(spec, command.spec)
        return spec, command.run_dir or run_dir

    spec, run_dir = hosts.run_on_all(read_all) if hosts.is_multiprocess() else read_all()
    with working_folder(run_dir) as folder:
        if hosts.is_multiprocess():
            from experiments.sweep.hosts import run as run_on_hosts

            run_on_hosts(spec, folder, command.retry_failed)
            hosts.from_leader(lambda: _tell(folder))
        else:
            _run_here(spec, folder, command.retry_failed)


def _run_here(spec: Spec, folder: Path, retry_failed: bool) -> None:
    from experiments.sweep.run import run
    from experiments.sweep.study import Sweep

    sweep = Sweep(spec, folder)
    if retry_failed:
        say(f"failed trials that will be tried again: {sweep.retry_failed()}")
    run(sweep)
    _tell(folder)


def report(command: Report) -> None:
    need_optuna()
    _tell(command.run_dir)


def need_optuna() -> None:
    """Raises ValueError if Optuna is not installed."""
    try:
        import optuna  # noqa: F401
    except ImportError:
        raise ValueError("sweeps need Optuna: pip install 'qrag-jax[sweep]'") from None


def check_data(spec: Spec, path: Path) -> None:
    """Raises ValueError if the questions of the first trial cannot be read."""
    from qrag_jax.evaluate.sets import validation_set
    from qrag_jax.train.batches import stage_examples

    config: RunConfig = spec.base
    try:
        validation_set(config)
        for stage in config.train.stages(config.data):
            stage_examples(config, stage)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _tell(run_dir: Path) -> None:
    from experiments.sweep.report import best_of, evaluation, write_report
    from experiments.sweep.study import Sweep

    sweep = Sweep.open(run_dir)
    rows = write_report(sweep)
    failed, running = ([row for row in rows if row.state == state] for state in ("failed", "running"))
    if failed:
        say(f"failed trials: {len(failed)}; the reasons are in {run_dir / 'sweep.md'}; --retry-failed tries them again")
    if running:
        say(f"trials that are still running, here or elsewhere: {len(running)}")
    if (best := best_of(rows)) is not None:
        say(f"best on validation: {best.name}, {best.values}; to evaluate it on the test questions:\n  {evaluation(sweep, best)}")
    say(f"the report is in {run_dir}")


if __name__ == "__main__":
    raise SystemExit(main())
