"""The files of a sweep: sweep.json, sweep.md, parallel.png, importance.png, and best.json, the preset of the best trial."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, get_args

from experiments.checks import COUNT, NUMBER, TEXT, Check, check_fields, is_count, is_number, optional
from experiments.sweep import plots
from experiments.sweep.spec import Dimension, Spec, override, shown
from experiments.sweep.study import Row, State, Sweep
from qrag_jax.evaluate.metrics import wilson_interval
from qrag_jax.rundir.files import markdown_text, read_json, write_json, write_text

SCHEMA = 1
KEYS = {"name": "trial", "stopped": "fact_f1_stopped"} | {
    k: k for k in ("state", "values", "value", "step", "updates", "seconds", "reason")
}
"""Field of a Row -> key of a trial in sweep.json. The field ``validations``, a list of pairs, is handled apart."""
HEAD: dict[str, Check] = {
    "spec": (lambda value: isinstance(value, dict), "an object"),
    "importances": (
        lambda value: value is None or (isinstance(value, dict) and bool(value) and all(map(is_number, value.values()))),
        "an object of finite numbers, or null",
    ),
    "trials": (lambda value: isinstance(value, list), "a list"),
}
TRIAL: dict[str, Check] = {
    **{"trial": TEXT, "state": (lambda value: value in get_args(State), f"one of {', '.join(get_args(State))}")},
    **{"values": (lambda value: isinstance(value, dict), "an object"), "value": optional(NUMBER), "fact_f1_stopped": optional(NUMBER)},
    **{"step": optional(COUNT), "updates": COUNT, "seconds": NUMBER, "reason": optional(TEXT)},
    "validations": (
        lambda value: (
            isinstance(value, list)
            and all(isinstance(pair, list) and len(pair) == 2 and is_count(pair[0]) and is_number(pair[1]) for pair in value)
        ),
        "a list of pairs of a step and a finite score",
    ),
}


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
    """Writes all files; returns the trials. parallel.png needs a trial with a validation, importance.png needs 8 finished trials."""
    write_summary(sweep)
    rows = sweep.rows()
    pictures = drawings(sweep.run_dir)
    for path, draw in pictures.items():
        draw(path)
    write_text(sweep.run_dir / "sweep.md", markdown(sweep, rows, [path.stem for path in pictures]))
    return rows


def drawings(folder: Path) -> dict[Path, Callable[[Path], None]]:
    """The pictures of a folder's sweep.json: path -> the function that draws it there. Raises ValueError, naming the file, if it is bad."""
    path = folder / "sweep.json"
    tree = read_json(path)
    if not isinstance(tree, dict) or not is_count(tree.get("schema")) or tree["schema"] != SCHEMA:
        raise ValueError(f"{path}: must be an object with schema = {SCHEMA}")
    check_fields(tree, HEAD, f"{path}: top level")
    try:
        spec = Spec.from_tree(tree["spec"])
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    rows = [_read_trial(trial, spec, f"{path}: trials[{number}]") for number, trial in enumerate(tree["trials"])]
    found: dict[Path, Callable[[Path], None]] = {}
    if any(row.value is not None for row in rows):
        found[folder / "parallel.png"] = partial(plots.parallel, rows, best_of(rows), spec)
    if tree["importances"] is not None:
        found[folder / "importance.png"] = partial(plots.importance, tree["importances"], _count(rows, "complete"), spec)
    return found


def _read_trial(trial: Any, spec: Spec, where: str) -> Row:
    check_fields(trial, TRIAL, where)
    check_fields(trial["values"], {dimension.name: _place(dimension) for dimension in spec.space}, f"{where}.values")
    return Row(validations=tuple((step, value) for step, value in trial["validations"]), **{name: trial[key] for name, key in KEYS.items()})


def _place(dimension: Dimension) -> Check:
    """What a trial may have chosen for a field."""
    if dimension.values:
        return lambda value: value in dimension.values, "one of the spec's values"
    return lambda value: is_number(value) and dimension.low <= value <= dimension.high, f"in {dimension.low:g}..{dimension.high:g}"


def best_of(rows: Sequence[Row]) -> Row | None:
    """The finished trial with the highest objective; among equals, the highest stopped Fact F1, then the first."""
    done = [row for row in rows if row.state == "complete"]
    return max(done, key=lambda row: (row.value or 0.0, row.stopped or 0.0), default=None)


