"""Runs that are killed, stopped, broken or moved lose nothing."""

from __future__ import annotations

import json
import random
import re
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments import evaluate
from qrag_jax.export.folder import read_export
from qrag_jax.rundir.checkpoint import saved_steps
from qrag_jax.rundir.files import read_json
from qrag_jax.rundir.lock import only_writer
from qrag_jax.rundir.log import RunLog
from qrag_jax.rundir.progress import Progress
from qrag_jax.train import training, window
from tests.support.runs import assert_same_records, assert_same_run, finish, half_saved, here, records, start, wait_until

# Checkpoints often, so that a run killed five times gets on.
OFTEN = ("--train.checkpoint-every", "5")


def rewritten(path: Path) -> Callable[[], bool]:
    """A check whether a file has been replaced or changed since this call."""
    stamp = lambda: (path.stat().st_ino, path.stat().st_mtime_ns) if path.exists() else None
    before = stamp()
    return lambda: stamp() != before


class Moments:
    """When to kill: each waits for a mark in the run directory."""

    def __init__(self, run_dir: Path, chance: random.Random) -> None:
        self._run, self._chance = run_dir, chance

    def within(self, seconds: float, process: subprocess.Popen[str]) -> None:
        """At random, soon after a start: while it compiles, restores, or makes its first updates."""
        wait_until(rewritten(self._run / "manifest.json"), process)
        time.sleep(self._chance.uniform(0, seconds))

    def validation(self, process: subprocess.Popen[str]) -> None:
        seen = rewritten(self._run / "metrics.jsonl")
        wait_until(seen, process)
        wait_until(lambda: self._newest()["kind"] == "train" and self._newest()["step"] % 10 == 0, process)

    def saving(self, name: str, process: subprocess.Popen[str]) -> None:
        """In the middle of a save. Unfinished saves from before are not counted."""
        old = set(self._unfinished(name))
        wait_until(lambda: any(path not in old for path in self._unfinished(name)), process)

    def evaluation(self, process: subprocess.Popen[str]) -> None:
        wait_until(rewritten(self._run / "manifest.json"), process)
        wait_until(lambda: 40 in saved_steps(self._run), process)
        time.sleep(self._chance.uniform(0, 0.3))

    def _unfinished(self, name: str) -> list[Path]:
        return half_saved(self._run, name)

    def _lines(self) -> int:
        return (self._run / "metrics.jsonl").read_text().count("\n")

    def _newest(self) -> dict[str, object]:
        lines = [line for line in (self._run / "metrics.jsonl").read_text().splitlines(keepends=True) if line.endswith("\n")]
        return json.loads(lines[-1]) if lines else {"kind": None, "step": 0}


