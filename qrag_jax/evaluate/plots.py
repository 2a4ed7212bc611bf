"""Pictures of a run, in a colour-blind-safe palette (Okabe and Ito); markers and line styles differ too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from qrag_jax.config.lengths import format_tokens
from qrag_jax.evaluate.metrics import Stopping

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, PURPLE, BLACK = "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#000000"
PaperFigures = Mapping[tuple[str, str, str], Mapping[int, float]]
"""(benchmark, task, metric) -> context length in tokens -> the paper's figure."""


def subplots(columns: int, rows: int = 1) -> tuple[Figure, Any]:
    """A figure and its axes [rows, columns]. It opens no window and does not change the user's own pyplot figures."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.5 * columns, 3.8 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False)


def legend(axis: Any, *twins: Any, title: str | None = None) -> None:
    """Draws the legend of ``axis`` and its ``twins``, each name once, below the x-axis, where it covers no data.

    Call it after the labels and ticks of ``axis`` are set.
    """
    from matplotlib.transforms import ScaledTranslation

    shown: dict[str, Any] = {}
    for part in (axis, *twins):
        for handle, name in zip(*part.get_legend_handles_labels(), strict=True):
            shown.setdefault(name, handle)
    figure = axis.get_figure()
    lowest = axis.xaxis.get_tightbbox(figure.canvas.get_renderer()).y0 - axis.bbox.y0
    below = axis.transAxes + ScaledTranslation(0, lowest / figure.dpi, figure.dpi_scale_trans)
    place: dict[str, Any] = {"loc": "upper center", "bbox_to_anchor": (0.5, 0), "bbox_transform": below, "borderaxespad": 0.6}
    axis.legend(list(shown.values()), list(shown), title=title, ncols=min(2, len(shown)), fontsize=8, title_fontsize=8, **place)


def save(figure: Figure, path: Path) -> None:
    """Writes a figure as a PNG."""
    figure.savefig(path, dpi=150)


def stopping(curve: Stopping, threshold: float, path: Path, title: str) -> None:
    """Fact EM, Fact F1, perfect stops and the number of picks against the stop threshold."""
    figure, axes = subplots(2)
    scores, picks = axes[0]
    for values, colour, line, label in (
        (curve.fact_em, BLUE, "-", "Fact EM"),
        (curve.fact_f1, ORANGE, "--", "Fact F1"),
        (curve.perfect, GREEN, ":", "stops right after the last fact"),
    ):
        scores.plot(curve.threshold, values, color=colour, linestyle=line, label=label)
    scores.set(ylabel="score (mean over questions)", ylim=(-0.02, 1.02))
    picks.plot(curve.threshold, curve.length, color=BLUE, label="picks of a question, on average")
    picks.set(ylabel="chunks picked", ylim=(0, None))
    for axis in (scores, picks):
        axis.axvline(threshold, color=BLACK, linewidth=0.8, linestyle="-.", label=f"calibrated threshold: {threshold:.2f}")
        axis.set_xlabel("stop threshold (stop when Q is below)")
        axis.grid(alpha=0.3)
        legend(axis)
    figure.suptitle(title)
    save(figure, path)


def search(
    budgets: Sequence[dict[str, Any]], beams: Sequence[dict[str, Any]], paper: dict[str, dict[int, float]], path: Path, title: str
) -> None:
    """Fact EM and Fact F1 against the retrieval budget and against the width of the beam, with the seconds per question.

    ``budgets``, ``beams``: rows of tables.json; ``paper``: metric -> budget -> figure of the paper, empty if it has none.
    """
    figure, axes = subplots(2)
    by_budget, by_beam = axes[0]
    for axis, rows, x in ((by_budget, budgets, "budget"), (by_beam, beams, "beam")):
        for metric, colour, marker, line, label in (("fact_em", BLUE, "o", "-", "Fact EM"), ("fact_f1", ORANGE, "s", "--", "Fact F1")):
            axis.plot([row[x] for row in rows], [row[metric] for row in rows], color=colour, marker=marker, linestyle=line, label=label)
            if x == "budget" and (theirs := paper.get(metric)):
                name = f"paper, other encoder: {label}"
                axis.plot(list(theirs), list(theirs.values()), color=colour, marker="*", linestyle=":", label=name)
        axis.set_xticks([row[x] for row in rows])
        axis.set(ylabel="score", ylim=(-0.02, 1.02))
        axis.grid(alpha=0.3)
    by_budget.set_xlabel("budget (chunks picked)")
    by_beam.set_xlabel(f"beam (paths kept), {beams[0]['budget']} chunks picked")
    time = by_beam.twinx()
    time.plot([row["beam"] for row in beams], [row["seconds"] for row in beams], color=GREEN, marker="^", linestyle="-.", label="time")
    time.set(ylabel="time of a question (s)", ylim=(0, 1.08 * max(row["seconds"] for row in beams)))
    legend(by_budget)
    legend(by_beam, time)
    figure.suptitle(title)
    save(figure, path)


def curves(records: Sequence[dict[str, Any]], path: Path, title: str, sampled: bool = True) -> None:
    """Return and Fact EM of training and validation against updates and against minutes, from the records of metrics.jsonl.

    ``sampled``: whether the policy made the training episodes. Supervised episodes follow the labels; for them, the plot shows the share
    of episodes whose supporting chunks rank first at each step.
    """
    train = [r for r in records if r["kind"] == "train"]
    validation = [r for r in records if r["kind"] == "validation"]
    minutes = {0: 0.0} | {r["step"]: r["seconds"] / 60 for r in train}
    training = "Fact EM (training, sampled)" if sampled else "supporting chunks ranked first (training)"
    figure, axes = subplots(2)
    for axis, unit in zip(axes[0], ("updates", "minutes of training"), strict=True):
        x, checked = ([r["step"] if unit == "updates" else minutes[r["step"]] for r in part] for part in (train, validation))
        if sampled:
            axis.plot(x, [r["return"] for r in train], color=ORANGE, linewidth=4, alpha=0.6, label="return (training, sampled)")
        axis.plot(x, [r["fact_em"] for r in train], color=BLUE, label=training)
        em = [r["fact_em"] for r in validation]
        axis.plot(checked, em, color=GREEN, marker="o", linestyle=":", label="Fact EM (validation, searched)")
        axis.set(xlabel=unit, ylabel="return, Fact EM" if sampled else "share of episodes", ylim=(-0.02, 1.02), xlim=(0, None))
        axis.grid(alpha=0.3)
        legend(axis)
    figure.suptitle(f"{title}, training")
    save(figure, path)


def interval(row: dict[str, Any]) -> tuple[float, float]:
    """The ends of the error bar of Fact EM: the 95 % interval of a run's row, or one spread below and above a mean over seeds."""
    if row["ci95"] is not None:
        return row["ci95"][0], row["ci95"][1]
    spread = row.get("spread", {}).get("fact_em") or 0.0
    return row["fact_em"] - spread, row["fact_em"] + spread


