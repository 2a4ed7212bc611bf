"""Sweeps whose trials are trained by two processes together: one finishes, one is pruned, one fails; stopped and killed, it resumes."""

from __future__ import annotations

import json
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from experiments.sweep import hosts
from experiments.sweep.spec import read_spec
from tests.support.pair import SEEDS, scene, write_spec
from tests.support.processes import finish_all, processes, wait_for_all
from tests.support.runs import assert_same_records, records

# The command, in a process that compiles as tests do.
SWEEP = "import sys; import tests.conftest; from experiments.sweep.__main__ import main; raise SystemExit(main(sys.argv[1:]))"


def test_trials_at_a_time_are_refused(tmp_path):
    spec, _ = read_spec(write_spec(tmp_path / "small.yaml"))
    with pytest.raises(ValueError, match="parallel = 2: must be 1 when several processes train a trial together"):
        hosts.run(replace(spec, settings=replace(spec.settings, parallel=2)), tmp_path / "sweep", False)


@pytest.mark.slow
@pytest.mark.quick
@pytest.mark.processes
def test_two_processes_train_every_trial_together_and_resume_what_was_stopped_or_killed(tmp_path):
    swept = tmp_path / "swept"
    swept.mkdir()
    with processes(*[("-m", "tests.support.pair", str(swept), "sweep", "seeds")] * 2) as started:
        finish_all(started)
    codes, (first, second) = scene(swept, "sweep")
    assert codes == [0, 0], first
    trials = json.loads((swept / "sweep" / "sweep.json").read_text())["trials"]
    assert [trial["state"] for trial in trials] == ["complete", "pruned", "failed"], first
    assert [trial["updates"] for trial in trials[:2]] == [8, 4]
    assert "the embedder reads 64: set data.state_tokens" in trials[2]["reason"]
    assert "best on validation" in first
    assert "best on validation" not in second
    assert not (swept / "unused sweep").exists()

    run_dir = tmp_path / "sweep"
    command = ("-c", SWEEP, str(write_spec(tmp_path / "small.yaml", **SEEDS)), "--run-dir", str(run_dir))

    def lines(trials: int) -> int:
        """Records of the newest trial, once there are ``trials``."""
        logs = list(run_dir.glob("trials/*/metrics.jsonl"))
        return max(logs, key=lambda log: log.stat().st_mtime).read_text().count("\n") if len(logs) == trials else 0

    def start_and_signal(trials: int, number: signal.Signals, to: tuple[int, ...]) -> list[str]:
        with processes(*[command] * 2) as started:
            wait_for_all(lambda: lines(trials) >= 3, started)
            for i in to:
                started[i].send_signal(number)
            return finish_all(started, 75 if number == signal.SIGTERM else -number)

    # A process that does not lead is told to go in the first trial; both are killed in the second.
    outputs = start_and_signal(1, signal.SIGTERM, (1,))
    assert all("preempted: saved at update" in output for output in outputs)
    start_and_signal(2, signal.SIGKILL, (0, 1))
    with processes(*[command] * 2) as started:
        finish_all(started)
    rows = json.loads((run_dir / "sweep.json").read_text())["trials"]
    assert [(row["state"], row["updates"]) for row in rows] == [("complete", 16)] * 2
    for row in rows:
        folder = Path("trials") / row["trial"]
        assert_same_records(records(run_dir / folder), records(swept / "seeds" / folder))
