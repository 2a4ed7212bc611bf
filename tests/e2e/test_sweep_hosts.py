"""A sweep whose trials are trained by two processes together, joined on loopback: finished, failed, pruned and gone on with."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from experiments import sweep_hosts
from experiments.sweep_spec import read_spec
from tests.parallel.test_hosts import finish, processes

# Who may pick 15 of 16 chunks finds more than who may pick one; with rate 1e30 an update gives NaN.
SPEC = """
benchmark: babilong
task: qa1
method: grid
trials: 3
prune: true
prune_startup: 1
prune_warmup: 0
fixed: {train.steps: 8, train.log_every: 2, train.eval_every: 4, train.checkpoint_every: 4, train.eval_episodes: 8,
  data.chunks: 16, data.shared_noise: 8, model.layers: 1, model.width: 32, model.heads: 2, model.mlp_width: 64, model.vocab_size: 600,
  model.max_positions: 256, optim.batch: 8, rl.budget: 2, eval.tokens: [1k], eval.episodes: 8}
space:
  optim.learning_rate: {values: [1e-3, 1e30]}
  eval.budget: {values: [15, 1]}
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
    assert "not a number" in trials[2]["reason"]
    assert "best by validation" in first
    assert "best by validation" not in second
    assert not (tmp_path / "unused").exists()


def test_trials_at_a_time_are_refused(tmp_path):
    (tmp_path / "small.yaml").write_text(SPEC)
    spec, folder = read_spec(tmp_path / "small.yaml")
    with pytest.raises(ValueError, match="parallel = 2: must be 1 where several processes train a trial together"):
        sweep_hosts.run(replace(spec, settings=replace(spec.settings, parallel=2)), folder, False)
