"""A configuration in a file is a preset, in every command that takes one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from experiments.cli import main, parse
from experiments.options import Questions
from qrag_jax.config.presets import preset
from tests.support.small import SMALL, changed


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "best.json"
    path.write_text(SMALL.to_json())
    return path


def test_a_file_gives_settings_task_and_name(path: Path) -> None:
    command = parse("babilong", "", ["--preset", str(path)])
    assert (command.config, command.run_dir) == (SMALL, "runs/babilong-qa1-best")
    command = parse("babilong", "", ["--preset", str(path), "--task", "qa3", "--rl.lam", "0.9"])
    assert command.config == changed(SMALL, data={"task": "qa3"}, rl={"lam": 0.9})
    assert preset(str(path), "babilong", "qa1") == SMALL


def test_a_folder_of_a_run_or_an_export_is_a_preset(tmp_path: Path) -> None:
    run, export = tmp_path / "run", tmp_path / "export"
    run.mkdir()
    export.mkdir()
    (run / "config.json").write_text(SMALL.to_json())
    (export / "qrag.json").write_text(json.dumps({"config": json.loads(SMALL.to_json()), "step": 1}))
    for folder in (run, export):
        assert preset(str(folder)) == preset(str(folder), "babilong") == SMALL
        command = parse("babilong", "", ["--preset", str(folder), "--steps", "50"])
        assert (command.config, command.run_dir) == (changed(SMALL, train={"steps": 50}), f"runs/babilong-qa1-{folder.name}")
        # The same in the commands that take any benchmark.
        assert Questions().of_preset(str(folder)) == SMALL
        assert Questions(task="qa3").of_preset(str(folder)) == changed(SMALL, data={"task": "qa3"})
    assert Questions().of_preset(str(run / "config.json")) == SMALL
    assert Questions(benchmark="hotpotqa").of_preset("minilm") == preset("minilm", "hotpotqa", "all")
    with pytest.raises(ValueError, match=r"holds neither config\.json nor qrag\.json"):
        preset(str(tmp_path))


def test_none_is_no_data_folder(path: Path) -> None:
    path.write_text(changed(SMALL, data={"data_dir": "books"}).to_json())
    assert parse("babilong", "", ["--preset", str(path)]).config.data.data_dir == "books"
    assert parse("babilong", "", ["--preset", str(path), "--data-dir", "none"]).config == SMALL
    assert Questions().of_preset(str(path)).data.data_dir == "books"
    assert Questions(data_dir="None").of_preset(str(path)) == SMALL


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
        ('{"data": {"task": "niah"}}', "best.json: data.task = 'niah': unknown task of babilong; known: qa1"),
    ],
)
def test_a_bad_file_is_refused(text: str | None, message: str, path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path.unlink() if text is None else path.write_text(text)
    assert main("babilong", "", ["--preset", str(path)]) == 64
    assert message in capsys.readouterr().err


def test_help_names_files(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse("babilong", "", ["--help"])
    assert "sweep's best.json" in " ".join(capsys.readouterr().out.replace("│", " ").split())


def test_an_empty_task_is_refused(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for preset_words in ((), ("--preset", str(path))):
        assert main("babilong", "", [*preset_words, "--task="]) == 64
        assert "--task = ''" in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"data\.task = ''"):
        Questions(task="").of_preset("tiny")
    with pytest.raises(ValueError, match=r"data\.task = ''"):
        Questions(task="").of_preset(str(path))
