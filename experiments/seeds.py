"""Several seeds of one experiment: a run directory for each, and their mean and spread.

    RUN_DIR/seed-0/, seed-1/, ...   one ordinary run per seed, as without --seeds
    RUN_DIR/config.json             the settings that all runs share, with the first run's train.seed
    RUN_DIR/seeds.json              schema 1: the seeds whose runs have ended, and their validations (update, Fact EM), for curves.png
    RUN_DIR/results.json            schema 1: each row holds means; ``values`` has the value of each of ``seeds``, ``spread`` their spread
    RUN_DIR/results.md, comparison.md, curves.png, context.png

The spread is the sample standard deviation over seeds (divided by n - 1), and null for one seed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from experiments.checks import TEXT, check_fields, is_count, is_number, many, read_results
from experiments.paper.compare import markdown, write_comparison
from experiments.paper.plots import draw_context
from qrag_jax.config import RunConfig
from qrag_jax.config.watch import Watch
from qrag_jax.evaluate import plots
from qrag_jax.evaluate.results import SCHEMA, aligned
from qrag_jax.rundir.files import is_unfinished, read_json, write_json, write_text
from qrag_jax.rundir.log import RunLog, say

SAME = ("benchmark", "task", "split", "context_tokens")
"""Columns of results.json that say which rows of two runs belong together."""
NOT_AVERAGED = (*SAME, "chunks", "episodes", "budget", "ci95", "checkpoint_step")
"""All others are metrics."""
TITLES = {"seconds_per_episode": "s / episode"}
"""Titles in results.md of the metrics whose names are unclear."""
FOLDER, LOG = re.compile(r"seed-(0|[1-9]\d*)"), re.compile(r"seed-\d+\.log")
COMPARISON = "comparison.md"


@dataclass(frozen=True)
class Statistics:
    """For each metric: its value for each seed, their mean, and their sample standard deviation.

    All three are None if a seed has no value; the spread of a single seed is None, too.
    """

    values: dict[str, list[float] | None]
    mean: dict[str, float | None]
    spread: dict[str, float | None]


def statistics(rows: Sequence[Mapping[str, Any]], metrics: Sequence[str]) -> Statistics:
    """Statistics of the same row of results.json over several seeds. ``rows``: one per seed."""
    found: dict[str, list[Any]] = {name: [row.get(name) for row in rows] for name in metrics}
    values = {name: None if None in of_seeds else of_seeds for name, of_seeds in found.items()}
    return Statistics(
        values,
        {name: None if known is None else mean(known) for name, known in values.items()},
        {name: None if known is None or len(known) < 2 else stdev(known) for name, known in values.items()},
    )


def cell(value: float | None, spread: float | None = None) -> str:
    """``0.950 ± 0.010`` for a table; a dash for a value that was not measured."""
    if value is None:
        return "-"
    return f"{value:.3f}" if spread is None else f"{value:.3f} ± {spread:.3f}"


def with_seed(config: RunConfig, seed: int) -> RunConfig:
    """The same settings with another seed. Raises ValueError on a negative seed."""
    return replace(config, train=replace(config.train, seed=seed))


def check_seeds(config: RunConfig, seeds: Sequence[int]) -> None:
    """Raises ValueError unless there is at least one seed, all are different, and none is negative."""
    if not seeds or len(set(seeds)) != len(seeds):
        raise ValueError(f"seeds = {tuple(seeds)}: must be one or more different numbers")
    for seed in seeds:
        with_seed(config, seed)


def run(config: RunConfig, run_dir: Path, seeds: Sequence[int], watch: Watch = Watch()) -> None:  # noqa: B008  (frozen)
    """Trains, evaluates and exports with each seed, and reports on all seeds of the folder; called by all processes. ``watch``: each run.

    Runs that have ended are only read; a run that was stopped resumes. Raises what :func:`qrag_jax.train.training.run` raises, and
    ValueError, before training, if ``run_dir`` holds anything but runs with these settings.
    """
    import jax

    from qrag_jax.rundir.hosts import from_leader
    from qrag_jax.rundir.stop import stop_requests

    with stop_requests():
        from_leader(lambda: check_folder(config, run_dir, seeds))
        for number, seed in enumerate(seeds, 1):
            own, folder = with_seed(config, seed), run_dir / f"seed-{seed}"
            say(f"\n[{number}/{len(seeds)}] seed {seed}: {folder}")
            if from_leader(partial(has_ended, own, folder)):
                say("this run has already ended with these settings; it is not repeated")
            else:
                train_seed(own, folder, watch)
                jax.clear_caches()  # the runs share one process
            from_leader(lambda: write_seeds(config, run_dir))
        from_leader(lambda: tell(config, run_dir))


def has_ended(config: RunConfig, folder: Path) -> bool:
    """Whether the run of a seed has ended with exactly these settings. It then gets its comparison, if a kill has left that out."""
    rows = finished(config, folder)
    if rows is not None and not (folder / COMPARISON).exists():
        write_comparison(folder, rows, config, config)
    return rows is not None


def train_seed(config: RunConfig, folder: Path, watch: Watch) -> None:
    """Starts or resumes the run of a seed; called by all processes."""
    from qrag_jax.rundir.hosts import from_leader
    from qrag_jax.train import training

    from_leader(lambda: forget(folder))
    rows = training.run(config, folder, watch=watch)
    from_leader(lambda: write_comparison(folder, rows, config, config))


def check_folder(config: RunConfig, run_dir: Path, seeds: Sequence[int]) -> None:
    """Raises ValueError if the folder, or the folder of a seed, holds anything but runs with these settings."""
    from qrag_jax.train.training import SEEDS, WRITTEN, check_run_dir

    if run_dir.is_file():
        raise ValueError(f"{run_dir}: is a file; choose another --run-dir")
    if run_dir.exists() and not (run_dir / SEEDS).exists():
        if (run_dir / "config.json").exists():
            raise ValueError(f"{run_dir}: holds a run of one seed; leave out --seeds to resume it, or choose another --run-dir")
        ours = lambda path: FOLDER.fullmatch(path.name) or LOG.fullmatch(path.name) or is_unfinished(path) or path.name == WRITTEN
        if others := sorted(path.name for path in run_dir.iterdir() if not ours(path)):
            raise ValueError(f"{run_dir}: holds {others[0]}, which is not the run of a seed; choose another --run-dir")
    for seed in {*seeds, *seeds_in(run_dir)}:
        check_run_dir(with_seed(config, seed), run_dir / f"seed-{seed}")


def seeds_in(run_dir: Path) -> list[int]:
    """The seeds that have a folder, in order."""
    names = [path.name for path in run_dir.glob("seed-*")]
    return sorted(int(match[1]) for name in names if (match := FOLDER.fullmatch(name)))


def finished(config: RunConfig, run_dir: Path) -> list[dict[str, Any]] | None:
    """Rows of a run that has ended with exactly these settings; None if anything is left to do, including a new evaluation."""
    results = run_dir / "results.json"
    if not results.exists() or RunConfig.from_json((run_dir / "config.json").read_text(encoding="utf-8")) != config:
        return None
    return list(read_results(results))


def forget(run_dir: Path) -> None:
    """Removes the results of a run that will be tested with other settings. If it is killed, old results are not taken for new ones."""
    for name in ("results.json", COMPARISON):
        (run_dir / name).unlink(missing_ok=True)


def ended(config: RunConfig, run_dir: Path) -> dict[int, list[dict[str, Any]]]:
    """Seed -> rows, for the runs in the folder that have ended with these settings."""
    found = {seed: finished(with_seed(config, seed), run_dir / f"seed-{seed}") for seed in seeds_in(run_dir)}
    return {seed: rows for seed, rows in found.items() if rows is not None}


def mean_rows(runs: Mapping[int, Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """Rows of results.json, each the mean of the same row of several seeds.

    ``values`` holds the metrics of each seed in the order of ``seeds``, ``spread`` their sample standard deviation. ``ci95`` is null, since
    it is the interval over one run's questions. ``checkpoint_step`` is null if the seeds differ.
    """
    groups: dict[tuple[Any, ...], dict[int, Mapping[str, Any]]] = {}
    for seed, rows in runs.items():
        for row in rows:
            groups.setdefault(tuple(row[name] for name in SAME), {})[seed] = row
    found = []
    for group in groups.values():
        rows = list(group.values())
        known = statistics(rows, [name for name in rows[0] if name not in NOT_AVERAGED])
        steps = [row["checkpoint_step"] for row in rows]
        found.append(
            {
                **rows[0],
                **known.mean,
                "chunks": max(row["chunks"] for row in rows),
                "ci95": None,
                "checkpoint_step": steps[0] if len(set(steps)) == 1 else None,
                "seeds": list(group),
                "values": {**known.values, "checkpoint_step": steps},
                "spread": known.spread,
            }
        )
    return found


def write_seeds(config: RunConfig, run_dir: Path) -> None:
    """Writes the files about all seeds of the folder whose runs have ended."""
    from qrag_jax.train.training import SEEDS

    runs = ended(config, run_dir)
    rows = mean_rows(runs)
    validations = [RunLog(run_dir / f"seed-{seed}").validations("fact_em") for seed in runs]
    curves = [[[record["step"], record["fact_em"]] for record in of_seed] for of_seed in validations]
    trained_on = f"{config.data.benchmark} {config.data.task}"
    write_json(run_dir / SEEDS, {"schema": SCHEMA, "seeds": list(runs), "trained_on": trained_on, "validations": curves})
    write_text(run_dir / "config.json", with_seed(config, next(iter(runs))).to_json())
    write_json(run_dir / "results.json", {"schema": SCHEMA, "seeds": list(runs), "rows": rows})
    write_text(run_dir / "results.md", table(rows) + "\n")
    for path, draw_there in drawings(run_dir).items():
        draw_there(path)
    draw_context(rows, run_dir / "context.png")


def drawings(run_dir: Path) -> dict[Path, Callable[[Path], None]]:
    """The picture of a seeds.json: path -> the function that draws it there. Raises ValueError, naming the field, on a bad file."""
    from qrag_jax.train.training import SEEDS

    tree, where = read_json(run_dir / SEEDS), str(run_dir / SEEDS)
    check_fields(tree, {"schema": (lambda value: value == SCHEMA, f"{SCHEMA}")}, where)
    if "validations" not in tree:  # of a version that did not keep them
        return {}
    check_fields(tree, {"trained_on": TEXT, "validations": many(many((_is_point, "an update and its score")))}, where)
    return {run_dir / "curves.png": partial(draw, tree["validations"], title=f"{tree['trained_on']}, validation questions")}


def _is_point(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and is_count(value[0]) and is_number(value[1])


def tell(config: RunConfig, run_dir: Path) -> None:
    """Prints the report, and says which seeds of the folder are not in it."""
    results = read_json(run_dir / "results.json")
    say(f"\n{short_table(results['rows'])}")
    write_comparison(run_dir, results["rows"], config, config)
    if left := [str(seed) for seed in seeds_in(run_dir) if seed not in results["seeds"]]:
        say(f"\nnot included: seeds {' '.join(left)}, which have not ended with these settings; add them with --seeds {' '.join(left)}")
    say(f"\nresults are in {run_dir}")


def short_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """What was measured, for a terminal: mean ± spread of the columns that matter most, and Fact EM of each seed."""
    seeds = _seeds(rows)
    answered = any(row["answer_em"] is not None for row in rows)
    shown = {"fact_em": "Fact EM", "fact_f1_stopped": "Fact F1 stopped", **({"answer_em": "answer EM"} if answered else {})}
    heads = ["task", "tokens", "questions", *shown.values(), *(f"Fact EM, seed {seed}" for seed in seeds)]
    lines = [
        [
            _task(row, rows),
            _tokens(row),
            f"{row['episodes']:,}",
            *(cell(row[name], row["spread"][name]) for name in shown),
            *_each(row, seeds),
        ]
        for row in rows
    ]
    return aligned(heads, lines)


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The text of results.md: the means with their spread, and Fact EM of each seed."""
    seeds = _seeds(rows)
    metrics = dict.fromkeys(name for row in rows for name in row["spread"])
    measured = [name for name in metrics if any(row[name] is not None for row in rows)]
    titles = [TITLES.get(name, name.replace("_", " ").replace("fact em", "Fact EM").replace("fact f1", "Fact F1")) for name in measured]
    names = [[_task(row, rows), row["split"], _tokens(row)] for row in rows]
    means = [
        [
            *(*named, f"{row['chunks']:,}", f"{row['episodes']:,}", str(row["budget"]), str(len(row["seeds"]))),
            *(cell(row[name], row["spread"][name]) for name in measured),
        ]
        for named, row in zip(names, rows, strict=True)
    ]
    heads = ("task", "split", "tokens")
    counted = f"{len(seeds)} seed{'s' * (len(seeds) > 1)}"
    return "\n\n".join(
        (
            f"Mean ± spread (sample standard deviation) over {counted}:",
            markdown((*heads, "chunks", "episodes", "budget", "seeds", *titles), means),
            "Fact EM of each seed:",
            markdown(
                (*heads, *(f"seed {seed}" for seed in seeds)),
                [[*named, *_each(row, seeds)] for named, row in zip(names, rows, strict=True)],
            ),
        )
    )


