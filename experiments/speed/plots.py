"""speed.png: what a search step, a question and an index build take."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qrag_jax.config.lengths import format_tokens
from qrag_jax.evaluate.plots import BLACK, BLUE, GREEN, ORANGE, PURPLE, _figure, _save


def speed(report: dict[str, Any], path: Path) -> None:
    """A search step beside its alternatives, whole questions, and index builds, on log axes, from speed.json."""
    figure, axes = _figure(3)
    styles = ((BLUE, "o", "-"), (BLACK, "x", ":"), (ORANGE, "s", "--"), (GREEN, "^", "-."), (PURPLE, "v", (0, (1, 1))))

    def lines(axis: Any, x: str, series: dict[str, str], rows: Sequence[dict[str, Any]]) -> None:
        for (key, label), (colour, marker, style) in zip(series.items(), styles, strict=False):
            found = [(row[x], row[key]) for row in rows if row[key] is not None]
            if found:
                seconds = [value["median_s"] if isinstance(value, dict) else value for _, value in found]
                axis.plot([at for at, _ in found], seconds, color=colour, marker=marker, linestyle=style, label=label)
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.grid(alpha=0.3, which="both")

    names = {
        **{"step": "this library", "plain_dot": "plain dot product", "numpy": "re-rotation, NumPy, tabled and blocked"},
        **{"pytorch": "re-rotation, PyTorch, likewise", "textbook": "re-rotation, NumPy, as written"},
    }
    lines(axes[0, 0], "tokens", names, report["search"])
    axes[0, 0].set(ylabel="time of a search step (s)", title="one step, three picks made")
    lines(axes[0, 1], "tokens", {"greedy": "greedy", "beam": "beam of 4"}, report["questions"])
    axes[0, 1].set(ylabel="time of a question (s)", title="question to four picks")
    for axis, rows in ((axes[0, 0], report["search"]), (axes[0, 1], report["questions"])):
        axis.set_xticks([row["tokens"] for row in rows], [format_tokens(row["tokens"]) for row in rows])
        axis.minorticks_off()
        axis.set_xlabel("context length (tokens)")
    lines(axes[0, 2], "chunks", {"median_s": "this library"}, report["build"])
    if (theirs := report["compare"][0]["theirs_chunks_per_s"]) is not None:
        sizes = [row["chunks"] for row in report["build"]]
        label = "sentence-transformers, embedding only\n(its rate, drawn out)"
        axes[0, 2].plot(sizes, [size / theirs for size in sizes], color=ORANGE, marker="s", linestyle="--", label=label)
    axes[0, 2].set(xlabel="chunks", ylabel="time of an index build (s)", title="index build")
    for axis in axes[0]:
        axis.legend(fontsize=8)
    _save(figure, path)
