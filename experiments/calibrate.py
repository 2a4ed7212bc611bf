"""Sets two limits of a trained retriever on validation questions.

The stop threshold is the Q below which a search ends: the one with the highest Fact F1. The other limit is for answers: if the Q of no pick
reaches it, `qrag ask` says "not in the documents". It refuses at most 1 % of the questions whose supporting chunks are there, and as many
as possible when those chunks are taken out.

    python -m experiments.calibrate runs/babilong-qa2-tiny
    python -m experiments.calibrate runs/babilong-qa2-tiny --beam 4 --chunks 160
    python -m experiments.calibrate EXPORT --benchmark own --data-dir questions.jsonl

A training run has already done this, with greedy search, in documents of its training length. Options that you omit keep the retriever's
own values: data folder, budget, beam and so on. Both limits are written into the export. calibration.json and calibration.png, next to the
export, show the scores at every stop threshold (Tables 5 and 6 of the paper).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated

import tyro

from experiments.cli import execute, read, typed
from experiments.options import OWN, Questions
from qrag_jax.config import RunConfig
from qrag_jax.config.retarget import only_tested, retest


@dataclass(frozen=True)
class Command:
    retriever: tyro.conf.Positional[Path]
    """Run directory, export or adapter of the retriever, on this machine; its limits are replaced."""
    questions: Annotated[Questions, tyro.conf.arg(name="")] = Questions()  # noqa: RUF009  (frozen)
    chunks: Annotated[int | None, OWN] = None
    """Chunks of a document."""
    episodes: int = 300
    """Validation questions."""
    budget: Annotated[int | None, OWN] = None
    """T: chunks picked."""
    beam: Annotated[int | None, OWN] = None
    """Paths kept at each step of a search; 1 is greedy."""
    seed: Annotated[int | None, OWN] = None
    """Seed of the questions and of their order."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code: 0 done, 64 bad input."""
    return execute(
        lambda: run(read(Command, argv, "experiments.calibrate", __doc__ or "")), typed(Command, {"--episodes": "--train.eval-episodes"})
    )


def run(command: Command) -> None:
    from qrag_jax.evaluate import plots
    from qrag_jax.evaluate.episodes import run_episodes
    from qrag_jax.evaluate.metrics import calibrate_threshold, stopping
    from qrag_jax.evaluate.refusal import find_refusal
    from qrag_jax.evaluate.sets import validation_set
    from qrag_jax.export.adapter import is_adapter, read_adapter, set_limits
    from qrag_jax.export.folder import find_export, is_export, read_export, write_export
    from qrag_jax.retrieve.retriever import Retriever
    from qrag_jax.rundir.files import write_json
    from qrag_jax.rundir.log import say

    folder = find_export(command.retriever)
    if not (is_export(folder) or is_adapter(folder)):
        raise ValueError(
            f"retriever = {command.retriever}: not an export on this machine, into which the threshold is written; make one first: "
            "qrag import NAME OUT"
        )
    export = read_adapter(folder) if is_adapter(folder) else read_export(folder)
    config = configuration(command, export.config)
    retriever = Retriever.from_pretrained(folder)
    questions = validation_set(config)
    records = [
        record
        for i, examples in enumerate(questions)
        for record in run_episodes(
            retriever, examples, config.eval.budget, beam=config.eval.beam, label=f"validation {i + 1}/{len(questions.groups)}"
        )
    ]
    picked, q, support = ([getattr(record, name) for record in records] for name in ("picked", "q", "support"))
    threshold = calibrate_threshold(picked, q, support)
    curve = stopping(picked, q, support)
    beside = folder.parent
    refusal = find_refusal(retriever, questions, beam=config.eval.beam)
    found = {"refusal": None if refusal is None else asdict(refusal), **asdict(curve)}
    write_json(beside / "calibration.json", {"schema": 1, "calibrated": threshold, "episodes": len(records), **found})
    plots.stopping(curve, threshold, beside / "calibration.png", f"{config.data.benchmark} {config.data.task}, validation questions")
    if is_adapter(folder):
        set_limits(folder, threshold, refusal)
    else:
        write_export(folder, replace(export, threshold=threshold, refusal=refusal))
    nearest = min(range(len(curve.threshold)), key=lambda i: abs(curve.threshold[i] - threshold))
    was = "none" if export.threshold is None else f"{export.threshold:.3f}"
    auc = "-" if curve.roc_auc is None else f"{curve.roc_auc:.3f}"
    say(
        f"{folder}: threshold {threshold:.3f} (was {was}); on {len(records)} validation questions Fact F1 {curve.fact_f1[nearest]:.3f}, "
        f"Fact EM {curve.fact_em[nearest]:.3f}, {curve.length[nearest]:.2f} picks; ROC AUC of the stop {auc}"
    )
    if refusal is None:
        say(f'{folder}: no limit of "not in the documents": the documents have too few chunks besides the supporting ones')
    else:
        say(f'{folder}: "not in the documents" if no pick reaches {refusal}')


def configuration(command: Command, old: RunConfig) -> RunConfig:
    """The validation questions of a retriever that was trained with ``old``. Raises ValueError on bad values."""
    new = command.questions.of(old, command.chunks, command.seed)
    config = only_tested(new, retest(new.eval, budget=command.budget, beam=command.beam))
    if config.eval.budget < 2:
        raise ValueError(f"budget = {config.eval.budget}: must be >= 2; with one pick there is nothing to stop")
    return replace(config, train=replace(config.train, eval_episodes=command.episodes))


if __name__ == "__main__":
    raise SystemExit(main())
