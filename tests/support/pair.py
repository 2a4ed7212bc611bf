"""Two processes that train together, and files that show what they did: run ``python -m tests.support.pair FOLDER`` in each of them.

One pair plays all scenes, because starting a pair costs more than a scene. For each scene, each process writes FOLDER/SCENE-PROCESS.json,
with its exit code and its output. ``python -m tests.support.pair FOLDER SCENE`` plays one scene, in any number of processes.
"""

from __future__ import annotations

import errno
import io
import json
import os
import signal
import sys
import warnings
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import yaml

from experiments.cli import execute
from experiments.sweep.__main__ import main as sweep
from qrag_jax.config import RunConfig
from qrag_jax.rl.rewards import support_reward
from qrag_jax.rundir import hosts
from qrag_jax.rundir.log import CannotWrite, NotFinite, Preempted
from qrag_jax.rundir.progress import Progress
from qrag_jax.train import window
from qrag_jax.train.batches import Batches, stage_examples
from qrag_jax.train.loop import save
from qrag_jax.train.parallel import Parallel, choose_devices, make_parallel
from qrag_jax.train.training import open_checkpoints
from tests.support import sharded
from tests.support.runs import command
from tests.support.small import SMALL, changed, dotted, options, small_learner, small_tokenizer

COUNT = 2
CONFIG = changed(SMALL, rl={"budget": 2})  # the whole batch has 8 episodes
TRAIN = options(train={"steps": 20}, rl={"budget": 2}, eval={"budget": 2})
# Four picks of 16 chunks find more facts than one pick; a state of 15 chunks would be longer than the embedder can read.
SPEC: dict[str, Any] = {
    **{"benchmark": "babilong", "task": "qa1", "method": "grid", "prune": True, "prune_startup": 1, "prune_warmup": 0},
    "fixed": dotted(train={"steps": 8, "log_every": 2, "eval_every": 4, "checkpoint_every": 4}, rl={"budget": 2}),
    "space": {"eval.budget": {"values": [4, 1, 15]}},
}
del SPEC["fixed"]["data.task"]
# 16 updates with four validations each, so that a signal meets a trial under way. Two seeds have the same programs.
SEEDS: dict[str, Any] = {"fixed": SPEC["fixed"] | {"train.steps": 16}, "space": {"train.seed": {"values": [0, 1]}}, "prune": False}


def write_spec(path: Path, **changes: Any) -> Path:
    path.write_text(yaml.safe_dump(json.loads(json.dumps(SPEC | changes))))
    return path


def batches(config: RunConfig, *share: Any) -> Batches:
    stages = [(stage, stage_examples(config, stage)) for stage in config.train.stages(config.data)]
    return Batches(config.data, config.optim.batch, small_tokenizer(), stages, *share)


def gradients(kind: str, devices: tuple[jax.Device, ...]) -> dict[str, np.ndarray]:
    """Every parameter's gradient of the first update by name, and the loss, in this process's part of the devices."""
    learner, state = small_learner(CONFIG)

    def function(state, batch, axis_name=None):
        episode = learner.collect(state, batch, axis_name)
        targets = learner.targets(state, batch, episode, jax.vmap(support_reward)(episode.picked, batch.support), axis_name)
        grads, metrics = learner.gradient(state, batch, episode, targets, axis_name)
        loss = metrics["loss"] if axis_name is None else jax.lax.pmean(metrics["loss"], axis_name)
        return {"grads": grads, "loss": loss}, {}

    parallel = make_parallel(function, kind, devices)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Some donated buffers were not usable")  # the state is given away for its gradient
        found, _ = parallel.update(parallel.place(state), batches(CONFIG, parallel.share)[0])
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree.leaves_with_path(parallel.fetch(found))}


def play_gradients(folder: Path) -> int:
    """Writes folder/gradients.npz."""
    found = gradients("auto", choose_devices(CONFIG.train, CONFIG.optim.batch))
    if hosts.is_leader():
        np.savez(folder / "gradients.npz", **found)
    return 0


def play_sharded(folder: Path) -> int:
    """Writes folder/sharded.npz: raw gradients, and three updates with each optimiser, of a state that is split over all devices."""
    make = lambda function: make_parallel(function, "auto", choose_devices(CONFIG.train, CONFIG.optim.batch), "full")
    rows = lambda parallel: batches(CONFIG, parallel.share)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Some donated buffers were not usable")
        found = {f"gradient {name}": value for name, value in sharded.first_gradients(CONFIG, make, rows).items()}
    for optimizer in sharded.OPTIMIZERS:
        values, held = sharded.three_updates(CONFIG, optimizer, make, rows)
        found |= {f"{optimizer} {name}": value for name, value in values.items()} | {f"bytes {optimizer}": np.array(held)}
    if hosts.is_leader():
        np.savez(folder / "sharded.npz", **found)
    save_split(folder, make)
    return 0


