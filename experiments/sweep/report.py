"""What a sweep leaves: sweep.json, sweep.md, parallel.png, importance.png, and best.json, the preset of the best trial."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from experiments.sweep import plots
from experiments.sweep.spec import override, shown
from experiments.sweep.study import Row, Sweep
from qrag_jax.rundir.files import write_json, write_text

SCHEMA = 1


def write_summary(sweep: Sweep) -> dict[str, Any]:
    """Writes sweep.json, and best.json once there is a finished trial; returns the content of sweep.json."""
    rows = sweep.rows()
    best = best_of(rows)
    summary = {
        "schema": SCHEMA,
        "spec": sweep.spec.to_tree(),
        "best": best and best.name,
        "importances": sweep.importances(),
        "trials": [
            {
                "trial": row.name,
                "state": row.state,
                "values": row.values,
                "value": row.value,
                "fact_f1_stopped": row.stopped,
                "step": row.step,
                "updates": row.updates,
                "seconds": row.seconds,
                "reason": row.reason,
                "validations": [list(pair) for pair in row.validations],
            }
            for row in rows
        ],
    }
    write_json(sweep.run_dir / "sweep.json", summary)
    if best is not None:
        write_text(sweep.run_dir / "best.json", override(sweep.spec.base, best.values).to_json())
    return summary


def write_report(sweep: Sweep) -> list[Row]:
    """Writes all files; returns the trials. Pictures need a trial with a validation, and importances 8 finished ones."""
    importances = write_summary(sweep)["importances"]
    rows = sweep.rows()
    pictures = []
    if any(row.value is not None for row in rows):
        plots.parallel(rows, best_of(rows), sweep.spec, sweep.run_dir / "parallel.png")
        pictures.append("parallel")
    if importances is not None:
        count = sum(row.state == "complete" for row in rows)
        plots.importance(importances, count, sweep.run_dir / "importance.png")
        pictures.append("importance")
    write_text(sweep.run_dir / "sweep.md", markdown(sweep, rows, pictures))
    return rows


def best_of(rows: Sequence[Row]) -> Row | None:
    """The finished trial of highest objective, then of highest stopped Fact F1, then the first."""
    done = [row for row in rows if row.state == "complete"]
    return max(done, key=lambda row: (row.value or 0.0, row.stopped or 0.0), default=None)


def evaluation(sweep: Sweep, best: Row) -> str:
    """The command that evaluates the best trial on the test questions, without training it again."""
    module = sweep.spec.settings.benchmark.partition("+")[0].partition(":")[0]
    folder = sweep.run_dir
    return f"python -m experiments.{module} --preset {folder / 'best.json'} --run-dir {folder / 'trials' / best.name}"


def markdown(sweep: Sweep, rows: Sequence[Row], pictures: Sequence[str]) -> str:
    """sweep.md. A dash: not measured."""
    settings, best = sweep.spec.settings, best_of(rows)
    label = objective_label(settings.objective)
    names = [dimension.name for dimension in sweep.spec.space]
    ordered = sorted(rows, key=lambda row: (row.state != "complete", -(row.value or 0.0), -(row.stopped or 0.0)))
    counts = ", ".join(f"{n} {state}" for state in ("complete", "pruned", "failed", "running", "waiting") if (n := _count(rows, state)))
    table = [
        ["trial", *names, "state", label, "Fact F1, stopped", "at update", "updates", "minutes"],
        *(
            [
                *(row.name, *(shown(row.values[name]) for name in names), row.state, _score(row.value), _score(row.stopped)),
                *("-" if row.step is None else str(row.step), str(row.updates), f"{row.seconds / 60:.1f}"),
            ]
            for row in ordered
        ),
    ]
    parts = [
        f"# Sweep of {settings.benchmark} {settings.task}",
        f"Preset {settings.preset}, {sweep.spec.base.train.steps} updates a trial; {settings.method}, seed {settings.seed}; "
        f"{sweep.spec.trials} trials: {counts or 'none yet'}. {label} is that of {sweep.spec.base.train.eval_episodes} validation "
        "questions at the best validation of the run. Test questions were not asked.",
    ]
    if best is not None:
        found = ", ".join(f"`{name}` = {shown(value)}" for name, value in best.values.items())
        parts.append(f"Best: `{best.name}` with {found}; its settings are the preset `best.json`. On the test questions:")
        parts.append(f"    {evaluation(sweep, best)}")
    parts.append("\n".join(f"| {' | '.join(cells)} |" for cells in (table[0], ["---"] * len(table[0]), *table[1:])))
    parts += [f"![{name}]({name}.png)" for name in pictures]
    if failed := [row for row in rows if row.state == "failed"]:
        parts.append("## Failed")
        parts += [f"`{row.name}`:\n\n```\n{row.reason}\n```" for row in failed]
    return "\n\n".join(parts) + "\n"


def objective_label(objective: str) -> str:
    return {"fact_em": "Fact EM", "answer_em": "answer EM"}[objective]


def _count(rows: Sequence[Row], state: str) -> int:
    return sum(row.state == state for row in rows)


def _score(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
