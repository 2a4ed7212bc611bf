"""Files that a stranger's run brings: their names stay in the folder, what they quote has no effect on a page, no class is imported."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from experiments import report
from experiments.ablations.report import read_ablations
from experiments.sweep.spec import read_spec
from qrag_jax.config import RunConfig
from qrag_jax.data import prepared
from qrag_jax.export.card import model_card
from qrag_jax.rundir.files import is_name, markdown_text
from tests.conftest import ROOT

EVIL = "<script>alert(1)</script>|x\n# head [a](javascript:x) ![b](http://x) `c` *d* _e_"


@pytest.mark.parametrize("name", ["../x", "/tmp/x", "a/b", "..", ".hidden", "x\0y", "", "a" * 200, 5, None, ["a"], "x\n"], ids=repr)
def test_names_that_lead_out_of_a_folder(name: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert not is_name(name)
    folder = tmp_path / "results" / "run"
    folder.mkdir(parents=True)
    tree = json.loads((ROOT / "docs/results/babilong-qa1-tiny/results.json").read_text())
    for row in tree["rows"]:
        row["benchmark"] = name
    (folder / "results.json").write_text(json.dumps(tree))
    assert report.main(["--results", str(tmp_path / "results")]) == 64
    assert "row 1: benchmark = " in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["results", "results.json", "run"]


@pytest.mark.parametrize("name", ["babilong", "hotpotqa:2+musique", "qa1", "niah_single_1", "a.b-c"])
def test_names(name: str) -> None:
    assert is_name(name)
    assert markdown_text(name) == name


def test_what_a_page_quotes_has_no_effect() -> None:
    text = markdown_text(EVIL)
    assert text == r"&lt;script>alert(1)&lt;/script>\|x # head \[a\](javascript:x) !\[b\](http://x) \`c\` \*d\* \_e\_"
    rows = [dict.fromkeys(report.NEEDED) | {"benchmark": "own", "task": "qa1", "chunks": 1, "episodes": 1, "budget": 1, "split": EVIL}]
    page = report.page([report.Run("run", tuple(rows), None, "<b>12345")])
    assert "<script>" not in page
    assert "<b>" not in page
    config = RunConfig()
    config = dataclasses.replace(
        config, model=dataclasses.replace(config.model, embedder=EVIL), data=dataclasses.replace(config.data, task=EVIL)
    )
    card = model_card(config, {"architectures": [EVIL], "hidden_size": 3}, "mean", None, 1, [{"benchmark": EVIL, "task": EVIL}])
    assert "<script>" not in card
    assert "\n# head" not in card
    assert "[a](java" not in card.replace(r"\[", "").replace(r"\]", "]")


SPEC = 'benchmark = "babilong"\ntask = "qa1"\nmethod = "{method}"\n[space."optim.batch"]\n{values}\n'


@pytest.mark.parametrize(
    ("method", "values"),
    [("grid", "low = 1\nhigh = 2000000000"), ("grid", "low = 1\nhigh = 1000000"), ('random"\ntrials = "1', "low = 1\nhigh = 9")],
)
def test_grids_of_absurd_size_are_refused(method: str, values: str, tmp_path: Path) -> None:
    (tmp_path / "s.toml").write_text(SPEC.format(method=method, values=values))
    with pytest.raises(ValueError, match=r"100,000|trials"):
        read_spec(tmp_path / "s.toml")


@pytest.mark.parametrize("name", ["../../evil", "/tmp/evil", "a/b", 5, None], ids=repr)
def test_a_trial_of_a_journal_stays_in_its_folder(name: Any, tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    from experiments.sweep.study import Sweep

    (tmp_path / "s.toml").write_text(SPEC.format(method="grid", values="values = [8, 16]"))
    sweep = Sweep(read_spec(tmp_path / "s.toml")[0], tmp_path / "sweep")
    claim = sweep.next()
    assert claim is not None
    claim.lock.release()
    shutil.rmtree(tmp_path / "sweep" / "trials")
    journal = tmp_path / "sweep" / "journal.log"
    journal.write_text(journal.read_text().replace(json.dumps(claim.name), json.dumps(name)))
    again = Sweep.open(tmp_path / "sweep")
    for ask in (again.rows, again.next):
        with pytest.raises(ValueError, match=r"journal\.log: trial 0 is called .*move it away"):
            ask()
    assert not (tmp_path / "sweep" / "trials").exists()


@pytest.mark.parametrize("key", ["pythonClassName", "type"])
def test_features_name_no_class_that_is_imported(key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "evil_module.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    nested = {"pythonClassName": "tensorflow_datasets.core.features.features_dict.FeaturesDict", "x": [{key: "evil_module.Features"}]}
    (tmp_path / "features.json").write_text(json.dumps(nested))
    with pytest.raises(ValueError, match=r"features\.json: .*evil_module\.Features.*prepare_data"):
        list(prepared.read_records(tmp_path, "train", []))


BAD_ABLATIONS: list[tuple[tuple[str | int, ...], Any, str]] = [
    (("rows",), {}, r"rows = \{\}: must be a list"),
    (("rows", 0), None, r"rows\[0\]: must be an object"),
    (("rows", 1, "seeds"), 3, r"rows\[1\].seeds = 3: must be a list"),
    (("rows", 0, "fact_em", 0), float("nan"), r"rows\[0\].fact_em = \[nan"),
    (("rows", 0, "mean"), {}, r"rows\[0\].mean: has no fact_em"),
    (("rows", 0, "mean", "fact_f1"), "x", r"rows\[0\].mean.fact_f1 = 'x': must be a finite number or null"),
    (("rows", 0, "mean", "fact_f1"), None, r"rows\[0\].mean.fact_f1 = None: must be null exactly"),
    (("rows", 0, "paper"), {"place": "Table 1"}, r"rows\[0\].paper: has no fact_f1"),
    (("schema",), True, "must be an object with schema = 1"),
]
BAD_SWEEPS: list[tuple[tuple[str | int, ...], Any, str]] = [
    (("trials",), None, "trials = None: must be a list"),
    (("importances",), {"rl.alpha": "1"}, "importances = .*finite numbers"),
    (("trials", 0, "state"), [], r"trials\[0\].state = \[\]: must be one of waiting"),
    (("trials", 0, "value"), float("inf"), r"trials\[0\].value = inf: must be a finite number or null"),
    (("trials", 0, "values"), {}, r"trials\[0\].values: has no "),
    (("trials", 0, "values", "rl.alpha"), 1e300, r"trials\[0\].values.rl.alpha = 1e\+300: must be in"),
    (("trials", 2, "validations"), [[1]], r"trials\[2\].validations = \[\[1\]\]: must be a list of pairs"),
]
BAD_FILES = [("babilong-qa2-ablations/ablations.json", *bad) for bad in BAD_ABLATIONS]
BAD_FILES += [("sweep-qa1/sweep.json", *bad) for bad in BAD_SWEEPS]


@pytest.mark.parametrize(("name", "way", "value", "why"), BAD_FILES, ids=range(len(BAD_FILES)))
def test_ablations_and_sweeps_that_are_damaged(name: str, way: tuple[Any, ...], value: Any, why: str, tmp_path: Path) -> None:
    file = tmp_path / Path(name).name
    tree = part = json.loads((ROOT / "docs/results" / name).read_text())
    for key in way[:-1]:
        part = part[key]
    part[way[-1]] = value
    file.write_text(json.dumps(tree))
    read: Callable[[], object] = lambda: read_ablations(file)
    if file.name == "sweep.json":
        pytest.importorskip("optuna")
        from experiments.sweep.report import drawings

        read = lambda: drawings(tmp_path)
    with pytest.raises(ValueError, match=why) as caught:
        read()
    assert str(caught.value).startswith(f"{file}: ")
    assert "\n" not in str(caught.value)
