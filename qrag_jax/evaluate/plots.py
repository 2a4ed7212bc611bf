"""Pictures of a run, in a colour-blind-safe palette (Okabe and Ito), with markers and line styles that differ as well."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from qrag_jax.config.lengths import format_tokens
from qrag_jax.evaluate.metrics import Stopping

BLUE, ORANGE, GREEN, PURPLE, BLACK = "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#000000"
PaperFigures = Mapping[tuple[str, str, str], Mapping[int, float]]
"""(benchmark, task, metric) -> context length in tokens -> the paper's figure."""


def stopping(curve: Stopping, threshold: float, path: Path, title: str) -> None:
    """Fact EM, Fact F1, perfect stops and the number of picks against the stop threshold."""
    figure, axes = _figure(2)
    axis = axes[0, 0]
    for values, colour, line, label in (
        (curve.fact_em, BLUE, "-", "Fact EM"),
        (curve.fact_f1, ORANGE, "--", "Fact F1"),
        (curve.perfect, GREEN, ":", "stops right after the last fact"),
    ):
        axis.plot(curve.threshold, values, color=colour, linestyle=line, label=label)
    axis.set(xlabel="stop when Q is below", ylabel="score", ylim=(-0.02, 1.02))
    axes[0, 1].plot(curve.threshold, curve.length, color=BLACK, label="picks")
    axes[0, 1].set(xlabel="stop when Q is below", ylabel="chunks picked", ylim=(0, None))
    for axis in axes[0]:
        axis.axvline(threshold, color=BLACK, linewidth=0.8, linestyle="-.", label=f"calibrated: {threshold:.2f}")
        axis.grid(alpha=0.3)
    axes[0, 0].legend(loc="lower left", fontsize=8)
    figure.suptitle(title)
    _save(figure, path)


def search(
    budgets: Sequence[dict[str, Any]], beams: Sequence[dict[str, Any]], paper: dict[str, dict[int, float]], path: Path, title: str
) -> None:
    """Fact EM and Fact F1 against the retrieval budget and against the width of the beam, with the seconds that a question takes.

    ``budgets``, ``beams``: rows of tables.json; ``paper``: metric -> budget -> figure of the paper, empty where it has none.
    """
    figure, axes = _figure(2)
    for axis, rows, x in ((axes[0, 0], budgets, "budget"), (axes[0, 1], beams, "beam")):
        for metric, colour, marker, line, label in (("fact_em", BLUE, "o", "-", "Fact EM"), ("fact_f1", ORANGE, "s", "--", "Fact F1")):
            axis.plot([row[x] for row in rows], [row[metric] for row in rows], color=colour, marker=marker, linestyle=line, label=label)
            if x == "budget" and (theirs := paper.get(metric)):
                axis.plot(
                    list(theirs), list(theirs.values()), color=colour, marker="*", linestyle=":", label=f"paper, other encoder: {label}"
                )
        axis.set_xticks([row[x] for row in rows])
        axis.grid(alpha=0.3)
    axes[0, 0].set(xlabel="budget (chunks picked)", ylabel="score", ylim=(-0.02, 1.02))
    axes[0, 1].set(xlabel=f"paths kept (beam), {beams[0]['budget']} picks", ylabel="score", ylim=(-0.02, 1.02))
    time = axes[0, 1].twinx()
    time.plot([row["beam"] for row in beams], [row["seconds"] for row in beams], color=GREEN, marker="^", linestyle="-.", label="time")
    time.set(ylabel="time of a question (s), dash-dotted", ylim=(0, None))
    axes[0, 0].legend(loc="lower left", fontsize=8)
    figure.suptitle(title)
    _save(figure, path)


def _figure(columns: int, rows: int = 1) -> tuple[Any, Any]:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt.subplots(rows, columns, figsize=(5.5 * columns, 3.8 * rows), layout="constrained", squeeze=False)


def _save(figure: Any, path: Path) -> None:
    import matplotlib.pyplot as plt

    figure.savefig(path, dpi=150)
    plt.close(figure)


