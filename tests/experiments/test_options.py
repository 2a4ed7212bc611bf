"""Options mean the same in every command: what is omitted is the retriever's own."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from experiments import baselines, calibrate, evaluate, tables
from experiments.ablations import __main__ as ablations
from experiments.cli import SHORT, read
from experiments.cli import main as train
from experiments.cli import parse as parse_training
from qrag_jax.config import EvalConfig, RunConfig
from qrag_jax.train.training import check_run_dir
from tests.support.small import SMALL, changed

OWN = changed(
    SMALL,
    data={"data_dir": "DIR"},
    train={"seed": 3},
    eval={"budget": 3, "beam": 2, "tokens": ("2k",), "episodes": 6, "benchmarks": ("musique",), "split": "validation"},
)
COMMANDS = ("evaluate", "calibrate", "tables", "baselines", "ablations")


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(OWN.to_json(), encoding="utf-8")
    return tmp_path


def configured(name: str, run_dir: Path, *words: str) -> RunConfig:
    """What a command asks of the run in a folder."""
    if name == "evaluate":
        return evaluate.configuration(evaluate.parse([str(run_dir), "--run-dir", "out", *words]), OWN)
    if name == "calibrate":
        return calibrate.configuration(read(calibrate.Command, [str(run_dir), *words], name, ""), OWN)
    if name == "tables":
        return tables.configuration(read(tables.Command, [str(run_dir), "--run-dir", "out", *words], name, ""), OWN)
    module: Any = {"baselines": baselines, "ablations": ablations}[name]
    return module.configuration(read(module.Command, ["--preset", str(run_dir), *words], name, ""))


@pytest.mark.parametrize("name", COMMANDS)
def test_what_is_omitted_is_the_retrievers_own(name: str, run_dir: Path) -> None:
    found = configured(name, run_dir)
    assert (found.data, found.train.seed) == (OWN.data, 3)
    if name != "tables":
        assert found.eval.budget == 3
    else:
        assert found.eval.budget == 5, "the largest of its --budgets"
    # Baselines search greedily, tables compare beams.
    assert found.eval.beam == (1 if name in ("tables", "baselines") else 2)
    if name in ("evaluate", "ablations"):
        assert found.eval == OWN.eval


@pytest.mark.parametrize("name", COMMANDS)
def test_what_is_typed_is_meant(name: str, run_dir: Path) -> None:
    for word in ("none", "None"):
        assert configured(name, run_dir, "--data-dir", word).data.data_dir is None
    assert configured(name, run_dir, "--data-dir", "OTHER").data.data_dir == "OTHER"
    assert configured(name, run_dir, "--task", "qa3").data == changed(OWN, data={"task": "qa3"}).data
    there = configured(name, run_dir, "--benchmark", "ruler")
    assert (there.data.benchmark, there.data.task, there.data.data_dir, there.eval.benchmarks) == ("ruler", "niah_mk3", "DIR", ())
    if name != "ablations":
        assert configured(name, run_dir, "--seed", "7").train.seed == 7
    if name not in ("tables", "ablations"):
        assert configured(name, run_dir, "--budget", "2").eval.budget == 2
    if name not in ("calibrate",):
        asked = configured(name, run_dir, "--eval-tokens", "1k", "4k", "--eval-episodes", "1").eval
        assert (asked.tokens, asked.episodes, asked.haystacks) == (("1k", "4k"), 1, 1)


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--benchmark", "babylong"], r"data\.benchmark = 'babylong': unknown; known: babilong, .*did you mean 'babilong'\?"),
        (["--task", "qa9"], r"data\.task = 'qa9': unknown task of babilong; known: qa1"),
        (["--tusk", "qa1"], r"--tusk"),
    ],
)
def test_bad_input_is_refused_in_one_line(name: str, words: list[str], message: str, run_dir: Path) -> None:
    with pytest.raises(ValueError, match=message) as error:
        configured(name, run_dir, *words)
    assert "\n" not in str(error.value)


def test_the_section_of_a_test_is_spelled_alike_everywhere(run_dir: Path) -> None:
    short = [
        "--eval-tokens",
        "1k",
        "--split",
        "test",
        "--beam",
        "3",
        "--reader",
        "flax:m",
        "--reader-devices",
        "2",
        "--reader-dtype",
        "float32",
    ]
    spelled = [word if not word.startswith("--") else evaluate.SHORT[word] for word in short]
    found = configured("evaluate", run_dir, *short)
    assert found == configured("evaluate", run_dir, *spelled)
    assert (found.eval.reader_devices, found.eval.beam, found.eval.episodes) == (2, 3, 6)
    trained = [parse_training("babilong", "", ["--preset", str(run_dir), *words]).config.eval for words in (short, spelled)]
    assert trained == [found.eval, found.eval]
    # Every field has the same name in both.
    fields = {f"--eval.{name.replace('_', '-')}" for name in EvalConfig.__dataclass_fields__}
    assert set(evaluate.SHORT.values()) == fields
    assert set(evaluate.SHORT) - set(SHORT) == {"--budget"}, "in training there are two: --rl.budget and --eval.budget"


@pytest.mark.parametrize(
    "words", [["--preset"], ["--task"], ["--seeds"], ["--seed"], ["--preset", "--task", "qa2"], ["--task", "--seed", "1"]]
)
def test_an_option_without_its_value_is_refused_in_one_line(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert train("babilong", "", words) == 64
    shown = capsys.readouterr()
    field = {"--preset": "--preset", "--task": "--task", "--seeds": "seeds = ()", "--seed": "--seed"}[words[0]]
    assert shown.err.startswith("error: ")
    assert field in shown.err
    assert shown.err.count("\n") == 1
    assert shown.out == ""


@pytest.mark.parametrize("below", ["", "below/it"])
def test_a_run_dir_that_is_a_file_is_refused_in_one_line(tmp_path: Path, below: str) -> None:
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(ValueError, match=f"^{re.escape(str(file))}: is a file, not a folder; choose another --run-dir$"):
        check_run_dir(SMALL, file / below)
    if not below:
        with pytest.raises(ValueError, match=f"^{re.escape(str(file))}: is a file, not a folder; choose another --run-dir$"):
            tables.run(tables.Command(tmp_path, file))


def test_a_field_that_does_not_fit_is_named(run_dir: Path) -> None:
    with pytest.raises(ValueError, match=r"eval\.haystacks = 9: must be in 1\.\.eval\.episodes \(6\)"):
        configured("evaluate", run_dir, "--haystacks", "9")
    with pytest.raises(ValueError, match=r"eval\.reader_devices = 2: must be left at its default"):
        configured("evaluate", run_dir, "--reader-devices", "2")


def test_help_says_what_the_default_is(capsys: pytest.CaptureFixture[str]) -> None:
    for parse in (evaluate.parse, lambda words: read(calibrate.Command, words, "calibrate", "")):
        with pytest.raises(SystemExit):
            parse(["--help"])
        shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
        assert "Paths kept at each step" in shown, "the words are those of the configuration"
        assert shown.count("default: that of the retriever or preset") >= 6
