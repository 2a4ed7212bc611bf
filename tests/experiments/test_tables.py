"""Budgets, stopping and planning from one retriever, as a user would ask for them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from experiments.tables import budget_rows, main, section_text
from qrag_jax.evaluate.results import EpisodeRecord
from qrag_jax.export.folder import Export, write_export
from tests.support.small import SMALL, changed, small_learner, small_tokenizer


def test_budgets_by_hand() -> None:
    # Supporting chunks 1 and 2: the first episode has both after two picks, the second after three.
    records = [EpisodeRecord("a", "?", "", 5, (1, 2), picked, (0.9, 0.8, 0.1), ("", "", ""), 1.0, 0.8) for picked in ((2, 1, 4), (1, 3, 2))]
    first, second, third = budget_rows(records, [1, 2, 3])
    # One of one found of two: 2 * 1 / (1 + 2). Then 1 and 2 * 1 / (2 + 2). Then 2 * 2 / (3 + 2) in both.
    assert (first["fact_em"], first["fact_f1"]) == (0.0, pytest.approx(2 / 3))
    assert (second["fact_em"], second["fact_f1"]) == (0.5, pytest.approx(0.75))
    assert (third["budget"], third["fact_em"], third["fact_f1"]) == (3, 1.0, pytest.approx(0.8))


def test_the_papers_figures_stand_beside_the_budgets() -> None:
    curve = {"threshold": (0.5,), "fact_f1": (0.9,), "fact_em": (0.8,), "length": (2.5,), "perfect": (0.7,), "roc_auc": None}
    section = {"benchmark": "hotpotqa", "task": "all", "context_tokens": None, "episodes": 3, "stopping": curve}
    section["budgets"] = [{"budget": 3, "fact_em": 0.9, "fact_f1": 0.75}]
    section["beams"] = [{"beam": 4, "budget": 2, "fact_em": 1.0, "fact_f1": 0.5, "seconds": 0.25}]
    text = section_text(section)
    assert "| 3 | 0.900 | 0.750 | 0.935 | 0.771 |" in text
    assert "| 0.500 | 0.900 | 0.800 | 2.500 | 0.700 |" in text
    assert "ROC AUC of the stop -:" in text
    assert "Fact F1 with early stopping in the paper: 0.917 (Tables 5-6" in text
    assert "| 4 | 1.000 | 0.500 | 0.250 |" in text


@pytest.fixture(scope="module")
def retriever(tmp_path_factory: pytest.TempPathFactory) -> Path:
    learner, state = small_learner()
    folder = tmp_path_factory.mktemp("run")
    config = changed(SMALL, eval={"budget": 2})
    write_export(folder / "export", Export(config, learner.embedder.config, state.params, small_tokenizer(), "mean", threshold=0.1, step=7))
    return folder


def test_the_command(retriever: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    words = [
        str(retriever),
        "--run-dir",
        str(out),
        "--eval-tokens",
        "1k",
        "--eval-episodes",
        "4",
        "--budgets",
        "2",
        "3",
        "--beams",
        "2",
        "1",
    ]
    assert main(words) == 0
    found = json.loads((out / "tables.json").read_text(encoding="utf-8"))
    assert (found["schema"], found["step"], found["stop_threshold"]) == (1, 7, 0.1)
    (section,) = found["sections"]
    assert (section["context_tokens"], section["episodes"]) == (1_000, 4)
    assert [row["budget"] for row in section["budgets"]] == [2, 3]
    assert [(row["beam"], row["budget"]) for row in section["beams"]] == [(1, 2), (2, 2)]
    # A beam of 1 is the greedy search, of which the first two picks of three are the same.
    assert section["beams"][0]["fact_em"] == section["budgets"][0]["fact_em"]
    assert len(section["stopping"]["threshold"]) == 21
    assert all((out / name).stat().st_size > 10_000 for name in ("babilong-qa1-1k.png", "babilong-qa1-1k-search.png"))
    assert (out / "tables.md").read_text(encoding="utf-8").strip() in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--budgets", "1"], "budgets = (1,): the largest must be >= 2"),
        (["--beams", "0"], "beams = (0,): must be one or more different numbers >= 1"),
        (["--eval-episodes", "0"], "--eval-episodes = 0"),
        (["--eval-tokens", "1x"], "context length '1x'"),
    ],
)
def test_bad_input(retriever: Path, tmp_path: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(retriever), "--run-dir", str(tmp_path / "out"), *words]) == 64
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_folder_of_something_else_is_left_alone(retriever: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(retriever), "--run-dir", str(retriever)]) == 64
    assert "not empty and holds no tables" in capsys.readouterr().err
