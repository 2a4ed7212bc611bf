"""A sweep typed by a user, on real training: killed, resumed, and its best settings used."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from experiments.cli import main
from tests.support.processes import start_python
from tests.support.small import dotted


def write_spec(path: Path, **train: Any) -> Path:
    """A sweep of one trial."""
    fixed = {name: value for name, value in dotted(train={"devices": 1, **train}).items() if name != "data.task"}
    spec = {"benchmark": "babilong", "task": "qa1", "method": "grid", "fixed": fixed, "space": {"optim.learning_rate": {"values": [1e-3]}}}
    path.write_text(yaml.safe_dump(json.loads(json.dumps(spec))))
    return path


def start(spec: Path, run_dir: Path) -> subprocess.Popen[str]:
    return start_python("-m", "experiments.sweep", str(spec), "--run-dir", str(run_dir))


def use_best(run_dir: Path, best: Path) -> None:
    """Evaluates the best trial as the report says."""
    records = (best / "metrics.jsonl").read_text()
    assert main("babilong", "", ["--preset", str(run_dir / "best.json"), "--run-dir", str(best)]) == 0
    (row,) = json.loads((best / "results.json").read_text())["rows"]
    assert (row["task"], row["split"], row["episodes"]) == ("qa1", "test", 8)
    assert (best / "metrics.jsonl").read_text() == records, "nothing was trained for it"
    assert "checkpoint_step" in row


@pytest.mark.slow
@pytest.mark.quick
@pytest.mark.processes
def test_killed_resumed_and_used(tmp_path: Path) -> None:
    spec, run_dir = write_spec(tmp_path / "small.yaml"), tmp_path / "sweep"
    process = start(spec, run_dir)
    while not list(run_dir.glob("trials/*/checkpoints/last/10")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    (first,) = (run_dir / "trials").iterdir()
    output, _ = start(spec, run_dir).communicate(timeout=1200)
    assert "best on validation" in output, output
    assert f"resuming {first}" in (first / "log.txt").read_text()
    summary = json.loads((run_dir / "sweep.json").read_text())
    assert [(t["state"], t["updates"]) for t in summary["trials"]] == [("complete", 40)]
    assert [step for step, _ in summary["trials"][0]["validations"]] == [0, 10, 20, 30, 40]
    assert not list(run_dir.rglob("results.json")), "test questions are left alone"

    best = run_dir / "trials" / summary["best"]
    logs = {path: path.read_text() for path in run_dir.rglob("log.txt")}
    output, _ = start(spec, run_dir).communicate(timeout=1200)
    assert "best on validation" in output, output
    assert {path: path.read_text() for path in run_dir.rglob("log.txt")} == logs, "finished trials are not run again"
    use_best(run_dir, best)
