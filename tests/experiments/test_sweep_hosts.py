"""Sweeps whose trials are trained by two processes together: one finishes, one is pruned, one fails; stopped and killed, it goes on."""

from __future__ import annotations

import json
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest

from experiments.sweep import hosts
from experiments.sweep.spec import read_spec
from tests.support.runs import assert_same_records, records
from tests.train.test_hosts import finish, processes

# Who may pick four of 16 chunks finds more than who may pick one; a state of 15 is longer than the embedder can read.
SPEC = """
benchmark: babilong
task: qa1
method: grid
prune: true
prune_startup: 1
prune_warmup: 0
fixed: {train.steps: 8, train.log_every: 2, train.eval_every: 4, train.checkpoint_every: 4, train.eval_episodes: 8,
  data.chunks: 16, data.shared_noise: 8, model.layers: 1, model.width: 32, model.heads: 2, model.mlp_width: 64, model.vocab_size: 600,
  model.max_positions: 64, optim.batch: 8, rl.budget: 2, eval.tokens: [1k], eval.episodes: 8}
space:
  eval.budget: {values: [4, 1, 15]}
"""


def command(spec: Path, run_dir: Path) -> tuple[str, ...]:
    return ("-m", "experiments.sweep", str(spec), "--run-dir", str(run_dir))


def test_two_processes_train_every_trial_together(tmp_path):
    spec = tmp_path / "small.yaml"
    spec.write_text(SPEC)
    with processes(command(spec, tmp_path / "sweep"), command(spec, tmp_path / "unused")) as started:
        first, second = finish(started)
    trials = json.loads((tmp_path / "sweep" / "sweep.json").read_text())["trials"]
    assert [trial["state"] for trial in trials] == ["complete", "pruned", "failed"], first
    assert [trial["updates"] for trial in trials[:2]] == [8, 4]
    assert "the embedder reads 64: set data.state_tokens" in trials[2]["reason"]
    assert "best by validation" in first
    assert "best by validation" not in second
    assert not (tmp_path / "unused").exists()


def test_trials_at_a_time_are_refused(tmp_path):
    (tmp_path / "small.yaml").write_text(SPEC)
    spec, _ = read_spec(tmp_path / "small.yaml")
    with pytest.raises(ValueError, match="parallel = 2: must be 1 where several processes train a trial together"):
        hosts.run(replace(spec, settings=replace(spec.settings, parallel=2)), tmp_path / "sweep", False)


def test_stopped_and_killed_and_gone_on_with(tmp_path):
    spec = tmp_path / "small.yaml"
    # 16 updates of four validations each, so that a signal meets a trial under way.
    text = SPEC.replace("train.steps: 8", "train.steps: 16").replace("prune: true", "prune: false")
    spec.write_text(text.replace("eval.budget: {values: [4, 1, 15]}", "optim.learning_rate: {values: [1e-3, 1e-4]}"))
    run_dir = tmp_path / "sweep"

    def lines(trials: int) -> int:
        """Records of the newest trial, once there are ``trials``."""
        logs = list(run_dir.glob("trials/*/metrics.jsonl"))
        return max(logs, key=lambda log: log.stat().st_mtime).read_text().count("\n") if len(logs) == trials else 0

    def start_and_signal(trials: int, number: signal.Signals, to: tuple[int, ...]) -> list[str]:
        with processes(*[command(spec, run_dir)] * 2) as started:
            while lines(trials) < 3:
                assert all(process.poll() is None for process in started), finish(started)
                time.sleep(0.02)
            for i in to:
                started[i].send_signal(number)
            return finish(started, 75 if number == signal.SIGTERM else -number)

    # A process that does not lead is told to go in the first trial; both are killed in the second.
    outputs = start_and_signal(1, signal.SIGTERM, (1,))
    assert all("preempted: saved at update" in output for output in outputs)
    start_and_signal(2, signal.SIGKILL, (0, 1))
    with processes(*[command(spec, run_dir)] * 2) as started:
        finish(started)
    with processes(*[command(spec, tmp_path / "undisturbed")] * 2) as started:
        finish(started)
    rows = json.loads((run_dir / "sweep.json").read_text())["trials"]
    assert [(row["state"], row["updates"]) for row in rows] == [("complete", 16)] * 2
    for row in rows:
        folder = Path("trials") / row["trial"]
        assert_same_records(records(run_dir / folder), records(tmp_path / "undisturbed" / folder))