def killed(run_dir: Path, until: Callable[[subprocess.Popen[str]], None]) -> bool:
    """Starts the run and kills it; returns whether that left an unfinished checkpoint."""
    process = start(run_dir, *OFTEN)
    until(process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not (run_dir / "results.json").exists()
    return bool(half_saved(run_dir))


@pytest.mark.slow
@pytest.mark.quick
@pytest.mark.processes
def test_five_times_killed_equals_uninterrupted(whole, tmp_path, capsys):
    """tests/rundir/test_checkpoint.py looks at every moment of a save; here are real kills of a real run."""
    run_dir = tmp_path / "run"
    moments = Moments(run_dir, random.Random(0))
    plan: list[Callable[[subprocess.Popen[str]], None]] = [
        lambda process: moments.within(0.5, process),
        lambda process: moments.saving("best", process),
        moments.validation,
        lambda process: moments.saving("last", process),
        moments.evaluation,
    ]
    halves = sum(killed(run_dir, until) for until in plan)
    assert halves >= 2  # kills that did hit a save
    with (run_dir / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "tra')  # as if killed while writing a line
    assert here(run_dir, *OFTEN) == 0
    assert "skipping" not in capsys.readouterr().out
    assert_same_run(run_dir, whole)


def test_sigterm_saves_at_once_and_exits_75(whole, tmp_path, stop_at_13, capsys):
    assert here(tmp_path / "run") == 75
    assert "saved at update 13; run the same command again" in capsys.readouterr().err
    assert saved_steps(tmp_path / "run") == [13, 10]
    # The rest on the clock: a checkpoint after every update, or nearly.
    assert here(tmp_path / "run", "--train.checkpoint-minutes", "0.0001") == 0
    assert "resuming" in capsys.readouterr().out
    assert_same_run(tmp_path / "run", whole)


@pytest.mark.slow
@pytest.mark.quick
def test_stages_with_objectives_of_their_own_resume_bit_for_bit(tmp_path, stop_at_13, monkeypatch):
    """Supervised updates 1 to 12, then TD with demonstrations and the joint loss: the stop is in a window of both."""
    words = ("--curriculum", "qa1:16:12:supervised", "--rl.demonstrations", "0.5", "--rl.supervised-weight", "0.1")
    words += ("--rl.supervised-loss", "softmax", "--rl.gold-order", "policy")
    assert here(tmp_path / "run", *words) == 75
    assert here(tmp_path / "run", *words) == 0
    monkeypatch.undo()
    assert here(tmp_path / "straight", *words) == 0
    assert_same_run(tmp_path / "run", tmp_path / "straight")
    trained = [record for record in RunLog(tmp_path / "run").read() if record["kind"] == "train"]
    assert [("target" in record, "supervised_loss" in record) for record in trained] == [(False, False)] * 3 + [(True, True)] * 5
    assert trained[0]["loss"] > trained[1]["loss"]


def test_a_second_run_in_the_same_folder_exits_75_and_changes_nothing(tmp_path, capsys):
    with only_writer(tmp_path / "run"):
        assert here(tmp_path / "run") == 75
        assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [".lock.tmp", ".writer.tmp"]
    assert "is writing to it; run the same command again when it has ended" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.quick
@pytest.mark.parametrize("stop_at_13", [signal.SIGINT], indirect=True)
def test_a_run_that_ctrl_c_ended_can_be_exported_resumed_extended_and_tested_again(tmp_path, stop_at_13, capsys):
    run_dir = tmp_path / "run"
    assert here(run_dir, "--steps", "15") == 130
    assert "interrupted: saved at update 13; run the same command again" in capsys.readouterr().err
    best = Progress.from_json(read_json(run_dir / "checkpoints" / "last" / "13" / "contents.json")["info"]).best_step
    assert read_export(training.export_best(run_dir)).step == best
    assert here(run_dir, "--steps", "15") == 0
    trained = records(run_dir)
    assert here(run_dir, "--steps", "10") == 64
    assert "--steps was 15, now 10" in capsys.readouterr().err
    # Longer: what was trained stays, and the results of the shorter run go.
    assert here(run_dir, "--steps", "20") == 0
    assert f"resuming {run_dir} at update 15 of 20" in capsys.readouterr().out
    assert records(run_dir)[: len(trained)] == trained
    # All updates are made, so the settings of the test may change.
    assert here(run_dir, "--steps", "20", "--eval.budget", "3") == 0
    assert json.loads((run_dir / "results.json").read_text())["rows"][0]["budget"] == 3
    # But not by the command that only evaluates.
    assert evaluate.main([str(run_dir), "--run-dir", str(run_dir)]) == 64
    assert "holds a training run (checkpoints), whose results would be overwritten" in capsys.readouterr().err


def test_a_failure_of_the_final_evaluation_leaves_an_export(whole, tmp_path, monkeypatch):
    run_dir = shutil.copytree(whole, tmp_path / "run")
    shutil.rmtree(run_dir / "export")

    def fail(*words):
        raise ValueError("a document that cannot be read")

    monkeypatch.setattr(training, "evaluate", fail)
    assert here(run_dir) == 64
    assert read_export(run_dir / "export").rows == []
    monkeypatch.undo()
    assert here(run_dir) == 0
    assert read_export(run_dir / "export").rows


def test_a_run_whose_folder_is_removed_ends_in_one_line(tmp_path, monkeypatch, capsys):
    add = window.Window.add

    def add_and_remove(self, metrics, texts):
        add(self, metrics, texts)
        shutil.rmtree(tmp_path / "run", ignore_errors=True)

    monkeypatch.setattr(window.Window, "add", add_and_remove)
    assert here(tmp_path / "run", "--steps", "15") in (64, 74)
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"error: {tmp_path / 'run'}")


@pytest.mark.slow
@pytest.mark.quick
def test_other_numbers_of_jax_change_nothing(whole, tmp_path, capsys):
    """JAX_DEFAULT_PRNG_IMPL and JAX_ENABLE_X64."""
    before = jax.config.jax_default_prng_impl
    jax.config.update("jax_default_prng_impl", "rbg")
    jax.config.update("jax_enable_x64", True)
    try:
        assert here(tmp_path / "run") == 0
        assert (jax.config.jax_default_prng_impl, jax.config.jax_enable_x64) == ("rbg", True)
    finally:
        jax.config.update("jax_default_prng_impl", before)
        jax.config.update("jax_enable_x64", False)
    assert_same_run(tmp_path / "run", whole)
    assert "JAX_ENABLE_X64 has no effect here" in capsys.readouterr().out


def test_sigterm_during_the_final_evaluation_exits_75_too(whole, tmp_path, monkeypatch):
    run_dir = shutil.copytree(whole, tmp_path / "run")
    monkeypatch.setattr(training, "evaluate", lambda *words: signal.raise_signal(signal.SIGTERM))
    assert here(run_dir) == 75
    monkeypatch.undo()
    assert here(run_dir) == 0
    assert_same_run(run_dir, whole)


@pytest.mark.slow
@pytest.mark.quick
@pytest.mark.processes
def test_a_disk_that_fails_stops_the_run_with_the_checkpoint_before_intact(whole, tmp_path):
    """No file may be larger than 20 kB after the first checkpoint: some file of the next one is."""
    run_dir = tmp_path / "run"
    process = start(run_dir)
    wait_until(lambda: 10 in saved_steps(run_dir), process)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
    output = finish(process, 74)
    (saved, *_) = saved_steps(run_dir)
    told = f"error: {run_dir}: cannot be written to (File too large); the checkpoint of update {saved} is undamaged"
    assert told in output
    # Threads of tensorstore, which writes checkpoints, may still say that they were left; none of our code does.
    assert not re.search(r"qrag_jax/\w+\.py", output.partition(told)[2])
    assert here(run_dir) == 0
    assert_same_run(run_dir, whole)


@pytest.fixture
def small_disk(tmp_path):
    """A folder on a disk of its own, of 2 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)], capture_output=True).returncode:
        pytest.skip("mounting a small disk takes rights that this process does not have")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.slow
@pytest.mark.quick
def test_a_full_disk_stops_the_run(small_disk, tmp_path, capsys):
    assert here(small_disk / "run", "--steps", "15") == 74
    error = capsys.readouterr().err
    assert "cannot be written to (No space left on device)" in error
    (saved, *_) = saved_steps(small_disk / "run")
    assert f"the checkpoint of update {saved} is undamaged" in error
    assert not list((small_disk / "run").rglob("*tmp"))
    shutil.copytree(small_disk / "run", tmp_path / "roomy")
    assert here(tmp_path / "roomy", "--steps", "15") == 0
    assert f"at update {saved} of 15" in capsys.readouterr().out


def test_nan_stops_the_run_and_leaves_the_update_to_be_looked_at(tmp_path, capsys):
    run_dir = tmp_path / "run"
    assert here(run_dir, "--optim.learning-rate", "1e30") == 70
    error = capsys.readouterr().err
    (path,) = (run_dir / "nan").glob("*.npz")
    step = int(path.stem.removeprefix("step-"))
    assert f"error: update {step} gave a number that is not finite: {{" in error
    assert f"its batch and state are in {path}; lower --optim.learning-rate" in error
    found = np.load(path)
    assert found["state/step"] == step - 1
    assert not np.isfinite(found["metrics/loss"])
    assert all(np.isfinite(found[name]).all() for name in found if name.startswith("state/params"))
    assert found["batch/episode_id"].tolist() == list(range(8 * (step - 1), 8 * step))
    assert len(json.loads(path.with_suffix(".json").read_text())) == 8
    assert saved_steps(run_dir) == []  # nothing that is not finite was saved


@pytest.mark.slow
@pytest.mark.quick
def test_a_run_may_go_on_with_other_devices(whole, tmp_path, stop_at_13):
    assert here(tmp_path / "run") == 75
    assert here(tmp_path / "run", "--train.devices", "4", "--train.checkpoint-every", "40") == 0
    found, expected = ([r for r in records(run_dir) if r["kind"] == "train"] for run_dir in (tmp_path / "run", whole))
    assert found[:2] == expected[:2]
    # Sums in another order; while no rounding error has changed a pick, that is all.
    assert_same_records(found[2:3], expected[2:3])
    assert len(found) == len(expected)
