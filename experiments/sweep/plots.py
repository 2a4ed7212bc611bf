"""Pictures of a sweep, in colours that colour-blind readers can distinguish (cividis; Okabe and Ito)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.sweep.spec import Dimension, Spec, shown
from experiments.sweep.study import Row
from qrag_jax.evaluate.plots import BLACK, BLUE, ORANGE, legend, save, subplots

SPREAD = 0.012
"""Distance between the lines of trials with equal values, as a share of the axis."""


def parallel(rows: Sequence[Row], best: Row | None, spec: Spec, path: Path) -> None:
    """Draws a line for each trial, through its values to its best validation score; dashed if the trial is not complete."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    seen = [(row, row.value) for row in rows if row.value is not None]
    scores = [score for _, score in seen]
    label = {"fact_em": "validation Fact EM", "answer_em": "validation answer EM"}[spec.settings.objective]
    figure, axes = subplots(1)
    figure.set_size_inches(2.2 * len(spec.space) + 3.5, 4.4)
    axis = axes[0, 0]
    least, most = (min(scores), max(scores)) if min(scores) < max(scores) else (0.0, 1.0)
    colours = ScalarMappable(Normalize(least, most), "cividis_r")
    for number, (row, score) in enumerate(seen):
        aside = SPREAD * (number - (len(seen) - 1) / 2) / max(1, len(seen) / 6)
        heights = [place(dimension, row.values[dimension.name]) + aside for dimension in spec.space] + [score]
        top = best is not None and row.name == best.name
        axis.plot(
            range(len(heights)),
            heights,
            color=ORANGE if top else colours.to_rgba(np.asarray(score)),
            linewidth=3 if top else 1.5,
            linestyle="-" if row.state == "complete" else "--",
            marker="o",
            markersize=6 if top else 3,
            zorder=3 if top else 2,
        )
    small: dict[str, Any] = {"textcoords": "offset points", "va": "center", "fontsize": 8, "zorder": 4}
    small["bbox"] = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1}
    for x, dimension in enumerate(spec.space):
        for value in ticks(dimension):
            axis.annotate(shown(value), (x, place(dimension, value)), (-5, 0), ha="right", **small)
    for y in (0.0, 0.25, 0.5, 0.75, 1.0):
        axis.annotate(f"{y:g}", (len(spec.space), y), (6, 0), ha="left", **small)
    names = [dimension.name + ("\n(log scale)" if dimension.log else "") for dimension in spec.space]
    axis.set_xticks(range(len(names) + 1), [*names, f"{label}\n(share of questions)"])
    for x in range(len(names) + 1):
        axis.axvline(x, color=BLACK, linewidth=0.8, zorder=1)
    axis.set(xlim=(-0.45, len(names) + 0.3), ylim=(-0.06, 1.06), yticks=[])
    for side in axis.spines.values():
        side.set_visible(False)
    figure.colorbar(colours, ax=axis, label=f"{label} (share of questions)")
    axis.plot([], [], color=ORANGE, linewidth=3, marker="o", label="best trial")
    axis.plot([], [], color=BLACK, label="finished")
    axis.plot([], [], color=BLACK, linestyle="--", label="stopped early, failed or running")
    legend(axis)
    figure.suptitle(f"{spec.settings.benchmark} {spec.settings.task}: {len(seen)} trials of {spec.base.train.steps} updates")
    save(figure, path)


def importance(importances: Mapping[str, float], trials: int, spec: Spec, path: Path) -> None:
    """Draws a bar for each field: its importance for reaching the best quarter of the trials."""
    figure, axes = subplots(1)
    figure.set_size_inches(5.5, 1.6 + 0.4 * len(importances))
    axis = axes[0, 0]
    names = sorted(importances, key=lambda name: importances[name])
    bars = axis.barh(names, [importances[name] for name in names], color=BLUE)
    axis.bar_label(bars, fmt="%.2f", padding=3)
    axis.set(
        xlim=(0, 1.12),
        xlabel=f"importance for the best quarter of {trials} finished trials\n(PED-ANOVA, share of the sum)",
        ylabel="field",
    )
    axis.grid(alpha=0.3, axis="x")
    axis.set_axisbelow(True)
    figure.suptitle(f"{spec.settings.benchmark} {spec.settings.task}: which fields matter")
    save(figure, path)


def ticks(dimension: Dimension) -> tuple[Any, ...]:
    """The labels on the axis of a field: its values, or both ends of its range and the middle."""
    if dimension.values:
        return ordered(dimension)
    middle = math.sqrt(dimension.low * dimension.high) if dimension.log else (dimension.low + dimension.high) / 2
    return (dimension.low, middle, dimension.high)


def place(dimension: Dimension, value: Any) -> float:
    """Height of a value on its axis, in [0, 1]: listed values are spaced evenly, ranges are to scale."""
    if dimension.values:
        steps = len(dimension.values) - 1
        return ordered(dimension).index(value) / steps if steps else 0.5
    scale = math.log if dimension.log else float
    return (scale(value) - scale(dimension.low)) / (scale(dimension.high) - scale(dimension.low))


def ordered(dimension: Dimension) -> tuple[Any, ...]:
    """The values of a field, sorted if they are numbers."""
    numbers = all(isinstance(value, (int, float)) for value in dimension.values)
    return tuple(sorted(dimension.values)) if numbers else dimension.values
