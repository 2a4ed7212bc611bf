"""The generated section of docs/results: up to date, and made from the files alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from experiments.report import BEGIN, END, NEEDED, Run, main, read_more, read_results, read_runs, replaced, section
from tests.conftest import ROOT
from tests.support.small import SMALL, changed

RESULTS = ROOT / "docs" / "results"
README = f"Written by hand.\n{BEGIN}\nold\n{END}\nAlso by hand.\n"


def row(**values: Any) -> dict[str, Any]:
    named = {"benchmark": "babilong", "task": "qa1", "split": "test", "context_tokens": 4_000, "chunks": 160, "episodes": 200, "budget": 4}
    measured = {"fact_em": 0.5, "fact_f1": 0.25, "fact_f1_stopped": None, "stop_threshold": None, "answer_em": None, "answer_f1": None}
    return {**named, **measured, "ci95": [0.431, 0.569], "seconds_per_episode": 0.1, "checkpoint_step": 1400, **values}


def run_folder(folder: Path, *rows: dict[str, Any]) -> Path:
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps({"schema": 1, "rows": rows}), encoding="utf-8")
    return folder


def test_the_committed_section_is_up_to_date() -> None:
    text = (RESULTS / "README.md").read_text(encoding="utf-8")
    assert replaced(text, section(read_runs(RESULTS), read_more(RESULTS)), "README.md") == text, "run python -m experiments.report"
    assert main(["--results", str(RESULTS), "--check"]) == 0


def test_the_section_is_made_from_the_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "README.md").write_text(README, encoding="utf-8")
    first = run_folder(tmp_path / "first", row(), row(context_tokens=1_000, chunks=50, fact_em=1.0, ci95=[0.981, 1.0]))
    (first / "config.json").write_text(SMALL.to_json(), encoding="utf-8")
    words = ["--results", str(tmp_path)]
    assert main([*words, "--check"]) == 1
    assert "run python -m experiments.report" in capsys.readouterr().out
    assert (tmp_path / "README.md").read_text(encoding="utf-8") == README
    assert main(words) == 0
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert text.startswith(f"Written by hand.\n{BEGIN}\n")
    assert text.endswith(f"{END}\nAlso by hand.\n")
    cells = "| [first](first) | qa1 | tiny | 1,400 | generated |"
    lines = [line for line in text.splitlines() if line.startswith("| [first]")]
    assert lines == [
        f"{cells} 1,000 | 50 | 200 | 4 | 1.000 | 0.981-1.000 | 0.250 | - |",
        f"{cells} 4,000 | 160 | 200 | 4 | 0.500 | 0.431-0.569 | 0.250 | - |",
    ]
    assert (tmp_path / "babilong.png").read_bytes().startswith(b"\x89PNG")
    assert main([*words, "--check"]) == 0
    (tmp_path / "babilong.png").unlink()
    assert main([*words, "--check"]) == 1
    assert "babilong.png is missing" in capsys.readouterr().out
    assert main(words) == 0
    (first / "curves.png").write_bytes(b"")
    assert main([*words, "--check"]) == 1
    assert "first/curves.png: the data of this picture is not beside it" in capsys.readouterr().out
    (first / "curves.png").unlink()
    run_folder(tmp_path / "second", row(task="qa3"))
    assert main([*words, "--check"]) == 1
    shutil.rmtree(tmp_path / "second")
    assert main([*words, "--check"]) == 0


def test_columns_that_some_row_has() -> None:
    config = changed(SMALL, eval={"beam": 4, "reader": "flax:some/model"})
    plain = Run("plain", (row(),), None, None)
    text = section([plain])
    assert "| [plain](plain) | qa1 | - | - | - | 4,000 |" in text
    assert not {"method", "beam", "answer EM", "reader", "commit"} & {word.strip() for word in text.splitlines()[4].split("|")}
    full = Run("full", (row(answer_em=0.25, method="BM25", checkpoint_step=None),), config, "0123456789abcdef")
    lines = section([plain, full]).splitlines()
    assert lines[4].endswith("| Fact F1, stopped | method | beam | answer EM | reader | commit |")
    assert next(line for line in lines if "[full]" in line).endswith("| - | BM25 | 4 | 0.250 | flax:some/model | 01234567 |")
    assert next(line for line in lines if "[full]" in line).startswith("| [full](full) | qa1 | tiny | - | generated |")


def test_the_papers_figures_stand_below_their_tasks() -> None:
    assert "| qa3 | 128,000 | fact_f1 | 0.968 | Table 3 |" in section([Run("a", (row(task="qa3"),), None, None)])
    assert "The paper" not in section([Run("a", (row(),), None, None)])
    assert "The paper" not in section([Run("a", (row(benchmark="own"),), None, None)])


def test_a_picture_of_answers_and_methods(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(README, encoding="utf-8")
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
    assert "README.md: no such file" in refused(words)
    for text in ("none", f"{END}{BEGIN}", f"{BEGIN}{BEGIN}{END}"):
        (tmp_path / "README.md").write_text(text, encoding="utf-8")
        assert "each once" in refused(words)
    (tmp_path / "README.md").write_text(README, encoding="utf-8")
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
    (tmp_path / "README.md").write_text(README, encoding="utf-8")
    run_folder(tmp_path / "run", row())
    (tmp_path / "parts").mkdir()
    one = {"variant": "full", "label": "Q-RAG", "task": "qa1", "context_tokens": 4_000, "updates": 600, "seeds": [0, 1], "paper": None}
    scores = dict.fromkeys(("fact_em", "fact_f1", "fact_f1_stopped"), 0.5)
    named = {"schema": 1, "benchmark": "babilong", "task": "qa1", "embedder": "tiny", "beside_paper": []}
    path = tmp_path / "parts" / "ablations.json"
    path.write_text(json.dumps({**named, "rows": [{**one, "mean": scores, "spread": scores}]}), encoding="utf-8")
    (tmp_path / "parts" / "tables.json").write_text(json.dumps({"schema": 1, "sections": []}), encoding="utf-8")
    assert main(["--results", str(tmp_path)]) == 0
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "### [parts](parts)\n\nAblations on babilong qa1, embedder tiny" in text
    assert "| Q-RAG | 4,000 | 600 | 2 | 0.500 ± 0.500 | 0.500 ± 0.500 | 0.500 ± 0.500 | - |" in text
    assert main(["--results", str(tmp_path), "--check"]) == 0
    path.write_text(json.dumps({**named, "schema": 2}), encoding="utf-8")
    assert main(["--results", str(tmp_path)]) == 64
    assert "ablations.json: must be an object with schema = 1 and benchmark, task" in capsys.readouterr().err
    path.unlink()
    (tmp_path / "parts" / "tables.json").write_text("[]", encoding="utf-8")
    assert main(["--results", str(tmp_path)]) == 64
    assert "tables.json: must be an object with schema = 1 and sections" in capsys.readouterr().err
