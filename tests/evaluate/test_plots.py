"""The library's pictures: what their axes and legends say, where they begin, and that nothing covers data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from qrag_jax.evaluate import plots
from qrag_jax.evaluate.metrics import Stopping
from tests.support.pictures import check, figures, legends

__all__ = ["figures"]

RECORDS = [
    {"kind": "validation", "step": 0, "fact_em": 0.1},
    {"kind": "train", "step": 10, "fact_em": 0.4, "return": 0.5, "seconds": 60.0},
    {"kind": "train", "step": 20, "fact_em": 0.9, "return": 0.8, "seconds": 150.0},
    {"kind": "validation", "step": 20, "fact_em": 0.95},
]


def row(tokens: int, task: str = "qa3", **values: Any) -> dict[str, Any]:
    named = {"benchmark": "babilong", "task": task, "split": "test", "context_tokens": tokens, "budget": 4}
    return {**named, "fact_em": 0.05, "ci95": [0.03, 0.09], "fact_f1_stopped": 0.02, **values}


def test_the_axes_of_the_curves_are_updates_and_minutes(figures: list[Figure], tmp_path: Path) -> None:
    plots.curves(RECORDS, tmp_path / "curves.png", "babilong qa1")
    (figure,) = figures
    check(figure)
    updates, minutes = figure.axes
    assert [axis.get_xlabel() for axis in figure.axes] == ["updates", "minutes of training"]
    assert {axis.get_ylabel() for axis in figure.axes} == {"return, Fact EM"}
    names = ["return (training, sampled)", "Fact EM (training, sampled)", "Fact EM (validation, searched)"]
    assert legends(figure) == [names, names]
    assert updates.get_xlim()[0] == minutes.get_xlim()[0] == 0
    # 60 s and 150 s of training are 1 and 2.5 minutes; the first validation is made at 0.
    assert [line.get_xdata().tolist() for line in updates.lines] == [[10, 20], [10, 20], [0, 20]]
    assert [line.get_xdata().tolist() for line in minutes.lines] == [[1.0, 2.5], [1.0, 2.5], [0.0, 2.5]]


def test_supervised_curves_have_no_return(figures: list[Figure], tmp_path: Path) -> None:
    plots.curves(RECORDS, tmp_path / "curves.png", "babilong qa1", sampled=False)
    check(figures[0])
    assert legends(figures[0])[0] == ["supporting chunks ranked first (training)", "Fact EM (validation, searched)"]
    assert [axis.get_xlabel() for axis in figures[0].axes] == ["updates", "minutes of training"]
    assert {axis.get_ylabel() for axis in figures[0].axes} == {"share of episodes"}


def test_the_stop_curve(figures: list[Figure], tmp_path: Path) -> None:
    # Scores that fall to 0 at the left and at the right: every corner that a legend might take inside the axes is taken.
    curve = Stopping((0.0, 0.5, 1.0), (0.0, 0.9, 0.1), (1.0, 0.5, 0.0), (5.0, 2.5, 1.0), (0.0, 0.5, 0.0), 0.9)
    plots.stopping(curve, 0.25, tmp_path / "stopping.png", "hotpotqa-all, test questions")
    (figure,) = figures
    check(figure)
    assert {axis.get_xlabel() for axis in figure.axes} == {"stop threshold (stop when Q is below)"}
    assert [axis.get_ylabel() for axis in figure.axes] == ["score (mean over questions)", "chunks picked"]
    calibrated = "calibrated threshold: 0.25"
    scores = ["Fact EM", "Fact F1", "stops right after the last fact"]
    assert legends(figure) == [[*scores, calibrated], ["picks of a question, on average", calibrated]]
    assert figure.axes[1].get_ylim()[0] == 0
    by_name = {line.get_label(): line.get_ydata() for line in figure.axes[0].lines}
    assert tuple(by_name["Fact EM"]) == curve.fact_em
    assert tuple(by_name["Fact F1"]) == curve.fact_f1


@pytest.mark.parametrize("paper", [{}, {"fact_em": {2: 0.8, 5: 0.98}, "fact_f1": {2: 0.9, 5: 0.56}}])
def test_budgets_and_beams(figures: list[Figure], tmp_path: Path, paper: dict[str, dict[int, float]]) -> None:
    budgets = [{"budget": t, "fact_em": 0.1 * t, "fact_f1": 0.5 / t} for t in (2, 3, 5)]
    beams = [{"beam": b, "budget": 4, "fact_em": 0.9, "fact_f1": 0.6, "seconds": 0.01 * b} for b in (1, 2, 8)]
    plots.search(budgets, beams, paper, tmp_path / "search.png", "hotpotqa-all, test questions")
    (figure,) = figures
    check(figure)
    assert [axis.get_xlabel() for axis in figure.axes[:2]] == ["budget (chunks picked)", "beam (paths kept), 4 chunks picked"]
    assert [axis.get_ylabel() for axis in figure.axes] == ["score", "score", "time of a question (s)"]
    theirs = ["paper, other encoder: Fact EM", "paper, other encoder: Fact F1"] if paper else []
    by_budget, by_beam = legends(figure)
    assert sorted(by_budget) == sorted(["Fact EM", "Fact F1", *theirs])
    assert by_beam == ["Fact EM", "Fact F1", "time"]
    assert figure.axes[2].get_ylim()[0] == 0


def test_scores_against_context_length(figures: list[Figure], tmp_path: Path) -> None:
    paper = {("babilong", "qa3", "fact_f1"): {1_000: 0.978, 1_000_000: 0.965}, ("babilong", "qa3", "answer_em"): {1_000: 0.5}}
    rows = [row(128_000), row(4_000), *(row(tokens, "qa2", fact_f1_stopped=None) for tokens in (1_000, 4_000))]
    plots.context(rows, tmp_path / "context.png", paper)
    (figure,) = figures
    check(figure)
    qa2, qa3 = figure.axes
    assert [axis.get_title() for axis in (qa2, qa3)] == ["babilong qa2, test questions", "babilong qa3, test questions"]
    assert {axis.get_xlabel() for axis in figure.axes} == {"context length (tokens)"}
    assert [tick.get_text() for tick in qa3.get_xticklabels()] == ["1k", "4k", "128k", "1m"]
    mine = "Fact EM, 4 chunks picked (95% interval)"
    assert [set(names) for names in legends(figure)] == [{mine}, {mine, "Fact F1, stopped", "Q-RAG paper: Fact F1"}]
    plots.context([row(4_000, split="validation")], tmp_path / "context.png")
    check(figures[1])
    assert figures[1].axes[0].get_title() == "babilong qa3, validation questions"
    assert set(legends(figures[1])[0]) == {mine, "Fact F1, stopped"}


def test_a_legend_over_data_is_seen(tmp_path: Path) -> None:
    """The check itself is tested: it fails when a legend is inside the axes, where matplotlib would put it."""
    figure, axes = plots.subplots(1)
    axes[0, 0].plot([0, 1], [0, 1], label="a line")
    axes[0, 0].set(xlabel="x", ylabel="y", title="a title")
    axes[0, 0].legend()
    with pytest.raises(AssertionError, match="the legend of 0 covers the data of axes 0"):
        check(figure)
    plots.legend(axes[0, 0])
    check(figure)
    axes[0, 0].set_xlabel("")
    with pytest.raises(AssertionError, match="the x-axis has no label"):
        check(figure)


def test_drawing_leaves_the_users_figures_alone(tmp_path: Path) -> None:
    import matplotlib.pyplot as plt

    before = plt.get_fignums()
    figure, axes = plots.subplots(1)
    axes[0, 0].plot([0, 1])
    plots.save(figure, tmp_path / "a.png")
    assert plt.get_fignums() == before
