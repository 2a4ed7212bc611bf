"""Draws a benchmark's runs, one panel per task: scores against context length, in the library's colour-blind-safe palette."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.paper.compare import by_length
from qrag_jax.evaluate import plots
from qrag_jax.evaluate.plots import BLACK, BLUE, GREEN, ORANGE, interval

# Okabe and Ito's palette with a grey instead of yellow, which is faint on white. Colours, markers and styles repeat after different counts,
# so that many lines look different.
COLOURS = (BLUE, ORANGE, GREEN, "#D55E00", "#CC79A7", "#56B4E9", "#777777")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<")
STYLES = ("-", "--", "-.", (0, (1, 1)), (0, (4, 1, 1, 1)))
APART = 1.05  # lines are shifted sideways by this factor, so that equal scores do not hide each other
COLUMNS = 3
LABELS = {"fact_em": "Fact EM", "answer_em": "answer EM"}


@dataclass(frozen=True)
class Line:
    """Rows of results.json for one task, in order of context length."""

    name: str
    task: str
    rows: tuple[dict[str, Any], ...]


@dataclass(frozen=True)
class PaperLine:
    """Figures of the paper by context length. ``column``: the column of results.json that they are compared with."""

    name: str
    task: str
    column: str
    values: Mapping[int, float]


def draw(path: Path, title: str, lines: Sequence[Line], paper: Sequence[PaperLine]) -> None:
    """Draws, as a PNG, a panel of Fact EM with its interval for each task and, if it was measured, a panel of answer EM."""
    tasks = sorted({line.task for line in lines})
    answered = [task for task in tasks if any(row["answer_em"] is not None for line in lines if line.task == task for row in line.rows)]
    panels = [("fact_em", task) for task in tasks] + [("answer_em", task) for task in answered]
    columns = min(len(panels), COLUMNS)
    figure, axes = plots.subplots(columns, -(-len(panels) // columns))
    for axis in axes.flat[len(panels) :]:
        axis.set_axis_off()
    looks = _looks(lines)
    for (column, task), axis in zip(panels, axes.flat, strict=False):
        own = [line for line in lines if line.task == task]
        _panel(axis, column, own, [p for p in paper if (p.column, p.task) == (column, task)], looks)
        axis.set_title(f"{title} {task}, test questions")
    plots.save(figure, path)


def draw_context(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Draws context.png of a run with the paper's figures, which the library does not have. Draws nothing without context lengths."""
    lengths = [row for row in rows if row["context_tokens"] is not None]
    tested = {row["benchmark"] for row in lengths}
    if lengths:
        plots.context(lengths, path, {(name, *key): values for name in tested for key, values in by_length(name).items()})


def _looks(lines: Sequence[Line]) -> dict[str, int]:
    """A number for the look of each run: the same in every panel, and different for runs that share a panel."""
    looks: dict[str, int] = {}
    for line in lines:
        tasks = {other.task for other in lines if other.name == line.name}
        taken = {looks[other.name] for other in lines if other.task in tasks and other.name in looks and other.name != line.name}
        looks.setdefault(line.name, next(number for number in range(len(lines)) if number not in taken))
    return looks


def _panel(axis: Any, column: str, lines: Sequence[Line], paper: Sequence[PaperLine], looks: Mapping[str, int]) -> None:
    shown = [(line.name, kept) for line in lines if (kept := [row for row in line.rows if row[column] is not None])]
    lowest = 1.0
    for place, (name, rows) in enumerate(shown):
        aside, number = APART ** (place - (len(shown) - 1) / 2), looks[name]
        at, values = [row["context_tokens"] * aside for row in rows], [row[column] for row in rows]
        # The interval in results.json is that of Fact EM.
        ends = [interval(row) for row in rows]
        bars = [[row["fact_em"] - end[0] for row, end in zip(rows, ends, strict=True)]]
        bars += [[end[1] - row["fact_em"] for row, end in zip(rows, ends, strict=True)]]
        axis.errorbar(
            at,
            values,
            yerr=bars if column == "fact_em" else None,
            capsize=3,
            color=COLOURS[number % len(COLOURS)],
            marker=MARKERS[number % len(MARKERS)],
            linestyle=STYLES[number % len(STYLES)],
            label=name,
        )
        lowest = min([lowest, *values, *(low for low, _ in ends if column == "fact_em")])
    for line in paper:
        axis.plot(list(line.values), list(line.values.values()), color=BLACK, marker="*", linestyle=":", label=line.name)
        lowest = min(lowest, *line.values.values())
    ticks = sorted({row["context_tokens"] for _, rows in shown for row in rows} | {tokens for line in paper for tokens in line.values})
    plots.context_axis(axis, ticks)
    # Most scores are close to 1, so the axis begins a little below the lowest score, and its label says so.
    start = max(0.0, math.floor(10 * lowest) / 10 - 0.1)
    axis.set(ylim=(start - 0.02, 1.02), ylabel=LABELS[column] + (f" (axis from {start:.1f})" if start else ""))
    axis.grid(alpha=0.3)
    plots.legend(axis)
