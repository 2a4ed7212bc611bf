"""The files that an evaluation writes: episodes/*.jsonl, results.json and its table, results.md."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from qrag_jax.rundir.files import write_json, write_text

SCHEMA = 1


@dataclass(frozen=True)
class EpisodeRecord:
    """One line of episodes/*.jsonl."""

    id: str
    question: str
    answer: str
    chunks: int
    support: tuple[int, ...]
    picked: tuple[int, ...]
    q: tuple[float, ...]
    texts: tuple[str, ...]
    fact_em: float
    fact_f1: float
    prompt: str | None = None
    prediction: str | None = None
    answer_em: float | None = None
    answer_f1: float | None = None
    missing: int = 0
    """Number of supporting chunks that the document lacks; if there are any, Fact EM is 0."""


def write_episodes(path: Path, records: Sequence[EpisodeRecord]) -> None:
    write_text(path, "".join(json.dumps(asdict(record), ensure_ascii=False) + "\n" for record in records))


def write_results(run_dir: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Writes results.json, and the same as a table in results.md."""
    write_json(run_dir / "results.json", {"schema": SCHEMA, "rows": list(rows)})
    write_text(run_dir / "results.md", results_table(rows) + "\n")


def short_table(rows: Sequence[dict[str, Any]]) -> str:
    """What was measured, for a terminal: the columns that matter most, aligned. results.md has all of them."""
    show = lambda value: "-" if value is None else f"{value:.3f}"
    answered = any(row["answer_em"] is not None for row in rows)
    heads = ["task", "tokens", "questions", "Fact EM", "95 %", "Fact F1 stopped", *["answer EM"] * answered, "s / question"]
    lines = [
        [
            row["task"] if len({one["benchmark"] for one in rows}) == 1 else f"{row['benchmark']} {row['task']}",
            "-" if row["context_tokens"] is None else f"{row['context_tokens']:,}",
            f"{row['episodes']:,}",
            show(row["fact_em"]),
            "-".join(map(show, row["ci95"])),
            show(row["fact_f1_stopped"]),
            *[show(row["answer_em"])] * answered,
            show(row["seconds_per_episode"]),
        ]
        for row in rows
    ]
    return aligned(heads, lines)


def aligned(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table for a terminal: the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(heads, *lines, strict=True)]
    rows = [[line[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(line[1:], widths[1:], strict=True))] for line in [heads, *lines]]
    return "\n".join("  ".join(row) for row in rows)


def results_table(rows: Sequence[dict[str, Any]]) -> str:
    """Rows as a Markdown table, with a dash for what was not measured."""
    heads = (
        "task",
        "split",
        "tokens",
        "chunks",
        "episodes",
        "budget",
        "Fact EM",
        "95 %",
        "Fact F1",
        "Fact EM stopped",
        "Fact F1 stopped",
        "answer EM",
        "s / episode",
    )
    show = lambda value: "-" if value is None else f"{value:.3f}"
    several = len({row["benchmark"] for row in rows}) > 1
    lines = [heads, ("---",) * len(heads)]
    for row in rows:
        low, high = row["ci95"]
        lines.append(
            (
                " ".join((*([row["benchmark"]] if several else []), row["task"])),
                row["split"],
                "-" if row["context_tokens"] is None else f"{row['context_tokens']:,}",
                f"{row['chunks']:,}",
                str(row["episodes"]),
                str(row["budget"]),
                show(row["fact_em"]),
                f"{low:.3f}-{high:.3f}",
                show(row["fact_f1"]),
                show(row["fact_em_stopped"]),
                show(row["fact_f1_stopped"]),
                show(row["answer_em"]),
                show(row["seconds_per_episode"]),
            )
        )
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
