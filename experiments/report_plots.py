"""The picture of a benchmark's runs: scores against context length, in the library's colour-blind-safe palette."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qrag_jax.lengths import format_tokens
from qrag_jax.plots import BLACK, BLUE, GREEN, ORANGE, _figure, _save

# The rest of Okabe and Ito, but for yellow, which is faint on white, and a grey. Line styles repeat after another number of lines.
COLOURS = (BLUE, ORANGE, GREEN, "#D55E00", "#CC79A7", "#56B4E9", "#777777")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
STYLES = ("-", "--", "-.", (0, (1, 1)), (0, (4, 1, 1, 1)))
APART = 1.05  # lines stand side by side, by this factor, so that equal scores are all seen


@dataclass(frozen=True)
class Line:
    """Rows of results.json at rising context lengths."""

    name: str
    rows: tuple[dict[str, Any], ...]


def draw(path: Path, title: str, lines: Sequence[Line], paper: Mapping[int, float]) -> None:
    """Fact EM with its interval and, where it was measured, answer EM, as a PNG. ``paper``: Fact F1 of QA3 by context length."""
    answered = any(row["answer_em"] is not None for line in lines for row in line.rows)
    panels = [("fact_em", "Fact EM"), *([("answer_em", "answer EM")] if answered else [])]
    figure, axes = _figure(len(panels))
    figure.set_size_inches(5.5 * len(panels) + 3.5, 4.2)
    ticks = sorted({row["context_tokens"] for line in lines for row in line.rows} | set(paper))
    for (column, label), axis in zip(panels, axes[0], strict=True):
        for number, line in enumerate(lines):
            rows = [row for row in line.rows if row[column] is not None]
            style = {
                "color": COLOURS[number % len(COLOURS)],
                "marker": MARKERS[number % len(MARKERS)],
                "linestyle": STYLES[number % len(STYLES)],
            }
            aside = APART ** (number - (len(lines) - 1) / 2)
            at, values = [row["context_tokens"] * aside for row in rows], [row[column] for row in rows]
            if column == "fact_em":
                low = [row["fact_em"] - row["ci95"][0] for row in rows]
                high = [row["ci95"][1] - row["fact_em"] for row in rows]
                axis.errorbar(at, values, yerr=[low, high], capsize=3, label=line.name, **style)
            else:
                axis.plot(at, values, **style)
        if paper and column == "fact_em":
            axis.plot(list(paper), list(paper.values()), color=BLACK, marker="*", linestyle=":", label="paper, QA3: Fact F1 (Table 3)")
        axis.set_xscale("log")
        axis.set_xticks(ticks, [format_tokens(tokens) for tokens in ticks])
        axis.minorticks_off()
        axis.set(xlabel="context length (tokens)", ylabel=label, ylim=(-0.02, 1.02), title=f"{title}, test questions")
        axis.grid(alpha=0.3)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside right upper", fontsize=8)
    _save(figure, path)