def save_split(folder: Path, make: Callable[..., Parallel]) -> None:
    """Writes a checkpoint of a split state in parts, and one that process 0 collects because the others do not see its folder."""
    learner, state = sharded.numbered_state(CONFIG)
    parallel = make(learner.update)
    for name in ("parts", "collected"):
        own = folder / (name if name == "parts" or hosts.is_leader() else "unused")
        if hosts.is_leader():
            own.mkdir()
        with open_checkpoints(own) as checkpoints:
            placed = parallel.place(state)
            whole = parallel.whole(placed.params)
            hosts.from_leader(lambda whole=whole: checkpoints.save_best(7, whole, 0.5))
            save(checkpoints, parallel, 7, placed, Progress(best_step=7))


def play_split(folder: Path) -> int:
    """A run in a common folder with a state that is split over all devices; it is stopped at update 7, and resumed."""
    words = (*TRAIN, "--run-dir", str(folder / "split"), "--train.shard-state", "full")
    assert stopped_at_7(*words) == 75
    return command(*words)


def play_endings(folder: Path) -> int:
    """Errors of process 0, and the exit codes or errors that they become on each process."""

    def failing(error: BaseException) -> None:
        raise error

    for error in (ValueError("v"), Preempted("p"), CannotWrite("c"), NotFinite("n")):
        sys.stdout.write(f"{execute(lambda error=error: hosts.from_leader(lambda: failing(error)))}\n")
    try:
        hosts.from_leader(lambda: failing(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "file")))
    except Exception as told:
        sys.stdout.write(f"{type(told).__name__}\n")
    return 0


def play_different(folder: Path) -> int:
    """Settings that differ between the processes."""
    return command(*TRAIN, "--run-dir", str(folder / "different"), "--seed", str(jax.process_index()))


def play_nan(folder: Path) -> int:
    return command(*TRAIN, "--run-dir", str(folder / "nan"), "--optim.learning-rate", "1e30")


def play_whole(folder: Path) -> int:
    """A run from beginning to end; each process is given a folder of its own."""
    return command(*TRAIN, "--run-dir", str(folder / ("whole" if hosts.is_leader() else "unused")))


def play_stopped(folder: Path) -> int:
    """A run in a folder that both processes see, as on a common disk."""
    return stopped_at_7(*TRAIN, "--run-dir", str(folder / "stopped"))


def stopped_at_7(*words: str) -> int:
    """A run with SIGTERM on the process that does not lead, while update 7 is made."""
    add, seen = window.Window.add, []

    def add_and_stop(self: window.Window, *given: Any) -> None:
        add(self, *given)
        seen.append(given)
        if len(seen) == 7 and not hosts.is_leader():
            signal.raise_signal(signal.SIGTERM)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(window.Window, "add", add_and_stop)
        return command(*words)


def play_sweep(folder: Path) -> int:
    """Three trials: one finishes, one is pruned, one fails."""
    name = "sweep" if hosts.is_leader() else "unused sweep"
    return sweep([str(write_spec(folder / f"{name}.yaml")), "--run-dir", str(folder / name)])


def play_seeds(folder: Path) -> int:
    """Two trials that finish."""
    name = "seeds" if hosts.is_leader() else "unused seeds"
    return sweep([str(write_spec(folder / f"{name}.yaml", **SEEDS)), "--run-dir", str(folder / name)])


SCENES: dict[str, Callable[[Path], int]] = {
    **{"gradients": play_gradients, "endings": play_endings, "different": play_different},
    **{"whole": play_whole, "stopped": play_stopped, "sweep": play_sweep, "seeds": play_seeds, "nan": play_nan},
    **{"sharded": play_sharded, "split": play_split},
}
ALONE = ("nan", "sweep", "seeds", "sharded", "split")  # played only where they are asked for, in the slow tier


def play(folder: Path, *scenes: str) -> None:
    hosts.start()
    for name in scenes or (name for name in SCENES if name not in ALONE):
        said = io.StringIO()
        with redirect_stdout(said), redirect_stderr(said):
            code = SCENES[name](folder)
        (folder / f"{name}-{jax.process_index()}.json").write_text(json.dumps({"code": code, "said": said.getvalue()}))


def scene(folder: Path, name: str) -> tuple[list[int], list[str]]:
    """Exit codes and output of a scene, by process."""
    found = [json.loads((folder / f"{name}-{i}.json").read_text()) for i in range(COUNT)]
    return [process["code"] for process in found], [process["said"] for process in found]


if __name__ == "__main__":
    play(Path(sys.argv[1]), *sys.argv[2:])
