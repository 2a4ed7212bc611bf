"""Sweeps whose trials are trained by two processes together: one finishes, one is pruned, one fails; stopped and killed, it resumes."""

from __future__ import annotations

import json
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from experiments.sweep import hosts
from experiments.sweep.spec import read_spec
from tests.support.pair import SPEC, scene, write_spec
from tests.support.processes import finish_all, processes, wait_for_all
from tests.support.runs import assert_same_records, records


@pytest.mark.slow
@pytest.mark.processes
def test_two_processes_train_every_trial_together(tmp_path):
    with processes(*[("-m", "tests.support.pair", str(tmp_path), "sweep")] * 2) as started:
        finish_all(started)
    codes, (first, second) = scene(tmp_path, "sweep")
    assert codes == [0, 0], first
    trials = json.loads((tmp_path / "sweep" / "sweep.json").read_text())["trials"]
    assert [trial["state"] for trial in trials] == ["complete", "pruned", "failed"], first
    assert [trial["updates"] for trial in trials[:2]] == [8, 4]
    assert "the embedder reads 64: set data.state_tokens" in trials[2]["reason"]
    assert "best on validation" in first
    assert "best on validation" not in second
    assert not (tmp_path / "unused sweep").exists()


def test_trials_at_a_time_are_refused(tmp_path):
    spec, _ = read_spec(write_spec(tmp_path / "small.yaml"))
    with pytest.raises(ValueError, match="parallel = 2: must be 1 when several processes train a trial together"):
        hosts.run(replace(spec, settings=replace(spec.settings, parallel=2)), tmp_path / "sweep", False)


@pytest.mark.slow
@pytest.mark.processes
def test_stopped_and_killed_and_resumed(tmp_path):
    # 16 updates of four validations each, so that a signal meets a trial under way.
    fixed, space = SPEC["fixed"] | {"train.steps": 16}, {"optim.learning_rate": {"values": [1e-3, 1e-4]}}
    spec = write_spec(tmp_path / "small.yaml", fixed=fixed, space=space, prune=False)
    run_dir = tmp_path / "sweep"

    def command(run_dir: Path) -> tuple[str, ...]:
        return ("-m", "experiments.sweep", str(spec), "--run-dir", str(run_dir))

    def lines(trials: int) -> int:
        """Records of the newest trial, once there are ``trials``."""
        logs = list(run_dir.glob("trials/*/metrics.jsonl"))
        return max(logs, key=lambda log: log.stat().st_mtime).read_text().count("\n") if len(logs) == trials else 0

    def start_and_signal(trials: int, number: signal.Signals, to: tuple[int, ...]) -> list[str]:
        with processes(*[command(run_dir)] * 2) as started:
            wait_for_all(lambda: lines(trials) >= 3, started)
            for i in to:
                started[i].send_signal(number)
            return finish_all(started, 75 if number == signal.SIGTERM else -number)

    # A process that does not lead is told to go in the first trial; both are killed in the second.
    outputs = start_and_signal(1, signal.SIGTERM, (1,))
    assert all("preempted: saved at update" in output for output in outputs)
    start_and_signal(2, signal.SIGKILL, (0, 1))
    with processes(*[command(run_dir)] * 2) as started:
        finish_all(started)
    with processes(*[command(tmp_path / "undisturbed")] * 2) as started:
        finish_all(started)
    rows = json.loads((run_dir / "sweep.json").read_text())["trials"]
    assert [(row["state"], row["updates"]) for row in rows] == [("complete", 16)] * 2
    for row in rows:
        folder = Path("trials") / row["trial"]
        assert_same_records(records(run_dir / folder), records(tmp_path / "undisturbed" / folder))
