"""A configuration in a file is a preset, in every command that takes one."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments.cli import main, parse
from qrag_jax.config import BABI_TASKS
from qrag_jax.config.presets import preset
from tests.support.small import SMALL, changed


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "best.json"
    path.write_text(SMALL.to_json())
    return path


def test_a_file_gives_settings_task_and_name(path: Path) -> None:
    command = parse("babilong", BABI_TASKS, "qa2", "", ["--preset", str(path)])
    assert (command.config, command.run_dir) == (SMALL, "runs/babilong-qa1-best")
    command = parse("babilong", BABI_TASKS, "qa2", "", ["--preset", str(path), "--task", "qa3", "--rl.lam", "0.9"])
    assert command.config == changed(SMALL, data={"task": "qa3"}, rl={"lam": 0.9})
    assert preset(str(path), "babilong", "qa1") == SMALL


def test_a_mixture_belongs_to_each_of_its_benchmarks(path: Path) -> None:
    both = changed(SMALL, data={"benchmark": "hotpotqa:2+musique:1", "task": "all"})
    path.write_text(both.to_json())
    assert preset(str(path), "hotpotqa", "all") == preset(str(path), "musique", "all") == both


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "no such file"),
        ("{", "configuration is not JSON"),
        ('{"optim": {"lr": 1}}', "optim: unknown field 'lr'"),
        ('{"optim": {"learning_rate": -1}}', "optim.learning_rate = -1.0: must be > 0"),
        ('{"data": {"benchmark": "ruler"}}', "holds settings for ruler, not for babilong"),
        ('{"data": {"task": "niah"}}', "task 'niah': unknown; known: qa1"),
    ],
)
def test_a_bad_file_is_refused(text: str | None, message: str, path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path.unlink() if text is None else path.write_text(text)
    assert main("babilong", BABI_TASKS, "qa2", "", ["--preset", str(path)]) == 64
    assert message in capsys.readouterr().err


def test_help_names_files(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse("babilong", BABI_TASKS, "qa2", "", ["--help"])
    assert "sweep's best.json" in " ".join(capsys.readouterr().out.replace("│", " ").split())
