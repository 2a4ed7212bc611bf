"""Files that a stranger's run brings: their names stay in the folder, what they quote has no effect on a page, no class is imported."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from experiments import baselines, report, seeds
from experiments.ablations.report import read_ablations
from experiments.checks import NEEDED
from experiments.speed.plots import read_speed
from experiments.sweep.spec import read_spec
from experiments.tables import read_tables
from qrag_jax.config import RunConfig
from qrag_jax.data import prepared
from qrag_jax.export.card import model_card
from qrag_jax.rundir.files import is_name, markdown_text
from qrag_jax.rundir.log import RunLog
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
    rows = [dict.fromkeys(NEEDED) | {"benchmark": "own", "task": "qa1", "chunks": 1, "episodes": 1, "budget": 1, "split": EVIL}]
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
BAD_TABLES: list[tuple[tuple[str | int, ...], Any, str]] = [
    (("schema",), True, "must be an object with schema = 1"),
    (("stop_threshold",), "x", "stop_threshold = 'x': must be a finite number or null"),
    (("sections",), [], r"sections = \[\]: must be a list of one or more"),
    (("sections", 0), 3, r"sections\[0\]: must be an object with benchmark"),
    (("sections", 0, "task"), "../x", r"sections\[0\].task = '../x': must be a name"),
    (("sections", 0, "context_tokens"), True, r"sections\[0\].context_tokens = True: must be a whole number or null"),
    (("sections", 0, "episodes"), "<b>", r"sections\[0\].episodes = '<b>'"),
    (("sections", 0, "budgets"), {}, r"sections\[0\].budgets = \{\}: must be a list"),
    (("sections", 0, "budgets", 1, "fact_em"), 7, r"sections\[0\].budgets\[1\].fact_em = 7: must be a number in \[0, 1\]"),
    (("sections", 0, "beams", 0, "seconds"), None, r"sections\[0\].beams\[0\].seconds = None"),
    (("sections", 0, "stopping"), None, r"sections\[0\].stopping: must be an object"),
    (("sections", 0, "stopping", "length"), [1.0], r"sections\[0\].stopping: must have threshold, .* lists of one length"),
    (("sections", 0, "stopping", "threshold", 0), float("nan"), r"sections\[0\].stopping.threshold = \[nan"),
    (("sections", 0, "stopping", "more"), 1, r"sections\[0\].stopping: must have"),
]
BAD_SPEEDS: list[tuple[tuple[str | int, ...], Any, str]] = [
    (("schema",), "1", "must be an object with schema = 1"),
    (("search",), 3, "search = 3: must be a list"),
    (("search", 0, "step"), {"median_s": "x"}, r"search\[0\].step = .*must be a time"),
    (("search", 0, "tokens"), 0, r"search\[0\].tokens = 0"),
    (("build", 0, "median_s"), -1, r"build\[0\].median_s = -1"),
    (("compare",), [], r"compare = \[\]"),
]
BAD_FILES = [("babilong-qa2-ablations/ablations.json", *bad) for bad in BAD_ABLATIONS]
BAD_FILES += [("sweep-qa1/sweep.json", *bad) for bad in BAD_SWEEPS]
BAD_FILES += [("babilong-qa2-tables/tables.json", *bad) for bad in BAD_TABLES]
BAD_FILES += [("speed/speed.json", *bad) for bad in BAD_SPEEDS]


@pytest.mark.parametrize(("name", "way", "value", "why"), BAD_FILES, ids=range(len(BAD_FILES)))
def test_files_of_results_that_are_damaged(name: str, way: tuple[Any, ...], value: Any, why: str, tmp_path: Path) -> None:
    file = tmp_path / Path(name).name
    tree = part = json.loads((ROOT / "docs/results" / name).read_text())
    for key in way[:-1]:
        part = part[key]
    part[way[-1]] = value
    file.write_text(json.dumps(tree))
    readers: dict[str, Callable[[Path], object]] = {"tables.json": read_tables, "speed.json": read_speed, "ablations.json": read_ablations}
    read: Callable[[], object] = lambda: readers[file.name](file)
    if file.name == "sweep.json":
        pytest.importorskip("optuna")
        from experiments.sweep.report import drawings

        read = lambda: drawings(tmp_path)
    with pytest.raises(ValueError, match=why) as caught:
        read()
    assert str(caught.value).startswith(f"{file}: ")
    assert "\n" not in str(caught.value)


def test_results_and_metrics_that_are_damaged_are_refused_wherever_they_are_read_back(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text('{"schema": 1, "rows": [{"method": 3}]}')
    with pytest.raises(ValueError, match=r"results\.json: row 1: no column 'benchmark'"):
        baselines.check_results(tmp_path)
    (tmp_path / "config.json").write_text(RunConfig().to_json())
    with pytest.raises(ValueError, match=r"results\.json: row 1: no column 'benchmark'"):
        seeds.finished(RunConfig(), tmp_path)
    log = RunLog(tmp_path)
    for value, why in (("x", "'x': must be"), ([1], r"\[1\]: must be"), (True, "True: must be"), (None, "has no fact_em")):
        log.path.write_text(json.dumps({"kind": "validation", "step": 4, "fact_em": value}) + "\n" + '{"kind": "train", "step": 5}\n')
        with pytest.raises(ValueError, match=rf"metrics\.jsonl:.*{why}"):
            log.validations("fact_em")
    log.path.write_text('{"kind": "validation", "step": 4, "fact_em": 0.5}\n')
    assert [record["fact_em"] for record in log.validations("fact_em")] == [0.5]
