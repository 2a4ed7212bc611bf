"""Draws an overlay: validation against updates and minutes, test scores against context length. Colours as everywhere (Okabe and Ito)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from experiments.overlay.runs import Group, Key, keys
from experiments.paper.plots import COLOURS, MARKERS, STYLES
from qrag_jax.evaluate import plots
from qrag_jax.evaluate.metrics import wilson_interval

COLUMNS = 3


def draw(groups: Sequence[Group], path: Path) -> None:
    """Draws a PNG. With several seeds: their mean, and one sample standard deviation up and down."""
    tests: dict[tuple[str, str], list[Key]] = {}
    for key in keys(groups):
        if key[3] is not None:
            tests.setdefault((key[0], key[1]), []).append(key)
    count = 2 + len(tests)
    columns = min(count, COLUMNS)
    figure, axes = plots.subplots(columns, -(-count // columns))
    for axis in axes.flat[count:]:
        axis.set_axis_off()
    for axis, unit in zip(axes.flat, ("updates", "minutes of training"), strict=False):
        for number, group in enumerate(groups):
            _learning(axis, group, unit, _look(number))
        axis.set(xlabel=unit, ylabel="Fact EM (share of questions)", ylim=(-0.02, 1.02), xlim=(0, None), title="validation questions")
        axis.grid(alpha=0.3)
        plots.legend(axis)
    for axis, ((benchmark, task), own) in zip(axes.flat[2:], tests.items(), strict=False):
        for number, group in enumerate(groups):
            _lengths(axis, group, own, 1 + 0.03 * (number - (len(groups) - 1) / 2), _look(number))
        plots.context_axis(axis, sorted({key[3] for key in own if key[3] is not None}))
        axis.set(ylabel="Fact EM (share of questions)", ylim=(-0.02, 1.02), title=f"{benchmark} {task}, {own[0][2]} questions")
        axis.grid(alpha=0.3)
        plots.legend(axis)
    plots.save(figure, path)


def _look(number: int) -> dict[str, Any]:
    """Colour, marker and line of a group; they repeat after different counts."""
    return {
        "color": COLOURS[number % len(COLOURS)],
        "marker": MARKERS[number % len(MARKERS)],
        "linestyle": STYLES[number % len(STYLES)],
        "markersize": 4,
        "capsize": 2,
    }


def _learning(axis: Any, group: Group, unit: str, look: Mapping[str, Any]) -> None:
    """The updates at which every seed was validated."""
    scores = [dict(run.validations) for run in group.runs]
    steps = sorted(set.intersection(*map(set, scores)))
    if not steps:
        return
    known = [step for step in steps if unit == "updates" or all(step in run.minutes for run in group.runs)]
    x = known if unit == "updates" else [mean(run.minutes[step] for run in group.runs) for step in known]
    values = [[of_run[step] for of_run in scores] for step in known]
    bars = [stdev(part) for part in values] if len(scores) > 1 else None
    axis.errorbar(x, [mean(part) for part in values], yerr=bars, label=_label(group, "± spread"), **look)


def _lengths(axis: Any, group: Group, own: Sequence[Key], aside: float, look: Mapping[str, Any]) -> None:
    """The mean at each length, with its spread over seeds, or with the 95 % interval of the only run's questions."""
    known = [(key[3], scores, key) for key in own if (scores := group.scores(key, "fact_em")) and key[3] is not None]
    values = [mean(scores) for _, scores, _ in known]
    if len(group.runs) > 1:
        ends = [(stdev(scores),) * 2 if len(scores) > 1 else (0.0, 0.0) for _, scores, _ in known]
    else:
        rows = [group.runs[0].row(key) for _, _, key in known]
        counts = [(round(row["fact_em"] * row["episodes"]), row["episodes"]) for row in rows if row is not None]
        ends = [(value - low, high - value) for value, (low, high) in zip(values, (wilson_interval(*one) for one in counts), strict=True)]
    bars = [[max(end[side], 0.0) for end in ends] for side in (0, 1)]
    if known:
        axis.errorbar(
            [tokens * aside for tokens, _, _ in known], values, yerr=bars, label=_label(group, "± spread", "95 % interval"), **look
        )


def _label(group: Group, several: str, one: str = "") -> str:
    what = f"{several}, n = {len(group.runs)}" if len(group.runs) > 1 else one
    return f"{group.name} ({what})" if what else group.name