def curves(records: Sequence[dict[str, Any]], path: Path, title: str, sampled: bool = True) -> None:
    """Return and Fact EM of training and validation against updates and against minutes, from the records of metrics.jsonl.

    ``sampled``: whether training episodes are the policy's; supervised ones follow the labels, and their record is the share of
    episodes whose supporting chunks rank first at each step.
    """
    train = [r for r in records if r["kind"] == "train"]
    validation = [r for r in records if r["kind"] == "validation"]
    minutes = {0: 0.0} | {r["step"]: r["seconds"] / 60 for r in train}
    figure, axes = _figure(2)
    for axis, label, at in (
        (axes[0, 0], "updates", lambda step: step),
        (axes[0, 1], "minutes of training", lambda step: minutes[step]),
    ):
        x = [at(r["step"]) for r in train]
        if sampled:
            axis.plot(x, [r["return"] for r in train], color=ORANGE, linewidth=4, alpha=0.6, label="return (training, sampled)")
        label = "Fact EM (training, sampled)" if sampled else "supporting chunks ranked first (training)"
        axis.plot(x, [r["fact_em"] for r in train], color=BLUE, label=label)
        x = [at(r["step"]) for r in validation]
        axis.plot(x, [r["fact_em"] for r in validation], color=GREEN, marker="o", linestyle=":", label="Fact EM (validation, searched)")
        axis.set(xlabel=label, ylabel="return, Fact EM" if sampled else "share of episodes", ylim=(-0.02, 1.02), xlim=(0, None))
        axis.grid(alpha=0.3)
    axes[0, 0].legend(loc="lower right", fontsize=8)
    figure.suptitle(title)
    _save(figure, path)


def interval(row: dict[str, Any]) -> tuple[float, float]:
    """Where the bar of Fact EM ends: at the 95 % interval of a run's row, or a spread below and above a mean over seeds."""
    if row["ci95"] is not None:
        return row["ci95"][0], row["ci95"][1]
    spread = row.get("spread", {}).get("fact_em") or 0.0
    return row["fact_em"] - spread, row["fact_em"] + spread


def context(rows: Sequence[dict[str, Any]], path: Path, paper: PaperFigures = MappingProxyType({})) -> None:
    """Fact EM (with its interval) and stopped Fact F1 against context length, a panel for each task, with the paper's Fact F1 where
    ``paper`` has it."""
    tasks: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in sorted(rows, key=lambda row: row["context_tokens"]):
        tasks.setdefault((row["benchmark"], row["task"]), []).append(row)
    columns = min(len(tasks), 4)
    figure, axes = _figure(columns, -(-len(tasks) // columns))
    for axis in axes.flat[len(tasks) :]:
        axis.set_axis_off()
    for axis, own in zip(axes.flat, tasks.values(), strict=False):
        _context_panel(axis, own, paper.get((own[0]["benchmark"], own[0]["task"], "fact_f1"), {}))
    _save(figure, path)


def _context_panel(axis: Any, rows: Sequence[dict[str, Any]], paper: Mapping[int, float]) -> None:
    tokens = [row["context_tokens"] for row in rows]
    em = [row["fact_em"] for row in rows]
    ends = [interval(row) for row in rows]
    bars = [[value - end[0] for value, end in zip(em, ends, strict=True)], [end[1] - value for value, end in zip(em, ends, strict=True)]]
    meaning = f"± spread, n = {len(rows[0]['seeds'])}" if "seeds" in rows[0] else "95 % interval"
    axis.errorbar(tokens, em, yerr=bars, color=BLUE, marker="o", capsize=3, label=f"Fact EM at budget {rows[0]['budget']} ({meaning})")
    if all(row["fact_f1_stopped"] is not None for row in rows):
        axis.plot(tokens, [row["fact_f1_stopped"] for row in rows], color=ORANGE, marker="s", linestyle="--", label="Fact F1, stopped")
    if paper:
        axis.plot(list(paper), list(paper.values()), color=BLACK, marker="^", linestyle=":", label="Q-RAG paper: Fact F1")
        tokens = sorted({*tokens, *paper})
    axis.set_xscale("log")
    axis.set_xticks(tokens, [format_tokens(t) for t in tokens])
    axis.minorticks_off()
    axis.set(
        xlabel="context length (tokens)",
        ylabel="score",
        ylim=(-0.02, 1.02),
        title=f"{rows[0]['benchmark']} {rows[0]['task']}, test questions",
    )
    axis.grid(alpha=0.3)
    axis.legend(loc="lower left", fontsize=8)
