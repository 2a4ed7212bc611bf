"""A sweep says where it is, and stops trials by the pruner that was asked for."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from experiments.sweep import __main__ as command
from experiments.sweep.report import interval, standing, write_report
from experiments.sweep.spec import read_spec
from experiments.sweep.study import Sweep
from tests.support.small import write_lines
from tests.support.sweep import SPEC, write_spec

FIXED = {"train.steps": 90, "train.log_every": 10, "train.eval_every": 10, "train.eval_episodes": 16}


def make(folder: Path, **changes: Any) -> Sweep:
    spec, _ = read_spec(write_spec(folder, fixed=FIXED, **changes))
    return Sweep(spec, folder / "sweep")


def last_update(sweep: Sweep, score: float) -> int:
    """Runs the next trial, which has this score from the start; the update after which it ends."""
    claim = sweep.next()
    assert claim is not None
    records = [{"kind": "validation", "step": step, "fact_em": score, "fact_f1_stopped": None} for step in range(0, 91, 10)]
    for i, record in enumerate(records):
        write_lines(claim.folder / "metrics.jsonl", *records[: i + 1])
        if sweep.report(claim, records[: i + 1]):
            sweep.finish(claim, "pruned")
            return int(record["step"])  # type: ignore[call-overload]
    sweep.finish(claim, "complete")
    return 90


def test_asha_keeps_a_third_at_each_rung(tmp_path: Path) -> None:
    sweep = make(tmp_path, prune=True, pruner="asha")
    # Rungs after 10 (a ninth of 90), 30 and 90 updates. The first trial has no rival. One that is worse than all before ends at the first
    # rung; one that is better than all before is among the best third at each rung.
    assert [last_update(sweep, score) for score in (0.5, 0.4, 0.6, 0.3, 0.7)] == [90, 10, 90, 10, 90]


def test_hyperband_stops_some_and_the_median_is_the_usual_one(tmp_path: Path) -> None:
    for pruner in ("hyperband", "median"):
        folder = tmp_path / pruner
        folder.mkdir()
        sweep = make(folder, prune=True, pruner=pruner, prune_startup=2)
        ends = [last_update(sweep, score) for score in (0.6, 0.5, 0.4, 0.3, 0.2)]
        assert ends[0] == 90
        assert min(ends) < 90, pruner
    # The median of .6 and .5 is .55; nothing is stopped before a quarter of 90 updates, so at the validation after 30.
    assert ends == [90, 90, 30, 30, 30]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prune": True, "pruner": "ashha"}, "pruner = 'ashha': must be of type"),
        ({"pruner": "asha"}, "pruner = 'asha': is used with prune: true; add that"),
    ],
)
def test_a_pruner_that_is_not_used_or_not_known_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        make(tmp_path, **changes)


def test_a_sweep_that_began_before_a_setting_existed_resumes(tmp_path: Path) -> None:
    sweep = make(tmp_path)
    tree = json.loads((sweep.run_dir / "spec.json").read_text())
    del tree["settings"]["pruner"], tree["base"]["train"]["seed"]
    (sweep.run_dir / "spec.json").write_text(json.dumps(tree))
    assert Sweep(sweep.spec, sweep.run_dir).spec == sweep.spec


def test_it_says_where_it_is_with_intervals(tmp_path: Path) -> None:
    sweep = make(tmp_path, prune=True)
    assert standing(sweep, sweep.rows()) == "6 trials, grid, pruned by median"
    for score in (0.5, 0.875):
        last_update(sweep, score)
    claim = sweep.next()
    assert claim is not None
    rows = write_report(sweep)
    # Wilson's interval of 14 of 16: centre (14 + 1.92) / 19.84 = .802, half width .163.
    assert standing(sweep, rows) == (
        f"6 trials, grid, pruned by median; so far 2 complete, 1 running; 4 to finish; best so far: {rows[1].name}, Fact EM 0.875 "
        "(95 %: 0.640-0.965)"
    )
    text = (sweep.run_dir / "sweep.md").read_text()
    assert "| state | Fact EM | 95 % | Fact F1, stopped |" in text
    assert "| complete | 0.875 | 0.640-0.965 | - |" in text
    assert "| running | - | - | - |" in text
    assert interval(None, 16) == "-"


def test_parallel_may_be_typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    seen: list[int] = []
    monkeypatch.setattr(command, "_run_here", lambda spec, folder, retry: seen.append(spec.settings.parallel))
    monkeypatch.setattr(command, "check_data", lambda *_: None)
    path = write_spec(tmp_path, **SPEC)
    for words in ([], ["--parallel", "3"]):
        assert command.main([str(path), "--run-dir", str(tmp_path / "sweep"), *words]) == 0
    assert seen == [1, 3]
    assert command.main([str(path), "--parallel", "0"]) == 64
    assert "parallel = 0: must be >= 1" in capsys.readouterr().err
