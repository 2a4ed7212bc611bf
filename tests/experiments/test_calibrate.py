"""The stop threshold of an export and its limit of "not in the documents", set again as a user would."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from experiments import calibrate
from qrag_jax.export.folder import Export, read_export, write_export
from qrag_jax.export.refusal import Refusal
from tests.support.small import SMALL, small_learner, small_tokenizer


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    learner, state = small_learner()
    write_export(tmp_path / "run" / "export", Export(SMALL, learner.embedder.config, state.params, small_tokenizer(), "mean", step=7))
    return tmp_path / "run"


def test_calibrate(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = read_export(run_dir / "export")
    assert calibrate.main([str(run_dir), "--episodes", "12", "--budget", "3"]) == 0
    after = read_export(run_dir / "export")
    found = json.loads((run_dir / "calibration.json").read_text())
    assert after.threshold == found["calibrated"]
    assert (found["schema"], found["episodes"]) == (1, 12)
    assert (run_dir / "calibration.png").stat().st_size > 1000
    assert (after.config, after.step) == (before.config, 7), "all but the limits stays"
    assert after.refusal == Refusal(**found["refusal"])
    assert (after.refusal.questions, after.refusal.answerable) == (12, 0.0), "of 12 questions, 1 % is none"
    said = capsys.readouterr().out
    assert "was none" in said
    assert f'"not in the documents" if no pick reaches Q {after.refusal.least_q:.3f}' in said
    nearest = min(range(101), key=lambda i: abs(found["threshold"][i] - found["calibrated"]))
    assert found["fact_f1"][nearest] >= max(found["fact_f1"]) - 0.05


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--budget", "1"], "budget = 1: must be >= 2"),
        (["--task", "qa9"], "qa9"),
        (["--beam", "0"], "--beam = 0"),
        (["--episodes", "0"], "--episodes = 0"),
    ],
)
def test_bad_input(run_dir: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert calibrate.main([str(run_dir), *words]) == 64
    assert message in capsys.readouterr().err
    assert read_export(run_dir / "export").threshold is None


def test_only_an_export_on_this_machine_has_a_threshold_to_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "model_best.pt").touch()
    for name in (str(tmp_path), "Q-RAG/qrag-ft-e5-on-hotpotqa"):
        assert calibrate.main([name]) == 64
        [line] = capsys.readouterr().err.splitlines()
        assert f"retriever = {name}: not an export on this machine" in line
        assert "qrag import NAME OUT" in line
