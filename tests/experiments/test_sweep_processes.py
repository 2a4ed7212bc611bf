"""A sweep typed by a user, on real training: killed, gone on with, and its best settings used."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from experiments.cli import main
from tests.conftest import ROOT

SPEC = """
benchmark: babilong
task: qa1
method: grid
fixed: {train.steps: 40, train.log_every: 5, train.eval_every: 10, train.checkpoint_every: 10, train.eval_episodes: 8, train.devices: 1,
  data.chunks: 16, data.shared_noise: 8, model.layers: 1, model.width: 32, model.heads: 2, model.mlp_width: 64, model.vocab_size: 600,
  model.max_positions: 64, optim.batch: 8, eval.tokens: [1k], eval.episodes: 8}
space:
  optim.learning_rate: {values: [1e-3]}
"""


def start(spec: Path, run_dir: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".jax_cache"), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    command = [sys.executable, "-m", "experiments.sweep", str(spec), "--run-dir", str(run_dir)]
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_killed_gone_on_with_and_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec, run_dir = tmp_path / "small.yaml", tmp_path / "sweep"
    spec.write_text(SPEC)
    process = start(spec, run_dir)
    while not list(run_dir.glob("trials/*/checkpoints/last/10")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    (first,) = (run_dir / "trials").iterdir()
    output, error = start(spec, run_dir).communicate(timeout=1200)
    assert "best by validation" in output, error
    assert f"resuming {first}" in (first / "log.txt").read_text()
    summary = json.loads((run_dir / "sweep.json").read_text())
    assert [(t["state"], t["updates"]) for t in summary["trials"]] == [("complete", 40)]
    assert [step for step, _ in summary["trials"][0]["validations"]] == [0, 10, 20, 30, 40]
    assert not list(run_dir.rglob("results.json")), "test questions are left alone"

    best = run_dir / "trials" / summary["best"]
    logs = {path: path.read_text() for path in run_dir.rglob("log.txt")}
    output, error = start(spec, run_dir).communicate(timeout=1200)
    assert "best by validation" in output, error
    assert {path: path.read_text() for path in run_dir.rglob("log.txt")} == logs, "finished trials are not run again"

    records = (best / "metrics.jsonl").read_text()
    assert main("babilong", "", ["--preset", str(run_dir / "best.json"), "--run-dir", str(best)]) == 0
    (row,) = json.loads((best / "results.json").read_text())["rows"]
    assert (row["task"], row["split"], row["episodes"]) == ("qa1", "test", 8)
    assert (best / "metrics.jsonl").read_text() == records, "nothing was trained for it"
    assert "checkpoint_step" in row
