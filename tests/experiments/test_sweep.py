"""Sweeps: trials are chosen reproducibly, and whatever happens to one is kept.

Trials here are a small script instead of training: it writes what a run writes, as its configuration tells it.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from experiments.sweep import run as sweep_run
from experiments.sweep.__main__ import main
from experiments.sweep.report import write_report
from experiments.sweep.spec import read_spec
from experiments.sweep.study import Claim, Row, Sweep
from qrag_jax.config import RunConfig
from qrag_jax.rundir.log import Preempted
from tests.support.sweep import SPEC, write_spec

# Fact EM at the last update is the learning rate times 10; seeds above 100 fail the first time, above 200 wait to be killed, as do slow
# ones that decay much.
TRIAL = """
import json, pathlib, sys, time
folder = pathlib.Path(sys.argv[1])
config = json.loads((folder / "config.json").read_text())
seed, rate = config["train"]["seed"], config["optim"]["learning_rate"]
with (folder / "metrics.jsonl").open("a") as file:
    for step in range(0, config["train"]["steps"] + 1, 10):
        em = rate * 10 * step / config["train"]["steps"]
        file.write(json.dumps({"kind": "validation", "step": step, "fact_em": em, "fact_f1_stopped": em / 2, "answer_em": None}) + "\\n")
        file.write(json.dumps({"kind": "train", "step": step, "seconds": step / 1}) + "\\n")
        file.flush()
        if seed > 200 or (config["optim"]["weight_decay"] > 0.05 and step == 20 and rate < 0.005):
            time.sleep(60)
if seed > 100 and not (folder / "tried").exists():
    (folder / "tried").touch()
    print("no memory left\\non this device")
    sys.exit(3)
