"""Evaluation: episodes -> per-episode JSONL -> rows of results.json. Validation during training and the final test share it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from qrag_jax.config import EvalConfig
from qrag_jax.evaluate.answers import score_answer
from qrag_jax.evaluate.metrics import calibrate_threshold, fact_em, fact_f1, wilson_interval
from qrag_jax.evaluate.results import EpisodeRecord, write_episodes
from qrag_jax.evaluate.sets import EvaluationSet
from qrag_jax.reader.make import make_reader
from qrag_jax.reader.prompts import closed_book, make_prompt
from qrag_jax.reader.protocol import Reader
from qrag_jax.retrieve.retriever import Retriever
from qrag_jax.retrieve.search import stopped
from qrag_jax.retrieve.types import Trajectory
from qrag_jax.rundir.log import say
from qrag_jax.types import QAExample


def run_episodes(
    retriever: Retriever, examples: Sequence[QAExample], budget: int, *, beam: int = 1, label: str | None = None
) -> list[EpisodeRecord]:
    """Episodes of ``budget`` picks, scored. Raises ValueError on an example without supporting chunks."""
    return score_episodes(examples, retriever.run(examples, budget, beam=beam, label=label))


def score_episodes(examples: Sequence[QAExample], found: Sequence[Trajectory]) -> list[EpisodeRecord]:
    """Scores the picks ``found`` for ``examples``. Raises ValueError on an example without supporting chunks."""
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
            fact_em=fact_em(trajectory.picked, example.support, example.missing),
            fact_f1=fact_f1(trajectory.picked, example.support, example.missing),
            missing=example.missing,
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
    """The records with the reader's answers. ``context``: as ``EvalConfig.reader_context``; "stopped" needs the ``threshold``.

    If the reader cannot be reached, raises ReaderError; this is never scored as an answer.
    """
    prompts, benchmark = [], questions.known_benchmark
    for record, example in zip(records, examples, strict=True):
        if context == "none" or (context == "gold" and not example.support):
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
    """The stop threshold with the highest Fact F1 on validation episodes; None with a budget of 1, where there is nothing to stop."""
    if max(len(record.picked) for record in records) < 2:
        return None
    return calibrate_threshold([r.picked for r in records], [r.q for r in records], [r.support for r in records])


def evaluate(config: EvalConfig, run_dir: Path, retriever: Retriever, sets: Sequence[EvaluationSet]) -> list[dict[str, Any]]:
    """Writes the episodes, and returns one row of results.json for each set. The threshold is the one calibrated on validation."""
    rows = []
    reader = make_reader(config, run_dir / "answers")
    for questions in sets:
        seconds = 0.0
        records: list[EpisodeRecord] = []
        for i, examples in enumerate(questions):
            start = time.perf_counter()
            label = f"{questions.split} {questions.name} {i + 1}/{len(questions.groups)}"
            part = run_episodes(retriever, examples, questions.budget, beam=config.beam, label=label)
            seconds += time.perf_counter() - start
            if reader is not None:
                part = read_answers(reader, part, questions, config.reader_context, examples, retriever.threshold)
            records += part
        seconds /= len(records)
        write_episodes(run_dir / "episodes" / f"{questions.name}.jsonl", records)
        found = summary(records, retriever.threshold)
        rows.append({**questions.names, **found, "seconds_per_episode": seconds, "checkpoint_step": retriever.step})
        answered = "" if found["answer_em"] is None else f", answer EM {found['answer_em']:.3f}"
        say(f"{questions.name}: Fact EM {found['fact_em']:.3f}{answered} on {found['episodes']} questions, {seconds:.2f} s each")
        if lacking := sum(record.missing > 0 for record in records):
            say(f"{questions.name}: {lacking} of these questions lack supporting chunks in their documents; their Fact EM is 0")
    return rows


def summary(records: Sequence[EpisodeRecord], threshold: float | None) -> dict[str, Any]:
    """Mean metrics of the episodes; ``ci95`` is the Wilson interval of Fact EM."""
    em = [record.fact_em for record in records]
    kept = None if threshold is None else [(stopped(r.picked, r.q, threshold), r.support, r.missing) for r in records]
    return {
        "chunks": max(record.chunks for record in records),
        "episodes": len(records),
        "budget": max(len(record.picked) for record in records),
        "fact_em": float(np.mean(em)),
        "fact_f1": float(np.mean([record.fact_f1 for record in records])),
        "fact_em_stopped": None if kept is None else float(np.mean([fact_em(*one) for one in kept])),
        "fact_f1_stopped": None if kept is None else float(np.mean([fact_f1(*one) for one in kept])),
        "stop_threshold": threshold,
        "answer_em": _mean([record.answer_em for record in records]),
        "answer_f1": _mean([record.answer_f1 for record in records]),
        "ci95": list(wilson_interval(int(sum(em)), len(em))),
    }


def _mean(values: Sequence[float | None]) -> float | None:
    """The mean; None if any value was not measured."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if len(known) == len(values) else None
