"""Evaluation: episodes -> per-episode JSONL -> rows of results.json. The same function during training and at its end."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from qrag_jax.answers import score_answer
from qrag_jax.config import RunConfig
from qrag_jax.evaluation_sets import OFFICIAL, EvaluationSet
from qrag_jax.files import write_json, write_text
from qrag_jax.metrics import calibrate_threshold, fact_em, fact_f1, stopped, wilson_interval
from qrag_jax.reader.prompts import closed_book, make_prompt
from qrag_jax.reader.protocol import Reader
from qrag_jax.reader.readers import make_reader
from qrag_jax.retrieve.results import Trajectory
from qrag_jax.retrieve.retriever import Retriever
from qrag_jax.runlog import say
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
    prompt: str | None = None
    prediction: str | None = None
    answer_em: float | None = None
    answer_f1: float | None = None


def run_episodes(
    retriever: Retriever, examples: Sequence[QAExample], budget: int, *, beam: int = 1, label: str | None = None
) -> list[EpisodeRecord]:
    """Episodes of ``budget`` picks, scored. Raises ValueError on an example without supporting chunks."""
    return score_episodes(examples, retriever.run(examples, budget, beam=beam, label=label))


def score_episodes(examples: Sequence[QAExample], found: Sequence[Trajectory]) -> list[EpisodeRecord]:
    """What was picked, scored. Raises ValueError on an example without supporting chunks."""
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


def read_answers(
    reader: Reader,
    records: Sequence[EpisodeRecord],
    questions: EvaluationSet,
    context: str,
    examples: Sequence[QAExample],
    threshold: float | None = None,
) -> list[EpisodeRecord]:
    """The records with what the reader answered. ``context``: as ``EvalConfig.reader_context``; "stopped" needs the ``threshold``.

    An outage is an error (ReaderError), never an answer.
    """
    prompts, benchmark = [], questions.benchmark.removesuffix(OFFICIAL)
    for record, example in zip(records, examples, strict=True):
        if context == "none":
            prompts.append(closed_book(benchmark, questions.task, example.question))
            continue
        chosen = sorted(record.picked) if context == "retrieved" else example.support
        if context == "stopped":
            if threshold is None:
                raise ValueError(
                    "eval.reader_context = 'stopped': the retriever has no stop threshold; run python -m experiments.calibrate"
                )
            chosen = sorted(stopped(record.picked, record.q, threshold))
        prompts.append(make_prompt(benchmark, questions.task, example.question, [example.chunks[i] for i in chosen]))
    found = []
    for record, example, prompt, answer in zip(records, examples, prompts, reader.answer(prompts), strict=True):
        em, f1 = score_answer(benchmark, questions.task, answer.text, example)
        asked = "\n\n".join(f"[{message['role']}]\n{message['content']}" for message in prompt.messages)
        found.append(replace(record, prompt=asked, prediction=answer.text, answer_em=em, answer_f1=f1))
    return found


def threshold_of(records: Sequence[EpisodeRecord]) -> float | None:
    """The stop threshold of highest Fact F1 on validation episodes; None at a budget of 1, where there is nothing to stop."""
    if len(records[0].picked) < 2:
        return None
    return calibrate_threshold([r.picked for r in records], [r.q for r in records], [r.support for r in records])


def evaluate(config: RunConfig, run_dir: Path, retriever: Retriever, sets: Sequence[EvaluationSet]) -> list[dict[str, Any]]:
    """Episodes and one row of results.json for each set; the threshold stays the one calibrated on validation."""
    rows = []
    reader = make_reader(config.eval, run_dir / "answers")
    for questions in sets:
        seconds = 0.0
        records: list[EpisodeRecord] = []
        for i, examples in enumerate(questions):
            start = time.perf_counter()
            label = f"{questions.split} {questions.name} {i + 1}/{len(questions.groups)}"
            part = run_episodes(retriever, examples, questions.budget, beam=config.eval.beam, label=label)
            seconds += time.perf_counter() - start
            if reader is not None:
                part = read_answers(reader, part, questions, config.eval.reader_context, examples, retriever.threshold)
            records += part
        seconds /= len(records)
        write_episodes(run_dir / "episodes" / f"{questions.name}.jsonl", records)
        found = summary(records, retriever.threshold)
        rows.append({**questions.names, **found, "seconds_per_episode": seconds, "checkpoint_step": retriever.step})
        answered = "" if found["answer_em"] is None else f", answer EM {found['answer_em']:.3f}"
        say(f"{questions.name}: Fact EM {found['fact_em']:.3f}{answered} on {found['episodes']} questions, {seconds:.2f} s each")
    return rows


def summary(records: Sequence[EpisodeRecord], threshold: float | None) -> dict[str, Any]:
    """Mean metrics of some episodes; ``ci95`` is the Wilson interval of Fact EM."""
    em = [record.fact_em for record in records]
    kept = None if threshold is None else [(stopped(r.picked, r.q, threshold), r.support) for r in records]
    return {
        "chunks": max(record.chunks for record in records),
        "episodes": len(records),
        "budget": len(records[0].picked),
        "fact_em": float(np.mean(em)),
        "fact_f1": float(np.mean([record.fact_f1 for record in records])),
        "fact_em_stopped": None if kept is None else float(np.mean([fact_em(*one) for one in kept])),
        "fact_f1_stopped": None if kept is None else float(np.mean([fact_f1(*one) for one in kept])),
        "stop_threshold": threshold,
        "answer_em": _mean([record.answer_em for record in records]),
        "answer_f1": _mean([record.answer_f1 for record in records]),
        "ci95": list(wilson_interval(sum(em), len(em))),
    }


def _mean(values: Sequence[float | None]) -> float | None:
    """None where a value was not measured."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if len(known) == len(values) else None


def write_episodes(path: Path, records: Sequence[EpisodeRecord]) -> None:
    write_text(path, "".join(json.dumps(asdict(record), ensure_ascii=False) + "\n" for record in records))


def write_results(run_dir: Path, rows: Sequence[dict[str, Any]]) -> None:
    """results.json (schema of DESIGN section 4) and the same as a table, results.md."""
    write_json(run_dir / "results.json", {"schema": SCHEMA, "rows": list(rows)})
    write_text(run_dir / "results.md", results_table(rows) + "\n")


def results_table(rows: Sequence[dict[str, Any]]) -> str:
    """Rows as a Markdown table; what was not measured is a dash."""
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
    show = lambda value: "-" if value is None else f"{value:.3f}"  # noqa: E731
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