"""


def make(folder: Path, **changes: Any) -> Sweep:
    spec, _ = read_spec(write_spec(folder, **changes))
    return Sweep(spec, folder / "sweep")


@pytest.fixture
def trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    monkeypatch.setattr(sweep_run, "POLL_SECONDS", 0.02)
    (tmp_path / "trial.py").write_text(TRIAL)
    return (sys.executable, str(tmp_path / "trial.py"))


def states(rows: list[Row]) -> list[str]:
    return [row.state for row in rows]


def chosen(sweep: Sweep, count: int) -> list[dict[str, Any]]:
    """The values of the next trials, each finished at once with its learning rate as Fact EM."""
    found = []
    for _ in range(count):
        claim = sweep.next()
        assert claim is not None
        found.append(claim.values)
        complete(sweep, claim)
    return found


def complete(sweep: Sweep, claim: Claim) -> None:
    rate = claim.config.optim.learning_rate
    (claim.folder / "metrics.jsonl").write_text(
        json.dumps({"kind": "validation", "step": 10, "fact_em": rate, "fact_f1_stopped": None, "answer_em": None}) + "\n"
    )
    sweep.finish(claim, "complete")


def test_a_grid_goes_in_order_and_ends(tmp_path: Path) -> None:
    space = {"rl.budget": {"low": 1, "high": 5, "step": 2}, "rl.lam": {"low": 0, "high": 1, "step": 0.5}}
    sweep = make(tmp_path, space=space)
    assert [tuple(values.values()) for values in chosen(sweep, 4)] == [(1, 0.0), (1, 0.5), (1, 1.0), (3, 0.0)]
    again = Sweep.open(tmp_path / "sweep")
    assert [tuple(values.values()) for values in chosen(again, 5)] == [(3, 0.5), (3, 1.0), (5, 0.0), (5, 0.5), (5, 1.0)]
    assert again.next() is None


@pytest.mark.parametrize("method", ["random", "tpe"])
def test_a_seed_gives_the_same_trials_interrupted_or_not(method: str, tmp_path: Path) -> None:
    space = {"optim.learning_rate": {"low": 1e-4, "high": 1e-1, "log": True}, "rl.budget": {"low": 1, "high": 4}}
    options = {"method": method, "trials": 8, "space": space}
    folders = [tmp_path / name for name in ("whole", "parts", "other")]
    for folder in folders:
        folder.mkdir()
    whole = chosen(make(folders[0], **options), 8)
    parts = chosen(make(folders[1], **options), 3)
    left = Sweep.open(folders[1] / "sweep").next()
    assert left is not None
    left.lock.release()  # as when its process is killed
    parts += chosen(Sweep.open(folders[1] / "sweep"), 5)
    assert parts == whole
    assert chosen(make(folders[2], **options, seed=1), 8) != whole
    rates = [values["optim.learning_rate"] for values in whole]
    assert all(1e-4 <= rate <= 1e-1 for rate in rates)
    if method == "tpe":
        assert sum(rates[4:]) > sum(rates[:4]), "higher rates were better, and it noticed"


def test_a_small_space_is_used_up_without_repetition(tmp_path: Path) -> None:
    found = chosen(make(tmp_path, method="random", trials=6), 6)
    assert len({tuple(values.values()) for values in found}) == 6


def test_all_trials_run_and_the_report_says_so(tmp_path: Path, trial: tuple[str, str]) -> None:
    space = {"optim.learning_rate": {"values": [1e-3, 1e-2, 1e-1]}, "rl.lam": {"values": [0, 0.5, 1]}}
    sweep = make(tmp_path, space=space, parallel=2)
    sweep_run.run(sweep, trial)
    rows = write_report(sweep)
    assert states(rows) == ["complete"] * 9
    assert [row.value for row in rows] == pytest.approx([0.01] * 3 + [0.1] * 3 + [1.0] * 3)
    summary = json.loads((sweep.run_dir / "sweep.json").read_text())
    assert summary["schema"] == 1
    assert summary["best"] == rows[6].name
    assert summary["importances"]["optim.learning_rate"] > summary["importances"]["rl.lam"]
    best = RunConfig.from_json((sweep.run_dir / "best.json").read_text())
    assert (best.optim.learning_rate, best.rl.lam) == (0.1, 0.0)
    assert best == RunConfig.from_json((sweep.run_dir / "trials" / rows[6].name / "config.json").read_text())
    text = (sweep.run_dir / "sweep.md").read_text()
    assert re.search(rf"\| {rows[6].name} \| 0\.1 \| 0 \| complete \| 1\.000 \| 0\.9\d\d-1\.000 \| 0\.500 \| 30 \| 30 \| 0\.5 \|", text)
    for name in ("parallel", "importance"):
        assert (sweep.run_dir / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert f"({name}.png)" in text
    assert main(["report", str(sweep.run_dir)]) == 0


def test_a_failure_is_kept_with_its_reason_and_tried_again_on_request(tmp_path: Path, trial: tuple[str, str]) -> None:
    options = {"space": {"train.seed": {"values": [1, 101]}}}
    sweep = make(tmp_path, **options)
    sweep_run.run(sweep, trial)
    _, failed = write_report(sweep)
    assert (failed.state, failed.reason) == ("failed", "exit code 3\nno memory left\non this device")
    assert "no memory left" in (sweep.run_dir / "sweep.md").read_text()
    sweep_run.run(make(tmp_path, **options), trial)
    assert states(sweep.rows()) == ["complete", "failed"], "not without being asked"
    again = make(tmp_path, **options)
    assert again.retry_failed() == 1
    sweep_run.run(again, trial)
    assert states(again.rows()) == ["complete", "complete"]
    assert [row.name for row in again.rows()][1] == failed.name


def test_a_trial_below_the_median_is_stopped(tmp_path: Path, trial: tuple[str, str]) -> None:
    rates = [1e-2, 2e-2, 3e-2, 1e-3]
    fixed = {**SPEC["fixed"], "optim.weight_decay": 0.1}  # the slow one would wait a minute at update 20
    sweep = make(tmp_path, fixed=fixed, space={"optim.learning_rate": {"values": rates}}, prune=True, prune_startup=2, prune_warmup=20)
    sweep_run.run(sweep, trial)
    rows = write_report(sweep)
    assert states(rows) == ["complete", "complete", "complete", "pruned"]
    assert rows[3].updates == 20
    assert json.loads((sweep.run_dir / "sweep.json").read_text())["best"] == rows[2].name


def test_two_sweeps_on_one_folder_share_the_trials(tmp_path: Path) -> None:
    one, other = make(tmp_path), Sweep.open(tmp_path / "sweep")
    claims = [sweep.next() for sweep in (one, other, one, other, one, other)]
    assert len({claim.name for claim in claims if claim}) == 6
    assert one.next() is None
    for sweep, claim in zip((one, other) * 3, claims, strict=True):
        assert claim is not None
        complete(sweep, claim)
    assert states(one.rows()) == states(other.rows()) == ["complete"] * 6


def test_sigterm_stops_the_trials_and_they_are_offered_again(tmp_path: Path, trial: tuple[str, str]) -> None:
    space = {"train.seed": {"values": [201, 1]}}
    sweep = make(tmp_path, space=space)
    stopper = subprocess.Popen([sys.executable, "-c", f"import os, time; time.sleep(1); os.kill({os.getpid()}, {signal.SIGTERM:d})"])
    began = time.monotonic()
    with pytest.raises(Preempted, match="1 trials saved"):
        sweep_run.run(sweep, trial)
    stopper.wait()
    assert time.monotonic() - began < 30
    again = Sweep.open(sweep.run_dir)
    assert states(again.rows()) == ["running"]
    claim = again.next()
    assert claim is not None
    assert claim.values == {"train.seed": 201}


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    make(tmp_path)
    with pytest.raises(ValueError, match=r"holds another sweep \(space differ\); only trials and parallel may change"):
        make(tmp_path, space={"rl.lam": {"values": [0.5]}})
    with pytest.raises(ValueError, match=r"holds another sweep \(base differ\)"):
        make(tmp_path, fixed={})
    make(tmp_path, trials=5, parallel=2)
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.txt").touch()
    spec, _ = read_spec(write_spec(tmp_path))
    with pytest.raises(ValueError, match="not empty and not a sweep"):
        Sweep(spec, foreign)
    assert [path.name for path in foreign.iterdir()] == ["thesis.txt"]
    (tmp_path / "sweep" / "journal.log").write_text('{"op": \n{}\n')
    with pytest.raises(ValueError, match=r"journal.log: cannot be read"):
        make(tmp_path, trials=5)
    (tmp_path / "sweep" / "spec.json").write_text('{"format": "other"}')
    with pytest.raises(ValueError, match=r"spec.json: is not a sweep of this version"):
        Sweep.open(tmp_path / "sweep")


def test_a_half_line_of_a_journal_is_dropped(tmp_path: Path) -> None:
    """As a full disk leaves it: the trials before it are there, and new ones can be recorded."""
    sweep = make(tmp_path)
    claim = sweep.next()
    assert claim is not None
    complete(sweep, claim)
    before = (tmp_path / "sweep" / "journal.log").read_bytes()
    (tmp_path / "sweep" / "journal.log").write_bytes(before + b'{"op_code": 4, "wor')
    again = Sweep.open(tmp_path / "sweep")
    assert (tmp_path / "sweep" / "journal.log").read_bytes().startswith(before)
    assert states(again.rows()) == ["complete"]
    other = again.next()
    assert other is not None
    complete(again, other)
    assert states(Sweep.open(tmp_path / "sweep").rows()) == ["complete"] * 2