def evaluation(sweep: Sweep, best: Row) -> str:
    """The command that evaluates the best trial on the test questions, without further training."""
    module = sweep.spec.settings.benchmark.partition("+")[0].partition(":")[0]
    folder = sweep.run_dir
    return f"python -m experiments.{module} --preset {folder / 'best.json'} --run-dir {folder / 'trials' / best.name}"


def markdown(sweep: Sweep, rows: Sequence[Row], pictures: Sequence[str]) -> str:
    """The text of sweep.md. A dash means: not measured."""
    settings, best = sweep.spec.settings, best_of(rows)
    label = objective_label(settings.objective)
    names, questions = [dimension.name for dimension in sweep.spec.space], sweep.spec.base.train.eval_episodes
    ordered = sorted(rows, key=lambda row: (row.state != "complete", -(row.value or 0.0), -(row.stopped or 0.0)))
    table = [
        ["trial", *names, "state", label, "95 %", "Fact F1, stopped", "at update", "updates", "minutes"],
        *(
            [
                *(row.name, *(markdown_text(shown(row.values[name])) for name in names), row.state, _score(row.value)),
                *(interval(row.value, questions), _score(row.stopped)),
                *("-" if row.step is None else str(row.step), str(row.updates), f"{row.seconds / 60:.1f}"),
            ]
            for row in ordered
        ),
    ]
    parts = [
        f"# Sweep of {settings.benchmark} {settings.task}",
        f"Preset {settings.preset}, {sweep.spec.base.train.steps} updates per trial; {settings.method}, seed {settings.seed}; "
        f"{sweep.spec.trials} trials: {counts(rows) or 'none yet'}. {label} is the best validation score of the run, on "
        f"{questions} validation questions, 95 % its interval over these questions (Wilson). Trials whose intervals overlap may differ by "
        "chance, and the best of many owes a part of its score to luck. Test questions were not used.",
    ]
    if best is not None:
        found = ", ".join(f"`{name}` = {markdown_text(shown(value))}" for name, value in best.values.items())
        parts.append(f"Best: `{best.name}` with {found}; the preset `best.json` has its settings. To evaluate it on the test questions:")
        parts.append(f"    {evaluation(sweep, best)}")
    parts.append("\n".join(f"| {' | '.join(cells)} |" for cells in (table[0], ["---"] * len(table[0]), *table[1:])))
    parts += [f"![{name}]({name}.png)" for name in pictures]
    if failed := [row for row in rows if row.state == "failed"]:
        parts.append("## Failed")
        parts += [f"`{row.name}`: {markdown_text(row.reason)}" for row in failed]
    return "\n\n".join(parts) + "\n"


def counts(rows: Sequence[Row]) -> str:
    """How many trials are in which state."""
    return ", ".join(f"{n} {state}" for state in ("complete", "pruned", "failed", "running", "waiting") if (n := _count(rows, state)))


def standing(sweep: Sweep, rows: Sequence[Row]) -> str:
    """Where a sweep is: its trials by state, how many are left, and the best one so far."""
    settings, best = sweep.spec.settings, best_of(rows)
    left = sweep.spec.trials - sum(row.state in ("complete", "pruned", "failed") for row in rows)
    text = f"{sweep.spec.trials} trials, {settings.method}{f', pruned by {settings.pruner}' * settings.prune}"
    if not rows:
        return text
    text += f"; so far {counts(rows)}; {left} to finish"
    if best is None:
        return text
    known = interval(best.value, sweep.spec.base.train.eval_episodes)
    return f"{text}; best so far: {best.name}, {objective_label(settings.objective)} {_score(best.value)} (95 %: {known})"


def interval(value: float | None, questions: int) -> str:
    """The 95 % interval of a share of questions, for a table."""
    if value is None:
        return "-"
    low, high = wilson_interval(round(value * questions), questions)
    return f"{low:.3f}-{high:.3f}"


def objective_label(objective: str) -> str:
    return {"fact_em": "Fact EM", "answer_em": "answer EM"}[objective]


def _count(rows: Sequence[Row], state: str) -> int:
    return sum(row.state == state for row in rows)


def _score(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
