"""Sets the stop threshold of a trained retriever: the Q below which a search ends, of highest Fact F1 on validation questions.

    python -m experiments.calibrate runs/babilong-qa2-tiny
    python -m experiments.calibrate runs/babilong-qa2-tiny --beam 4 --chunks 160
    python -m experiments.calibrate EXPORT --benchmark own --data-dir questions.jsonl

A training run has done this already, greedily and in documents as long as its own. The threshold is written into the export; what every
threshold would have given is in calibration.json and calibration.png beside it (Tables 5 and 6 of the paper).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import tyro

from experiments.cli import execute, read


@dataclass(frozen=True)
class Command:
    retriever: tyro.conf.Positional[Path]
    """Run directory or export of the retriever; its threshold is replaced."""
    benchmark: str | None = None
    """Benchmark; none: the one it was trained on."""
    task: str | None = None
    """Task; none: the one it was trained on."""
    data_dir: str | None = None
    """Folder with the benchmark's files; none: what it was trained on."""
    chunks: int | None = None
    """Chunks of a document; none: as in training."""
    episodes: int = 300
    """Validation questions."""
    budget: int | None = None
    """T: chunks picked; none: as in its evaluation."""
    beam: int = 1
    """Paths kept at each step of a search."""
    seed: int = 0


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code: 0 done, 64 bad input."""
    return execute(lambda: run(read(Command, argv, "experiments.calibrate", __doc__ or "")))


def run(command: Command) -> None:
    from qrag_jax.evaluate import plots
    from qrag_jax.evaluate.episodes import run_episodes
    from qrag_jax.evaluate.metrics import calibrate_threshold, stopping
    from qrag_jax.evaluate.sets import validation_set
    from qrag_jax.export.folder import find_export, read_export, write_export
    from qrag_jax.retrieve.retriever import Retriever
    from qrag_jax.rundir.files import write_json
    from qrag_jax.rundir.log import say

    folder = find_export(command.retriever)
    export = read_export(folder)
    old = export.config
    config = replace(
        old,
        data=replace(
            old.data,
            benchmark=command.benchmark or old.data.benchmark,
            task=command.task or old.data.task,
            data_dir=command.data_dir or old.data.data_dir,
            chunks=command.chunks or old.data.chunks,
        ),
        train=replace(old.train, seed=command.seed, eval_episodes=command.episodes, curriculum=()),
        eval=replace(old.eval, budget=command.budget or old.eval.budget, beam=command.beam),
    )
    if config.eval.budget < 2:
        raise ValueError(f"budget = {config.eval.budget}: must be >= 2; with one pick there is nothing to stop")
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
    write_json(beside / "calibration.json", {"schema": 1, "calibrated": threshold, "episodes": len(records), **asdict(curve)})
    plots.stopping(curve, threshold, beside / "calibration.png", f"{config.data.benchmark} {config.data.task}, validation questions")
    write_export(folder, replace(export, threshold=threshold))
    nearest = min(range(len(curve.threshold)), key=lambda i: abs(curve.threshold[i] - threshold))
    was = "none" if export.threshold is None else f"{export.threshold:.3f}"
    auc = "-" if curve.roc_auc is None else f"{curve.roc_auc:.3f}"
    say(
        f"{folder}: threshold {threshold:.3f} (was {was}); on {len(records)} validation questions Fact F1 {curve.fact_f1[nearest]:.3f}, "
        f"Fact EM {curve.fact_em[nearest]:.3f}, {curve.length[nearest]:.2f} picks; ROC AUC of the stop {auc}"
    )


if __name__ == "__main__":
    raise SystemExit(main())
