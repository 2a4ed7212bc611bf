"""Evaluation: greedy episodes -> per-episode JSONL -> rows of results.json. The same function during training and at its end."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from qrag_jax.files import write_json, write_text
from qrag_jax.metrics import calibrate_threshold, fact_em, fact_f1, stopped, wilson_interval
from qrag_jax.retrieve.retriever import Retriever
from qrag_jax.types import QAExample

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


def run_episodes(retriever: Retriever, examples: Sequence[QAExample], budget: int, *, label: str | None = None) -> list[EpisodeRecord]:
    """Greedy episodes of ``budget`` picks, scored. Raises ValueError on an example without supporting chunks."""
    found = retriever.run(examples, budget, label=label)
    return [
        EpisodeRecord(
            id=example.id,
            question=example.question,
            answer=example.answer,
            chunks=len(example.chunks),
            support=example.support,
            picked=trajectory.picked,
            q=trajectory.q,
            texts=tuple(example.chunks[i] for i in trajectory.picked),
            fact_em=fact_em(trajectory.picked, example.support),
            fact_f1=fact_f1(trajectory.picked, example.support),
        )
        for example, trajectory in zip(examples, found, strict=True)
    ]


def threshold_of(records: Sequence[EpisodeRecord]) -> float | None:
    """The stop threshold of highest Fact F1 on validation episodes; None at a budget of 1, where there is nothing to stop."""
    if len(records[0].picked) < 2:
        return None
    return calibrate_threshold([r.picked for r in records], [r.q for r in records], [r.support for r in records])


def evaluate_length(
    retriever: Retriever, groups: Sequence[Sequence[QAExample]], budget: int, threshold: float | None, *, label: str
) -> tuple[list[EpisodeRecord], dict[str, Any]]:
    """Episodes and the metrics of one context length. ``groups``: examples that share a haystack; each group is embedded once."""
    start = time.perf_counter()
    records = [
        record
        for i, examples in enumerate(groups)
        for record in run_episodes(retriever, examples, budget, label=f"{label} haystack {i + 1}/{len(groups)}")
    ]
    seconds = time.perf_counter() - start
    return records, {**summary(records, threshold), "seconds_per_episode": seconds / len(records)}


def summary(records: Sequence[EpisodeRecord], threshold: float | None) -> dict[str, Any]:
    """Mean metrics of some episodes; ``ci95`` is the Wilson interval of Fact EM."""
    em = [record.fact_em for record in records]
    shortened = None
    if threshold is not None:
        shortened = float(np.mean([fact_f1(stopped(r.picked, r.q, threshold), r.support) for r in records]))
    return {
        "chunks": max(record.chunks for record in records),
        "episodes": len(records),
        "budget": len(records[0].picked),
        "fact_em": float(np.mean(em)),
        "fact_f1": float(np.mean([record.fact_f1 for record in records])),
        "fact_f1_stopped": shortened,
        "stop_threshold": threshold,
        "answer_em": None,
        "answer_f1": None,
        "ci95": list(wilson_interval(sum(em), len(em))),
    }


def write_episodes(path: Path, records: Sequence[EpisodeRecord]) -> None:
    write_text(path, "".join(json.dumps(asdict(record), ensure_ascii=False) + "\n" for record in records))


def write_results(run_dir: Path, rows: Sequence[dict[str, Any]]) -> None:
    """results.json (schema of DESIGN section 4) and the same as a table, results.md."""
    write_json(run_dir / "results.json", {"schema": SCHEMA, "rows": list(rows)})
    write_text(run_dir / "results.md", results_table(rows) + "\n")


def results_table(rows: Sequence[dict[str, Any]]) -> str:
    """Rows as a Markdown table; what was not measured is a dash."""
    heads = ("task", "split", "tokens", "chunks", "episodes", "budget", "Fact EM", "95 %", "Fact F1", "Fact F1 stopped", "s / episode")
    show = lambda value: "-" if value is None else f"{value:.3f}"  # noqa: E731
    lines = [heads, ("---",) * len(heads)]
    for row in rows:
        low, high = row["ci95"]
        lines.append(
            (
                row["task"],
                row["split"],
                f"{row['context_tokens']:,}",
                f"{row['chunks']:,}",
                str(row["episodes"]),
                str(row["budget"]),
                show(row["fact_em"]),
                f"{low:.3f}-{high:.3f}",
                show(row["fact_f1"]),
                show(row["fact_f1_stopped"]),
                show(row["seconds_per_episode"]),
            )
        )
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
