"""``python -m experiments.speed.watching``: its figures fit together, and bad input is told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from experiments.speed.watching import figures, main
from qrag_jax.train import model
from tests.support.small import SMALL


def test_figures_by_hand() -> None:
    # Shares .1, .2 and .3; in all 1.1, 2.4 and 1.3 compared with 1, 2 and 1: .1, .2 and .3 more.
    found = figures([[1.0, 0.1], [2.0, 0.4], [1.0, 0.3]], [[1.0, 0.0], [2.0, 0.0], [1.0, 0.0]])
    assert (found["updates_s"], found["record_s"]) == (1.0, 0.3)
    assert (found["share"], found["added"]) == (pytest.approx(0.2), pytest.approx(0.2))
    assert found["added_quartiles"] == [pytest.approx(0.1), pytest.approx(0.3)]


@pytest.mark.slow
@pytest.mark.quick
def test_every_kind_of_record_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(model, "VOCABULARY_EXAMPLES", 64)
    (tmp_path / "small.json").write_text(SMALL.to_json())
    out = tmp_path / "out"
    assert main(["--run-dir", str(out), "--preset", str(tmp_path / "small.json"), "--rounds", "2", "--track", "tensorboard"]) == 0
    assert sorted(path.name for path in out.iterdir()) == ["watching.json", "watching.md"], "scratch is removed"
    report = json.loads((out / "watching.json").read_text())
    assert {kind: len(found) for kind, found in report["samples"].items()} == {"nothing": 2, "metrics.jsonl": 2, "tensorboard": 2}
    assert all(recorded > 0 for kind in report["kinds"] for _, recorded in report["samples"][kind])
    text = (out / "watching.md").read_text()
    assert "| tensorboard |" in text
    assert text in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--rounds", "1"], "rounds = 1: must be 2 or more"),
        (["--track", "tensorbord"], "track = 'tensorbord': unknown; known: tensorboard, wandb; did you mean 'tensorboard'?"),
        (["--preset", "tinny"], "did you mean 'tiny'?"),
    ],
)
def test_bad_input_is_told_in_one_line(tmp_path: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--run-dir", str(tmp_path / "out"), *words]) == 64
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert not (tmp_path / "out").exists()
