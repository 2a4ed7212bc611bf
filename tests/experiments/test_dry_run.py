"""``--dry-run`` shows what a run would be, is a preset itself, and writes nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from qrag_jax.config import RunConfig
from qrag_jax.config.presets import preset
from tests.support import runs


def test_a_dry_run_is_a_preset_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_dir = tmp_path / "run"
    assert runs.here(run_dir, "--dry-run", "--optim.weight-decay", "0.001") == 0
    shown = capsys.readouterr()
    assert list(tmp_path.iterdir()) == []
    assert "compiling the update for qa1, 16 chunks a document, " in shown.err
    about = [line for line in shown.out.splitlines() if line.startswith("#")]
    for expected in (
        f"# A dry run: nothing was written. The run would be in {run_dir}.",
        "# devices: 1 x cpu",
        # By hand from SIZES: 40 updates of 8 episodes; validations before the first, and after every 10.
        "# training questions (qa1, 16 chunks): generated as needed; 40 updates read 320, 8 each",
        "# validation questions: 8, 5 times",
        "# test questions: 8 of babilong-qa1-1k",
        "#   action_encoder: the same as state_encoder",
    ):
        assert expected in about
    assert sum(line.startswith("#   question: ") for line in about) == 2
    # One layer, 32 wide, 64 inside: four products of 32 x 32 and two of 32 x 64, their biases, and two norms of 2 x 32.
    assert f"#   state_encoder.layer_0: {4 * (32 * 32 + 32) + 32 * 64 + 64 + 64 * 32 + 32 + 2 * 64:,}" in about
    for start in ("model: state encoder and action encoder, Bert, 1 layer, width 32: ", "memory of an update on the device: ", "time of "):
        assert any(line.startswith(f"# {start}") for line in about)
    assert any("16 chunks: question_ids [8, 12], chunk_pool_ids [" in line for line in about)
    path = tmp_path / "mine.yaml"
    path.write_text(shown.out)
    again = preset(str(path), "babilong")
    assert RunConfig.from_yaml(again.to_yaml()) == again
    assert (again.optim.weight_decay, again.data.chunks, again.model.width) == (0.001, 16, 32)


def test_a_dry_run_refuses_what_a_run_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "notes.txt").touch()
    assert runs.here(tmp_path, "--dry-run") == 64
    assert "not empty, but not a run" in capsys.readouterr().err
    assert runs.here(tmp_path / "run", "--dry-run", "--data-dir", str(tmp_path)) == 64
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
