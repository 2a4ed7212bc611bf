"""Measures what it costs a training to record its figures, in metrics.jsonl and with `--track`.

    python -m experiments.speed.watching --run-dir runs/speed-watching
    python -m experiments.speed.watching --run-dir runs/speed-watching --preset minilm --task qa2 --track tensorboard

A sample is the real updates between two records (`train.log_every`) and the record. Samples without a record and with each kind of record
are made in turn, in another order each round. Two figures come from them: the seconds in the calls that record, as a share of the seconds
of the updates (medians); and the whole difference to the sample without a record of the same round (median and quartiles), which is as
noisy as the machine. Validations are not part of it. The results are watching.json and watching.md in RUN_DIR.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from experiments.cli import execute, read, typed
from qrag_jax.config import RunConfig, presets
from qrag_jax.config.watch import TRACKERS, Watch
from qrag_jax.rundir.files import check_folder, write_json, write_text

NOTHING, OWN = "nothing", "metrics.jsonl"
DISTINCT = 4  # batches, used again and again


@dataclass(frozen=True)
class Command:
    run_dir: Path
    """Folder for watching.json and watching.md. Its subfolder .scratch holds the records while the command runs."""
    preset: str = "tiny"
    """The settings whose updates are made: a name, a .json or .yaml file of settings, or the folder of a run."""
    task: str = "qa1"
    """The task of BabiLong, if the preset is a name."""
    track: tuple[str, ...] = TRACKERS
    """Which trackers, each together with metrics.jsonl."""
    rounds: int = 30
    """Samples of each kind."""

    def __post_init__(self) -> None:
        Watch(self.track)
        if self.rounds < 2:
            raise ValueError(f"rounds = {self.rounds}: must be 2 or more")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code: 0 done, 64 bad input."""
    return execute(lambda: run(read(Command, argv, "experiments.speed.watching", __doc__ or "")), typed(Command))


def run(command: Command) -> None:
    check_folder(command.run_dir)
    config = presets.preset(command.preset) if presets.is_run(command.preset) else presets.preset(command.preset, "babilong", command.task)
    if config.rl.asks_reader:
        raise ValueError(f"rl.reward = {config.rl.reward!r}: updates that ask a reader are not measured; choose another preset")
    from experiments.speed.timing import describe_machine
    from qrag_jax.rundir.compilations import prepare_compiling
    from qrag_jax.rundir.log import say
    from qrag_jax.rundir.sinks import check_trackers

    check_trackers(command.track)
    prepare_compiling()
    scratch = command.run_dir / ".scratch"
    shutil.rmtree(scratch, ignore_errors=True)
    before = os.getloadavg()[0]
    try:
        samples = measure(config, command.track, command.rounds, scratch)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    report = {
        "schema": 1,
        "preset": command.preset,
        "task": config.data.task,
        "updates": config.train.log_every,
        "rounds": command.rounds,
        "load": [before, os.getloadavg()[0]],
        "machine": describe_machine(1024, 3),
        "kinds": {kind: figures(found, samples[NOTHING]) for kind, found in samples.items() if kind != NOTHING},
        "samples": samples,
    }
    write_json(command.run_dir / "watching.json", report)
    write_text(command.run_dir / "watching.md", markdown(report))
    say(f"\n{markdown(report)}\nwatching.json and watching.md are in {command.run_dir}")


def measure(config: RunConfig, track: Sequence[str], rounds: int, scratch: Path) -> dict[str, list[list[float]]]:
    """Kind of record -> for each round, the seconds of the updates and of the record."""
    import jax

    from qrag_jax.rundir.log import RunLog, progress
    from qrag_jax.train.loop import make_updates, record
    from qrag_jax.train.parallel import choose_devices
    from qrag_jax.train.training import default_numbers, prepare
    from qrag_jax.train.window import Window

    count, transitions = config.train.log_every, config.optim.batch * config.rl.budget
    with ExitStack() as stack:
        stack.enter_context(default_numbers())
        _, stages, model = prepare(config, scratch, test=False)
        updates = make_updates(config, scratch, model, stages, choose_devices(config.train, config.optim.batch))
        state = updates.parallel.place(replace(updates.start(), base=updates.base))
        batches, bar = [updates.batches[i] for i in range(DISTINCT)], progress(disable=True)
        logs: dict[str, RunLog | None] = {NOTHING: None}
        for kind in (OWN, *track):
            write_text(scratch / kind / "config.json", config.to_json())
            log = logs[kind] = stack.enter_context(RunLog(scratch / kind, () if kind == OWN else (kind,)))
            log.rewind(-1)

        def sample(log: RunLog | None, step: int) -> list[float]:
            nonlocal state
            window, began = Window(), time.perf_counter()
            for i in range(count):
                batch = batches[i % DISTINCT]
                state, metrics = updates(state, batch, 1)
                window.add(metrics, updates.texts(batch, config.rl.budget))
            jax.block_until_ready(metrics)
            worked = time.perf_counter()
            if log is not None:
                record(window, step, worked, transitions, log, bar, None)
            return [worked - began, time.perf_counter() - worked]

        kinds, found = list(logs), {kind: list[list[float]]() for kind in logs}
        for number in range(rounds + 1):
            for i in range(len(kinds)):
                kind = kinds[(i + number) % len(kinds)]
                taken = sample(logs[kind], number * count)
                if number:  # the first round compiles, and opens files
                    found[kind].append(taken)
    return found


def figures(found: Sequence[Sequence[float]], without: Sequence[Sequence[float]]) -> dict[str, Any]:
    """Medians of a kind of record: seconds of the updates, of a record, its share, and the differences to samples without a record."""
    shares = [recorded / worked for worked, recorded in found]
    added = [sum(one) / sum(other) - 1 for one, other in zip(found, without, strict=True)]
    return {
        "updates_s": median(worked for worked, _ in found),
        "record_s": median(recorded for _, recorded in found),
        "share": median(shares),
        "added": median(added),
        "added_quartiles": quantiles(added, n=4)[::2],
    }


def markdown(report: Mapping[str, Any]) -> str:
    """The text of watching.md."""
    lines = [
        f"| {kind} | {one['updates_s']:.3f} s | {1000 * one['record_s']:.1f} ms | {one['share']:.2%} | {one['added']:+.1%} "
        f"({one['added_quartiles'][0]:+.1%} to {one['added_quartiles'][1]:+.1%}) |"
        for kind, one in report["kinds"].items()
    ]
    machine = report["machine"]
    return (
        f"Preset {report['preset']}, {report['task']}: a record after {report['updates']} updates, {report['rounds']} rounds. "
        f"{machine['cpu'] or 'CPU of unknown name'}, {machine['cores']} cores; load average {report['load'][0]:.1f} before and "
        f"{report['load'][1]:.1f} after.\n\n"
        "| recorded in | the updates | a record | share of the updates | difference to no record (quartiles) |\n"
        "| --- | --- | --- | --- | --- |\n" + "\n".join(lines) + "\n"
    )


if __name__ == "__main__":
    raise SystemExit(main())