def context(rows: Sequence[dict[str, Any]], path: Path, paper: PaperFigures = MappingProxyType({})) -> None:
    """Fact EM (with its interval) and stopped Fact F1 against context length, with a panel for each task and the paper's Fact F1 if
    ``paper`` has it. ``rows``: of results.json."""
    tasks: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in sorted(rows, key=lambda row: row["context_tokens"]):
        tasks.setdefault((row["benchmark"], row["task"]), []).append(row)
    columns = min(len(tasks), 4)
    figure, axes = subplots(columns, -(-len(tasks) // columns))
    for axis in axes.flat[len(tasks) :]:
        axis.set_axis_off()
    for axis, ((benchmark, task), own) in zip(axes.flat, tasks.items(), strict=False):
        _context_panel(axis, own, paper.get((benchmark, task, "fact_f1"), {}))
        axis.set_title(f"{benchmark} {task}, {own[0]['split']} questions")
    save(figure, path)


def _context_panel(axis: Any, rows: Sequence[dict[str, Any]], paper: Mapping[int, float]) -> None:
    tokens = [row["context_tokens"] for row in rows]
    em = [row["fact_em"] for row in rows]
    ends = [interval(row) for row in rows]
    bars = [[value - end[0] for value, end in zip(em, ends, strict=True)], [end[1] - value for value, end in zip(em, ends, strict=True)]]
    meaning = f"± spread, n = {len(rows[0]['seeds'])}" if "seeds" in rows[0] else "95% interval"
    label = f"Fact EM, {rows[0]['budget']} chunks picked ({meaning})"
    axis.errorbar(tokens, em, yerr=bars, color=BLUE, marker="o", capsize=3, label=label)
    if all(row["fact_f1_stopped"] is not None for row in rows):
        axis.plot(tokens, [row["fact_f1_stopped"] for row in rows], color=ORANGE, marker="s", linestyle="--", label="Fact F1, stopped")
    if paper:
        axis.plot(list(paper), list(paper.values()), color=BLACK, marker="^", linestyle=":", label="Q-RAG paper: Fact F1")
        tokens = sorted({*tokens, *paper})
    context_axis(axis, tokens)
    axis.set(ylabel="score", ylim=(-0.02, 1.02))
    axis.grid(alpha=0.3)
    legend(axis)


def context_axis(axis: Any, tokens: Sequence[int]) -> None:
    """The x-axis of context lengths: logarithmic, with a tick at each of ``tokens``."""
    axis.set_xscale("log")
    axis.set_xticks(tokens, [format_tokens(t) for t in tokens])
    axis.minorticks_off()
    if len(tokens) == 1:  # or the axis would end at the points, which stand a little aside
        axis.set_xlim(tokens[0] / 2, tokens[0] * 2)
    axis.set_xlabel("context length (tokens)")