def _seeds(rows: Sequence[Mapping[str, Any]]) -> list[int]:
    return list(dict.fromkeys(seed for row in rows for seed in row["seeds"]))


def _task(row: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    """The task of a row, with its benchmark if the rows have several."""
    return str(row["task"]) if len({one["benchmark"] for one in rows}) == 1 else f"{row['benchmark']} {row['task']}"


def _tokens(row: Mapping[str, Any]) -> str:
    return "-" if row["context_tokens"] is None else f"{row['context_tokens']:,}"


def _each(row: Mapping[str, Any], seeds: Sequence[int]) -> list[str]:
    """Fact EM of each of ``seeds``."""
    known = dict(zip(row["seeds"], row["values"]["fact_em"], strict=True))
    return [cell(known.get(seed)) for seed in seeds]


def draw(validations: Sequence[Sequence[tuple[int, float]]], path: Path, title: str) -> None:
    """Draws, as a PNG, validation Fact EM against updates: a thin line for each seed, and the mean with its spread.

    ``validations``: update and Fact EM, for each seed. The mean is drawn at the updates at which every seed was validated.
    """
    figure, axes = plots.subplots(1)
    axis = axes[0, 0]
    scores = [dict(of_seed) for of_seed in validations]
    for number, of_seed in enumerate(scores):
        axis.plot(list(of_seed), list(of_seed.values()), color=plots.BLACK, linewidth=0.8, alpha=0.5, label="" if number else "each seed")
    steps = sorted(set.intersection(*map(set, scores))) if scores else []
    known = [statistics([{"fact_em": of_seed[step]} for of_seed in scores], ("fact_em",)) for step in steps]
    middle = [found.mean["fact_em"] or 0.0 for found in known]
    apart = [found.spread["fact_em"] or 0.0 for found in known]
    axis.errorbar(steps, middle, yerr=apart, color=plots.BLUE, marker="o", capsize=3, label=f"mean ± spread, n = {len(scores)}")
    axis.set(xlabel="updates", ylabel="Fact EM (share of questions)", ylim=(-0.02, 1.02), xlim=(0, None), title=title)
    axis.grid(alpha=0.3)
    plots.legend(axis)
    plots.save(figure, path)
