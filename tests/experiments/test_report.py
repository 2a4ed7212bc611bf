"""docs/results/runs.md: up to date, and made from the files alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from experiments.checks import NEEDED, read_results
from experiments.report import INTRODUCTION, Run, main, page, read_more, read_runs
from tests.conftest import ROOT
from tests.support.small import SMALL, changed

RESULTS = ROOT / "docs" / "results"


def row(**values: Any) -> dict[str, Any]:
    named = {"benchmark": "babilong", "task": "qa1", "split": "test", "context_tokens": 4_000, "chunks": 160, "episodes": 200, "budget": 4}
    measured = {"fact_em": 0.5, "fact_f1": 0.25, "fact_f1_stopped": None, "stop_threshold": None, "answer_em": None, "answer_f1": None}
    return {**named, **measured, "ci95": [0.431, 0.569], "seconds_per_episode": 0.1, "checkpoint_step": 1400, **values}


def run_folder(folder: Path, *rows: dict[str, Any]) -> Path:
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps({"schema": 1, "rows": rows}), encoding="utf-8")
    return folder


def table(text: str, heading: str) -> list[str]:
    """The lines of the table under a heading."""
    return [line for line in text.partition(heading)[2].partition("\n#")[0].splitlines() if line.startswith("|")]


def test_the_committed_page_is_up_to_date() -> None:
    text = (RESULTS / "runs.md").read_text(encoding="utf-8")
    assert page(read_runs(RESULTS), read_more(RESULTS)) == text, "run python -m experiments.report"
    assert main(["--results", str(RESULTS), "--check"]) == 0


def test_the_page_is_made_from_the_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = run_folder(tmp_path / "first", row(), row(context_tokens=1_000, chunks=50, fact_em=1.0, ci95=[0.981, 1.0]))
    (first / "config.json").write_text(changed(SMALL, optim={"learning_rate": 3e-4}).to_json(), encoding="utf-8")
    words = ["--results", str(tmp_path)]
    assert main([*words, "--check"]) == 1
    assert "runs.md is missing; run python -m experiments.report" in capsys.readouterr().out
    assert not (tmp_path / "runs.md").exists()
    assert main(words) == 0
    text = (tmp_path / "runs.md").read_text(encoding="utf-8")
    assert text.startswith(INTRODUCTION)
    assert table(text, "### BabiLong: results")[2:] == [
        "| [first](first) | qa1 | 1,400 | 1,000 | 50 | 200 | 4 | 1.000 | 0.981-1.000 | 0.250 | - |",
        "| [first](first) | qa1 | 1,400 | 4,000 | 160 | 200 | 4 | 0.500 | 0.431-0.569 | 0.250 | - |",
    ]
    settings = table(text, "### BabiLong: settings")
    assert settings[2].startswith("| [first](first/config.json) | babilong qa1 | tiny |")
    assert settings[2].split("|")[settings[0].split("|").index(" learning rate ")] == " 0.0003 "
    assert (tmp_path / "babilong.png").read_bytes().startswith(b"\x89PNG")
    assert main([*words, "--check"]) == 0
    (tmp_path / "babilong.png").unlink()
    assert main([*words, "--check"]) == 1
    assert "babilong.png is missing" in capsys.readouterr().out
    assert main(words) == 0
    run_folder(tmp_path / "second", row(task="qa3"))
    assert main([*words, "--check"]) == 1
    assert "runs.md does not match the committed files" in capsys.readouterr().out
    shutil.rmtree(tmp_path / "second")
    assert main([*words, "--check"]) == 0


def test_columns_that_some_row_has() -> None:
    config = changed(SMALL, eval={"beam": 4, "reader": "flax:some/model"})
    plain = Run("plain", (row(),), None, None)
    text = page([plain])
    assert table(text, ": results")[2].startswith("| [plain](plain) | qa1 | 1,400 | 4,000 |")
    assert set(table(text, ": settings")[2].replace("|", " ").split()) == {"[plain](plain)", "-"}
    heads = {word.strip() for heading in (": results", ": settings") for word in table(text, heading)[0].split("|")}
    assert not {"method", "beam", "answer EM", "reader", "commit"} & heads
    full = Run("full", (row(answer_em=0.25, method="BM25", checkpoint_step=None),), config, "0123456789abcdef")
    text = page([plain, full])
    assert table(text, ": results")[0].endswith("| Fact F1, stopped | method | answer EM |")
    assert (
        table(text, ": results")[2] == "| [full](full) | qa1 | - | 4,000 | 160 | 200 | 4 | 0.500 | 0.431-0.569 | 0.250 | - | BM25 | 0.250 |"
    )
    assert table(text, ": settings")[0].endswith("| test data | beam | reader | commit |")
    assert next(line for line in table(text, ": settings") if "[full]" in line).endswith("| generated | 4 | flax:some/model | 01234567 |")


def test_means_over_seeds_have_their_spread() -> None:
    run = Run("three", (row(seeds=[0, 1, 4], spread={"fact_em": 0.0125, "fact_f1": None}, ci95=None),), SMALL, None)
    text = page([run])
    heads, _, line = table(text, ": settings")
    assert line.split("|")[heads.split("|").index(" seed ")] == " 0 1 4 "
    assert "| 4 | 0.500 ± 0.013 | - | 0.250 | - |" in table(text, ": results")[2]


def test_the_papers_figures_stand_below_their_tasks() -> None:
    lines = table(page([Run("a", (row(task="qa3"),), None, None)]), "the paper's figures")
    place = lines[0].split("|").index(" 128K ")
    assert [line.split("|")[place] for line in lines if "| fact_f1 |" in line] == [" 0.968 "]
    text = page([Run("a", (row(benchmark="hotpotqa", task="all", context_tokens=None),), None, None)])
    assert "| all | fact_em | 5 | gte | - | 0.978 | Table 4 | HotpotQA 1000 |" in text
    assert "the paper's figures" not in page([Run("a", (row(),), None, None)])
    assert "the paper's figures" not in page([Run("a", (row(benchmark="own"),), None, None)])


def test_a_picture_of_answers_and_methods(tmp_path: Path) -> None:
    rows = [row(context_tokens=tokens, method=name, answer_em=0.5) for tokens in (1_000, 4_000) for name in ("BM25", "random")]
    run_folder(tmp_path / "run", *rows, row(task="qa2"))
    assert main(["--results", str(tmp_path)]) == 0
    assert (tmp_path / "babilong.png").stat().st_size > 10_000
    # One length is no curve.
    shutil.rmtree(tmp_path / "run")
    run_folder(tmp_path / "run", row(benchmark="hotpotqa", context_tokens=None))
    assert main(["--results", str(tmp_path)]) == 0
    assert not (tmp_path / "hotpotqa.png").exists()


def test_bad_files_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refused(words: list[str]) -> str:
        assert main(words) == 64
        return capsys.readouterr().err

    words = ["--results", str(tmp_path)]
    assert "no */results.json" in refused(words)
    path = run_folder(tmp_path / "run", row()) / "results.json"
    (path.parent / "config.json").write_text('{"dat": {}}', encoding="utf-8")
    assert "config.json: configuration: unknown field 'dat'" in refused(words)
    for tree in ([], {"schema": 2, "rows": [row()]}, {"schema": 1, "rows": []}):
        path.write_text(json.dumps(tree), encoding="utf-8")
        with pytest.raises(ValueError, match=r"results.json: must be an object with schema = 1 and one or more rows"):
            read_results(path)
    for name in NEEDED:
        bad = {key: value for key, value in row().items() if key != name}
        path.write_text(json.dumps({"schema": 1, "rows": [row(), bad]}), encoding="utf-8")
        with pytest.raises(ValueError, match=f"row 2: no column '{name}'"):
            read_results(path)
    path.write_text(json.dumps({"schema": 1, "rows": [row(fact_em=97.0)]}), encoding="utf-8")
    with pytest.raises(ValueError, match=r"row 1: fact_em = 97.0: must be in \[0, 1\], or null where it was not measured"):
        read_results(path)


def test_ablations_and_tables_have_their_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_folder(tmp_path / "run", row())
    (tmp_path / "parts").mkdir()
    one = {"variant": "full", "label": "Q-RAG", "task": "qa1", "context_tokens": 4_000, "updates": 600, "seeds": [0, 1], "paper": None}
    scores = dict.fromkeys(("fact_em", "fact_f1", "fact_f1_stopped"), 0.5)
    named = {"schema": 1, "benchmark": "babilong", "task": "qa1", "embedder": "tiny", "beside_paper": []}
    path = tmp_path / "parts" / "ablations.json"
    path.write_text(
        json.dumps({**named, "rows": [{**one, **{name: [0.5, 0.5] for name in scores}, "mean": scores, "spread": scores}]}),
        encoding="utf-8",
    )
    shutil.copy(ROOT / "docs/results/hotpotqa-tables/tables.json", tmp_path / "parts")
    assert main(["--results", str(tmp_path)]) == 0
    text = (tmp_path / "runs.md").read_text(encoding="utf-8")
    assert "## [parts](parts)\n\nAblations on babilong qa1, embedder tiny" in text
    assert "| Q-RAG | 4,000 | 600 | 2 | 0.500 ± 0.500 | 0.500 ± 0.500 | 0.500 ± 0.500 | - |" in text
    assert main(["--results", str(tmp_path), "--check"]) == 0
    path.write_text(json.dumps({**named, "schema": 2}), encoding="utf-8")
    assert main(["--results", str(tmp_path)]) == 64
    assert "ablations.json: must be an object with schema = 1 and benchmark, task" in capsys.readouterr().err
    path.unlink()
    (tmp_path / "parts" / "tables.json").write_text("[]", encoding="utf-8")
    assert main(["--results", str(tmp_path)]) == 64
    assert "tables.json: must be an object with schema = 1 and sections" in capsys.readouterr().err
