"""The experiments' pictures: labels, units, titles, legends that cover nothing; and that committed pictures come from committed data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from experiments.ablations import report as ablations
from experiments.paper.plots import COLOURS, Line, PaperLine, draw, draw_context
from experiments.pictures import drawings, redraw, without_data
from experiments.speed.plots import speed
from tests.conftest import ROOT
from tests.support.pictures import check, figures, legends

__all__ = ["figures"]

RESULTS = ROOT / "docs" / "results"


def row(tokens: int | None, fact_em: float = 0.95, **values: Any) -> dict[str, Any]:
    named = {"benchmark": "babilong", "task": "qa3", "split": "test", "context_tokens": tokens, "budget": 4}
    low, high = max(0.0, fact_em - 0.05), min(1.0, fact_em + 0.05)
    return {**named, "fact_em": fact_em, "ci95": [low, high], "fact_f1_stopped": 0.5, "answer_em": None, **values}


def test_every_committed_picture_has_its_data_beside_it(tmp_path: Path) -> None:
    assert without_data(RESULTS) == []
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "curves.png").write_bytes(b"")
    assert without_data(tmp_path) == [tmp_path / "run" / "curves.png"]


def test_pictures_are_redrawn_from_the_files_beside_them(figures: list[Figure], tmp_path: Path) -> None:
    sources = ("babilong-qa2-ablations/ablations", "hotpotqa-tables/tables", "speed/speed", "sweep-qa1/sweep", "babilong-qa3-tiny/results")
    for source in sources:
        (tmp_path / source).parent.mkdir()
        (tmp_path / f"{source}.json").write_bytes((RESULTS / f"{source}.json").read_bytes())
    names = {path.relative_to(tmp_path).as_posix() for path in drawings(tmp_path)}
    assert names == {
        "babilong-qa2-ablations/ablations.png",
        "babilong-qa3-tiny/context.png",
        "hotpotqa-tables/hotpotqa-all-search.png",
        "hotpotqa-tables/hotpotqa-all.png",
        "speed/speed.png",
        "sweep-qa1/importance.png",
        "sweep-qa1/parallel.png",
    }
    assert names <= {path.relative_to(RESULTS).as_posix() for path in RESULTS.glob("*/*.png")}
    assert redraw(tmp_path) == 0, "a picture that was not committed is not made"
    for name in names:
        (tmp_path / name).write_bytes(b"")
    assert redraw(tmp_path) == 7
    assert all((tmp_path / name).read_bytes().startswith(b"\x89PNG") for name in names)
    for figure in figures:
        check(figure)
    (tmp_path / "sweep-qa1" / "sweep.json").write_text("[]")
    with pytest.raises(ValueError, match=r"sweep.json: must be an object with schema = 1"):
        drawings(tmp_path)


def test_runs_keep_their_look_in_every_panel(figures: list[Figure], tmp_path: Path) -> None:
    tasks = {"a-only": ("qa1",), "both": ("qa1", "qa2"), "z-only": ("qa2",)}
    lines = [Line(name, task, (row(1_000), row(4_000, 0.7))) for name, own in tasks.items() for task in own]
    draw(tmp_path / "babilong.png", "BabiLong", lines, [PaperLine("paper: Fact F1", "qa2", "fact_em", {1_000: 0.9, 128_000: 0.8})])
    (figure,) = figures
    check(figure)
    colours = {}
    for axis in figure.axes:
        for handle, name in zip(*axis.get_legend_handles_labels(), strict=True):
            colours.setdefault(name, set()).add(handle[0].get_color() if isinstance(handle, tuple) else handle.get_color())
    # "both" shares a panel with each of the others, which may look alike.
    assert colours == {"a-only": {COLOURS[0]}, "both": {COLOURS[1]}, "z-only": {COLOURS[0]}, "paper: Fact F1": {"#000000"}}
    assert [axis.get_title() for axis in figure.axes] == ["BabiLong qa1, test questions", "BabiLong qa2, test questions"]
    # The lowest interval ends at 0.65: the axis begins at 0.5, and says so.
    assert [axis.get_ylabel() for axis in figure.axes] == ["Fact EM (axis from 0.5)"] * 2
    assert [axis.get_ylim()[0] for axis in figure.axes] == [0.48] * 2


def test_an_axis_from_zero_needs_no_word(figures: list[Figure], tmp_path: Path) -> None:
    low = [Line("run", "qa1", (row(1_000, 0.1, answer_em=0.0), row(4_000, 1.0, answer_em=0.5)))]
    draw(tmp_path / "babilong.png", "BabiLong", low, [])
    check(figures[0])
    assert [axis.get_ylabel() for axis in figures[0].axes] == ["Fact EM", "answer EM"]


def test_the_papers_figures_stand_in_a_runs_picture(figures: list[Figure], tmp_path: Path) -> None:
    draw_context([row(4_000), row(None)], tmp_path / "context.png")
    draw_context([row(4_000, task="qa1")], tmp_path / "context.png")
    draw_context([row(None)], tmp_path / "none.png")
    assert ["Q-RAG paper: Fact F1" in names for figure in figures for names in legends(figure)] == [True, False]
    assert not (tmp_path / "none.png").exists()


def test_ablations_have_one_legend_entry_a_length(figures: list[Figure], tmp_path: Path) -> None:
    scores = {"fact_em": [0.0, 0.2], "fact_f1_stopped": [0.9, 1.0]}
    mean = {"fact_em": 0.1, "fact_f1_stopped": 0.95}
    rows = [
        {"label": label, "context_tokens": tokens, **scores, "mean": mean, "paper": {"fact_f1": 0.97}}
        for label in ("Q-RAG", "without soft Q")
        for tokens in (1_000, 4_000)
    ]
    named = {"benchmark": "babilong", "task": "qa3", "embedder": "tiny"}
    ablations.draw({**named, "rows": rows}, tmp_path / "ablations.png")
    (figure,) = figures
    check(figure)
    assert legends(figure) == [["1k tokens", "4k tokens"], ["1k tokens", "paper: Fact F1", "4k tokens"]]
    assert [axis.get_xlabel() for axis in figure.axes] == ["Fact EM", "Fact F1, stopped"]
    assert [tick.get_text() for tick in figure.axes[0].get_yticklabels()] == ["Q-RAG", "without soft Q"]
    assert figure.get_suptitle() == "babilong qa3, tiny, test questions"


@pytest.mark.parametrize("spread", [3, 10_000])
def test_a_time_axis_has_numbers(figures: list[Figure], tmp_path: Path, spread: int) -> None:
    """Times within a decade had a single tick, or none."""
    report = json.loads((RESULTS / "speed" / "speed.json").read_text())
    for number, one in enumerate(report["questions"]):
        one["greedy"] = one["beam"] = {"median_s": 0.02 * spread ** (number / (len(report["questions"]) - 1))}
    report["compare"][0]["theirs_chunks_per_s"] = None
    speed(report, tmp_path / "speed.png")
    (figure,) = figures
    check(figure)
    assert [axis.get_ylabel() for axis in figure.axes] == [
        f"time of {what} (s)" for what in ("a search step", "a question", "an index build")
    ]
    low, high = figure.axes[1].get_ylim()
    assert sum(low <= tick <= high for tick in figure.axes[1].get_yticks()) >= 2
    assert legends(figure)[1:] == [["greedy", "beam of 4"], ["this library"]]
