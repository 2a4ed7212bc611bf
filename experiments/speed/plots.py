"""Draws speed.png: the times of a search step, of a question and of an index build."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.checks import TIME, Check, check_rows, is_count, optional
from qrag_jax.evaluate.plots import BLACK, BLUE, GREEN, ORANGE, PURPLE, context_axis, legend, save, subplots
from qrag_jax.rundir.files import read_json

STYLES = ((BLUE, "o", "-"), (BLACK, "x", ":"), (ORANGE, "s", "--"), (GREEN, "^", "-."), (PURPLE, "v", (0, (1, 1))))
SEARCHES = {
    "step": "this library",
    "plain_dot": "plain dot product",
    "numpy": "re-rotation, NumPy, with tables, in blocks",
    "pytorch": "re-rotation, PyTorch, with tables, in blocks",
    "textbook": "re-rotation, NumPy, as written",
}
TICKS = (1, 2, 5)  # within a decade, for a time axis too short for whole decades


TIMES: Check = (
    lambda value: TIME[0](value.get("median_s") if isinstance(value, dict) else value),
    "a time above 0, or an object with such a median_s",
)
SIZE: Check = (lambda value: is_count(value) and value > 0, "a whole number above 0")


def read_speed(path: Path) -> dict[str, Any]:
    """What :func:`speed` draws of a speed.json. Raises ValueError, naming the file and the field, if it is not one."""
    tree = read_json(path)
    if not isinstance(tree, dict) or tree.get("schema") != 1:
        raise ValueError(f"{path}: must be an object with schema = 1")
    check_rows(tree.get("search"), {"tokens": SIZE, **dict.fromkeys(SEARCHES, optional(TIMES))}, f"{path}: search")
    check_rows(tree.get("questions"), {"tokens": SIZE, **dict.fromkeys(("greedy", "beam"), optional(TIMES))}, f"{path}: questions")
    check_rows(tree.get("build"), {"chunks": SIZE, "median_s": optional(TIME)}, f"{path}: build")
    check_rows(tree.get("compare"), {"theirs_chunks_per_s": optional(TIME)}, f"{path}: compare")
    return tree


def speed(report: dict[str, Any], path: Path) -> None:
    """Draws, on log axes, the times of a search step and its alternatives, of whole questions and of index builds, from speed.json."""
    figure, axes = subplots(3)
    step, question, build = axes[0]
    _lines(step, "tokens", SEARCHES, report["search"])
    step.set(ylabel="time of a search step (s)", title="one step, after three picks")
    _lines(question, "tokens", {"greedy": "greedy", "beam": "beam of 4"}, report["questions"])
    question.set(ylabel="time of a question (s)", title="question to four picks")
    for axis, rows in ((step, report["search"]), (question, report["questions"])):
        context_axis(axis, [row["tokens"] for row in rows])
    sizes = [row["chunks"] for row in report["build"]]
    _lines(build, "chunks", {"median_s": "this library"}, report["build"])
    if (theirs := report["compare"][0]["theirs_chunks_per_s"]) is not None:
        label = "sentence-transformers, embedding only\n(extrapolated from its rate)"
        build.plot(sizes, [size / theirs for size in sizes], color=ORANGE, marker="s", linestyle="--", label=label)
    build.set_xscale("log")
    build.set_xticks(sizes, [f"{size:,}" for size in sizes])
    build.minorticks_off()
    build.set(xlabel="chunks", ylabel="time of an index build (s)", title="index build")
    for axis in axes[0]:
        _time_axis(axis)
        legend(axis)
    save(figure, path)


def _lines(axis: Any, x: str, series: dict[str, str], rows: Sequence[dict[str, Any]]) -> None:
    for (key, label), (colour, marker, style) in zip(series.items(), STYLES, strict=False):
        found = [(row[x], row[key]) for row in rows if row[key] is not None]
        if found:
            seconds = [value["median_s"] if isinstance(value, dict) else value for _, value in found]
            axis.plot([at for at, _ in found], seconds, color=colour, marker=marker, linestyle=style, label=label)


def _time_axis(axis: Any) -> None:
    """A logarithmic axis with at least two numbers on it."""
    from matplotlib.ticker import LogLocator

    axis.set_yscale("log")
    low, high = axis.get_ylim()
    if high < 100 * low:
        axis.yaxis.set_major_locator(LogLocator(subs=TICKS))
        axis.yaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_minor_formatter("")
    axis.grid(alpha=0.3)
