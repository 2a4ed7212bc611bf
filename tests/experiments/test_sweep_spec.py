"""Specifications of sweeps: each is checked to the last value before anything starts."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from experiments.sweep.__main__ import main
from experiments.sweep.spec import Spec, read_spec
from qrag_jax.rundir.ending import BAD_INPUT
from tests.conftest import ROOT
from tests.support.sweep import write_spec


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": "grid"}, "unknown key 'methods'; known: benchmark, task, method"),
        ({"task": 3}, "task = 3: must be of type <class 'str'>"),
        ({"method": "bayes"}, "method = 'bayes': must be of type"),
        ({"method": "random"}, "trials: missing; method random needs their number"),
        ({"trials": 0}, "trials = 0: must be >= 1"),
        ({"trials": 7}, "trials = 7: must be <= 6, the number of combinations in the space"),
        ({"trials": True}, "trials = True: must be of type"),
        ({"parallel": 0}, "parallel = 0: must be >= 1"),
        ({"preset": "huge"}, "preset = 'huge': unknown; known: tiny"),
        ({"run_dir": 1}, "run_dir = 1: must be the name of a folder"),
        ({"space": {}}, "space: is empty"),
        ({"space": [1]}, r"space = [1]: must be a mapping from dotted field names"),
        ({"fixed": {"optim.lr": 1}}, "fixed.optim.lr: no such field; fields of optim: learning_rate, end_ratio"),
        ({"fixed": {"lr": 1}}, "fixed.lr: no such field; write SECTION.FIELD; sections: data, model"),
        ({"fixed": {"data.task": "qa2"}}, "fixed.data.task: set it with the key 'task'"),
        ({"fixed": {"rl.lam": 1}}, "rl.lam: is in fixed and in space"),
        ({"fixed": {"optim.batch": 1.5}}, "optim.batch = 1.5: must be of type <class 'int'>"),
        ({"fixed": {"optim.batch": 0}}, "optim.batch = 0: must be >= 1"),
        ({"space": {"rl.lam": {"values": [0.5, 2]}}}, "rl.lam = 2.0: must be in [0, 1]"),
        ({"space": {"rl.lam": {"values": []}}}, "space.rl.lam.values = []: must be a list of different values"),
        ({"space": {"rl.lam": {"values": [1, 1]}}}, "must be a list of different values"),
        ({"space": {"rl.lam": 0.5}}, "space.rl.lam = 0.5: must be {values: [...]}, {low, high}"),
        ({"space": {"rl.lam": {"low": 0.1}}}, "must be {values: [...]}"),
        ({"space": {"rl.lam": {"low": 0.1, "high": 0.2, "width": 1}}}, "must be {values: [...]}"),
        ({"space": {"rl.lam": {"low": 0.1, "high": 0.9}}}, "space.rl.lam: method grid needs values, or low, high and step"),
        ({"space": {"rl.lam": {"low": 0.1, "high": "0.9"}}}, "space.rl.lam.high = '0.9': must be a number"),
        ({"space": {"rl.lam": {"low": 0.9, "high": 0.1}}}, "space.rl.lam.low = 0.9: must be below high = 0.1"),
        ({"space": {"rl.lam": {"low": 0, "high": 1, "log": True}}}, "space.rl.lam.log = true: needs low > 0 and no step"),
        ({"space": {"rl.lam": {"low": 0.1, "high": 1, "log": 1}}}, "space.rl.lam.log = 1: must be true or false"),
        ({"space": {"rl.lam": {"low": 0, "high": 1, "step": 0.3}}}, "space.rl.lam.step = 0.3: must divide high - low = 1"),
        ({"space": {"rl.budget": {"low": 1.5, "high": 4}}}, "space.rl.budget.low = 1.5: must be a whole number"),
        ({"space": {"rl.budget": {"low": 1, "high": 400}}}, "rl.budget = 400: must be <= data.chunks (40)"),
        ({"space": {"rl.soft": {"low": 0, "high": 1}}}, "space.rl.soft: is not a number, so it cannot have a range"),
        ({"objective": "answer_em"}, "objective = 'answer_em': needs rl.reward"),
        ({"benchmark": "squad"}, "data.benchmark = 'squad': unknown; known: babilong"),
        ({"task": "qa9"}, "qa9"),
    ],
)
def test_a_bad_specification_starts_nothing(
    changes: dict[str, Any], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_spec(tmp_path, **changes)
    assert main([str(path), "--run-dir", str(tmp_path / "sweep")]) == BAD_INPUT
    error = capsys.readouterr().err
    assert error.startswith(f"error: {path}: ")
    assert message in error
    assert not (tmp_path / "sweep").exists()


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("spec.json", "{}", "must end in .yaml, .yml or .toml"),
        ("spec.yaml", "a: [", "expected the node content"),
        ("spec.yaml", "- 1", "must be a mapping of keys to values; known keys: benchmark"),
        ("spec.yaml", "task: qa1", "benchmark: missing"),
        ("spec.yaml", "task: !!python/object/apply:os.getcwd []", "could not determine a constructor"),
        ("spec.toml", "a = ", "Invalid value"),
    ],
)
def test_a_file_that_is_no_specification_is_refused(name: str, text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match="spec") as error:
        read_spec(tmp_path / name)
    assert str(error.value).startswith(str(tmp_path / name))
    assert message in str(error.value)
    with pytest.raises(ValueError, match=r"absent.yaml: No such file"):
        read_spec(tmp_path / "absent.yaml")


def test_yaml_and_toml_say_the_same(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(
        "{benchmark: babilong, task: qa1, method: tpe, trials: 3, fixed: {train.steps: 30}, "
        "space: {optim.learning_rate: {low: 1e-4, high: 3e-3, log: true}, train.curriculum: {values: [[], ['qa1:20:10']]}}}"
    )
    (tmp_path / "s.toml").write_text(
        'benchmark = "babilong"\ntask = "qa1"\nmethod = "tpe"\ntrials = 3\n[fixed]\n"train.steps" = 30\n[space]\n'
        '"optim.learning_rate" = {low = 1e-4, high = 3e-3, log = true}\n"train.curriculum" = {values = [[], ["qa1:20:10"]]}\n'
    )
    (one, folder), (other, _) = (read_spec(tmp_path / name) for name in ("s.yaml", "s.toml"))
    assert one == other == Spec.from_tree(json.loads(json.dumps(one.to_tree())))
    assert folder == "runs/sweep-s"
    assert one.config({"optim.learning_rate": 1e-3, "train.curriculum": '["qa1:20:10"]'}).train.curriculum == ("qa1:20:10",)


def test_a_sweep_needs_optuna(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert main([str(write_spec(tmp_path)), "--run-dir", str(tmp_path / "sweep")]) == BAD_INPUT
    assert "pip install 'qrag-jax[sweep]'" in capsys.readouterr().err


def test_specifications_here_are_good() -> None:
    paths = list((ROOT / "experiments" / "sweep").glob("*.yaml"))
    assert paths
    for path in paths:
        read_spec(path)


def test_a_key_given_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "twice.yaml"
    path.write_text("benchmark: babilong\ntask: qa1\nmethod: grid\nspace:\n  train.seed: {values: [1]}\n  train.seed: {values: [2]}\n")
    with pytest.raises(ValueError, match=r"line 6: the key 'train\.seed' stands twice; keep one of them"):
        read_spec(path)
