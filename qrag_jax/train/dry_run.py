"""What a run would do, without doing it: its configuration, questions, model, devices, memory and the time of an update.

Reads everything that training reads, and makes a few updates that are thrown away. Writes nothing.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import jax

from qrag_jax.config import RunConfig
from qrag_jax.evaluate.sets import validation_set
from qrag_jax.rundir.bucket import is_url
from qrag_jax.rundir.checkpoint import saved_steps
from qrag_jax.rundir.hosts import from_leader, run_on_all
from qrag_jax.rundir.log import say
from qrag_jax.train import describe
from qrag_jax.train.loop import Updates, make_updates
from qrag_jax.train.model import Model
from qrag_jax.train.parallel import choose_devices
from qrag_jax.train.plan import Plan
from qrag_jax.train.training import check_reward, check_run_dir, default_numbers, prepare
from qrag_jax.types import TaskBatch

TIMED = 3
"""Updates that are timed, after one that is not."""


def dry_run(config: RunConfig, run_dir: str | Path) -> str:
    """The configuration as YAML, with all else as comments: the text is a preset. Called by all processes.

    Raises what :func:`qrag_jax.train.training.run` raises before its first update, also about what ``run_dir`` already holds (a folder;
    a bucket is not looked at).
    """
    check_reward(config)
    with default_numbers():
        devices = choose_devices(config.train, config.optim.batch)
        folder = Path("/nonexistent") if is_url(run_dir) else Path(run_dir)
        if not is_url(run_dir):
            from_leader(lambda: check_run_dir(config, folder))
        tests, stages, model = run_on_all(lambda: prepare(config, folder, True))
        lines = [
            f"A dry run: nothing was written. The run would be in {run_dir}{from_leader(lambda: resumes(folder))}.",
            describe.devices_line(devices),
            *describe.questions_lines(config, stages, validation_set(config), tests),
            *(f"  {line}" for i in range(2) for line in describe.example_lines(stages[-1][1][i])),
            *model_lines(config, model),
            *update_lines(config, folder, model, stages, devices),
        ]
    return "".join(f"# {line}\n" for line in lines) + config.to_yaml()


def resumes(run_dir: Path) -> str:
    """Where a run in this folder would resume; nothing if it would begin."""
    steps = saved_steps(run_dir)
    return f", where it resumes after update {steps[0]}" if steps else ""


def model_lines(config: RunConfig, model: Model) -> list[str]:
    """The parameters of the model and of each module; both encoders are listed once if they are alike."""
    parts = describe.modules(model)
    names = list(dict.fromkeys(name.partition(".")[0] for name in parts))
    first = {name: number for name, number in parts.items() if name.startswith(f"{names[0]}.")}
    return [describe.model_line(config, model), *(f"  {name}: {number:,}" for name, number in first.items())] + [
        f"  {name}: the same as {names[0]}" for name in names[1:]
    ]


def update_lines(config: RunConfig, run_dir: Path, model: Model, stages: describe.Stages, devices: tuple[jax.Device, ...]) -> list[str]:
    """Batch shapes, memory plan and time of an update, for each stage."""
    if config.rl.asks_reader:
        return [f"time of an update: not measured, since it needs the answers of a reader (rl.reward {config.rl.reward})"]
    updates = make_updates(config, run_dir, model, stages, devices)
    lines, done, total = [], 0, 0.0
    for stage, _ in stages:
        batch = updates.batches[stage.until - 1]
        plan, compiling, each = time_update(config, updates, batch, stage.until)
        lines.append(f"batch of {stage.task} with {stage.chunks} chunks: {describe.shapes_line(batch)}")
        lines += [] if plan is None else [str(plan)]
        lines.append(f"time of an update: {describe.duration(each)}, after compiling for {describe.duration(compiling)}")
        total += compiling + each * (stage.until - done)
        done = stage.until
    all_updates = f"time of {config.train.steps:,} updates: about {describe.duration(total)}"
    return [*lines, f"{all_updates}, without validations and the final evaluation"]


def time_update(config: RunConfig, updates: Updates, batch: TaskBatch, step: int) -> tuple[Plan | None, float, float]:
    """The plan of an update like number ``step``, the seconds to compile it, and those of an update afterwards.

    Raises ValueError if it does not fit.
    """
    state = updates.parallel.place(replace(updates.start(), base=updates.base))
    began = time.perf_counter()
    plan = updates.plan(config, batch, step)
    state, metrics = updates(state, batch, step)
    jax.block_until_ready(metrics)
    first = time.perf_counter() - began
    say(f"the first update took {describe.duration(first)}, with compiling; timing {TIMED} more")
    began = time.perf_counter()
    for _ in range(TIMED):
        state, metrics = updates(state, batch, step)
    jax.block_until_ready((state.params, metrics))
    each = (time.perf_counter() - began) / TIMED
    return plan, max(first - each, 0.0), each
