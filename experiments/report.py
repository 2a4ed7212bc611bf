"""Writes docs/results/runs.md, and the pictures in docs/results, from the files of every committed run.

    python -m experiments.report            # writes runs.md and every committed picture again
    python -m experiments.report --check    # changes nothing; exits with 1 if the page does not match the files

Every FOLDER/results.json gives rows. A config.json in the same folder gives the settings of the run, a manifest.json the commit.
An ablations.json, a tables.json or an open.json adds further tables. A dash means that a figure was not measured.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.ablations.report import read_ablations, table
from experiments.checks import read_results
from experiments.cli import execute, read, typed
from experiments.open.report import read_open, summary
from experiments.paper.compare import METHOD, Figure, by_length, expected, markdown
from experiments.paper.plots import Line, PaperLine, draw
from experiments.pictures import redraw, without_data
from experiments.seeds import cell
from experiments.tables import read_tables, tables_text
from qrag_jax.config import RunConfig, benchmarks
from qrag_jax.config.lengths import format_tokens
from qrag_jax.rundir.ending import DONE
from qrag_jax.rundir.files import markdown_text, read_json, write_text
from qrag_jax.rundir.log import say

PAGE = "runs.md"
EXIT_STALE = 1
INTRODUCTION = """# Every committed run

`python -m experiments.report` writes this page from the files in each folder. Edit those files, not this page.
The [summary](README.md) says what the figures mean, and the pages of the benchmarks give the commands.
A dash means: not measured, or not known. `checkpoint` is the update whose parameters were tested, the best one on validation questions.

Where a folder has a `config.json`, `--preset docs/results/FOLDER` uses the same settings again."""


@dataclass(frozen=True)
class Command:
    results: Path = Path("docs/results")
    """Folder with one folder per run; runs.md and the pictures are written there."""
    check: bool = False
    """Only check whether runs.md is up to date."""


@dataclass(frozen=True)
class Run:
    """A committed run; ``config`` and ``commit`` are None if they are not in its folder."""

    name: str
    rows: tuple[dict[str, Any], ...]
    config: RunConfig | None
    commit: str | None


Cell = Callable[[Run, dict[str, Any]], str | None]
"""(run, row) -> the text of a column; None is shown as a dash."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code: 0 done, 1 the page is not up to date, 64 bad files."""
    return execute(lambda: run(read(Command, argv, "experiments.report", __doc__ or "")), typed(Command))


def run(command: Command) -> int:
    """Writes the page and the pictures, or only checks them; returns the exit code."""
    runs = read_runs(command.results)
    path = command.results / PAGE
    new = page(runs, read_more(command.results))
    if command.check:
        if astray := without_data(command.results):
            say(f"{astray[0]}: the data of this picture is not in its folder; commit the data or delete the picture")
            return EXIT_STALE
        missing = [name for name in (PAGE, *_pictures(runs)) if not (command.results / name).is_file()]
        if not missing and path.read_text(encoding="utf-8") == new:
            return DONE
        what = f"{command.results / missing[0]} is missing" if missing else f"{path} does not match the committed files"
        say(f"{what}; run python -m experiments.report")
        return EXIT_STALE
    for name, benchmark in _pictures(runs).items():
        draw(command.results / name, title(benchmark), _lines(runs, benchmark), _paper(benchmark))
    drawn = redraw(command.results)
    write_text(path, new)
    say(f"{path}: {sum(len(run.rows) for run in runs)} rows of {len(runs)} runs; {drawn} pictures in their folders redrawn")
    return DONE


def read_runs(folder: Path) -> list[Run]:
    """The runs of a folder, by name. Raises ValueError, naming file and row, on a bad results.json or config.json."""
    paths = sorted(folder.glob("*/results.json"))
    if not paths:
        raise ValueError(f"{folder}: no */results.json; give the folder that holds the committed runs (--results)")
    runs = []
    for path in paths:
        config, manifest = path.with_name("config.json"), path.with_name("manifest.json")
        try:
            settings = RunConfig.from_json(config.read_text(encoding="utf-8")) if config.is_file() else None
        except ValueError as error:
            raise ValueError(f"{config}: {error}") from error
        about = read_json(manifest) if manifest.is_file() else {}
        commit = about.get("git") if isinstance(about, dict) else None
        if not isinstance(commit, str | None):
            raise ValueError(f"{manifest}: git = {str(commit)[:60]!r}: must be a commit")
        runs.append(Run(path.parent.name, read_results(path), settings, commit))
    return runs


def read_more(folder: Path) -> list[str]:
    """The tables and pictures of committed ablations.json, tables.json and open.json, each under a heading that names its folder."""
    ablations = [(path, table(read_ablations(path))) for path in sorted(folder.glob("*/ablations.json"))]
    tables = [(path, tables_text(read_tables(path))) for path in sorted(folder.glob("*/tables.json"))]
    opened = [(path, summary(read_open(path))) for path in sorted(folder.glob("*/open.json"))]
    found = []
    for path, text in [*ablations, *tables, *opened]:
        folder = path.parent
        pictures = [f"![{folder.name}: {png.stem}]({folder.name}/{png.name})" for png in sorted(folder.glob("*.png"))]
        found.append("\n\n".join([f"## [{folder.name}]({folder.name})", text, *pictures]))
    return found


def page(runs: Sequence[Run], more: Sequence[str] = ()) -> str:
    """The text of runs.md. ``more``: the result of :func:`read_more`."""
    parts = [INTRODUCTION]
    for benchmark in sorted({row["benchmark"] for run in runs for row in run.rows}):
        name = title(benchmark)
        parts += [f"## {name}", f"### {name}: settings", _settings(runs, benchmark), f"### {name}: results", _results(runs, benchmark)]
        parts += [
            f"![Fact EM against context length, every run of {benchmark}]({picture})"
            for picture, of in _pictures(runs).items()
            if of == benchmark
        ]
        if paper := _paper_table(runs, benchmark):
            parts += [f"### {name}: the paper's figures for Q-RAG", paper]
    return "\n\n".join([*parts, *more]) + "\n"


def _settings(runs: Sequence[Run], benchmark: str) -> str:
    """One line per run: the settings of its training and search, from config.json."""
    found = [(run, run.rows[0]) for run in runs if any(row["benchmark"] == benchmark for row in run.rows)]
    found.sort(key=lambda both: (both[0].config.data.task if both[0].config else "", both[0].name))

    def of(cell: Callable[[RunConfig], object]) -> Cell:
        return lambda run, row: markdown_text(cell(run.config)) if run.config else None

    seed = of(lambda c: c.train.seed)
    columns: dict[str, Cell] = {
        "run": lambda run, row: f"[{run.name}]({run.name}{'/config.json' if run.config else ''})",
        "trained on": of(lambda c: f"{c.data.benchmark} {c.data.task}"),
        "embedder": of(lambda c: c.model.embedder),
        "chunks": of(lambda c: c.data.chunks),
        "T": of(lambda c: c.rl.budget),
        "gamma": of(lambda c: c.rl.gamma),
        "reward": of(lambda c: c.rl.reward),
        "updates": of(lambda c: f"{c.train.steps:,}"),
        "episodes per update": of(lambda c: c.optim.batch),
        "learning rate": of(lambda c: f"{c.optim.learning_rate:g}"),
        "seed": lambda run, row: " ".join(map(str, row["seeds"])) if "seeds" in row else seed(run, row),
        "test data": of(lambda c: "generated" if c.data.data_dir is None else "files"),
    }
    sometimes: dict[str, Cell] = {
        "beam": lambda run, row: str(run.config.eval.beam) if run.config and run.config.eval.beam > 1 else None,
        "reader": lambda run, row: markdown_text(run.config.eval.reader) if run.config and row["answer_em"] is not None else None,
        "commit": lambda run, row: run.commit and markdown_text(run.commit[:8]),
    }
    return _table(columns, sometimes, found)


def _results(runs: Sequence[Run], benchmark: str) -> str:
    """One line per row of results.json."""
    found = [(run, row) for run in runs for row in run.rows if row["benchmark"] == benchmark]
    found.sort(key=lambda both: (both[1]["task"], both[0].name, both[1].get("method") or "", both[1]["context_tokens"] or 0))
    columns: dict[str, Cell] = {
        "run": lambda run, row: f"[{run.name}]({run.name})",
        "task": lambda run, row: row["task"],
        "checkpoint": lambda run, row: None if row["checkpoint_step"] is None else f"{row['checkpoint_step']:,}",
        "tokens": lambda run, row: row["context_tokens"] and f"{row['context_tokens']:,}",
        "chunks": lambda run, row: f"{row['chunks']:,}",
        "questions": lambda run, row: f"{row['episodes']:,}",
        "picks": lambda run, row: str(row["budget"]),
        "Fact EM": lambda run, row: _score(row, "fact_em"),
        "95 %": lambda run, row: row["ci95"] and "-".join(f"{x:.3f}" for x in row["ci95"]),
        "Fact F1": lambda run, row: _score(row, "fact_f1"),
        "Fact F1, stopped": lambda run, row: _score(row, "fact_f1_stopped"),
    }
    sometimes: dict[str, Cell] = {
        "split": lambda run, row: row["split"] and markdown_text(row["split"]) if row["split"] != "test" else None,
        "Fact EM, stopped": lambda run, row: _score(row, "fact_em_stopped"),
        "method": lambda run, row: row.get("method") and markdown_text(row["method"]),
        "answer EM": lambda run, row: _score(row, "answer_em"),
        "answer F1": lambda run, row: _score(row, "answer_f1"),
    }
    return _table(columns, sometimes, found)


def _table(always: Mapping[str, Cell], sometimes: Mapping[str, Cell], found: Sequence[tuple[Run, dict[str, Any]]]) -> str:
    """A table with the columns ``always``, and with those columns of ``sometimes`` that have a value in some row."""
    columns = {**always, **{name: cell for name, cell in sometimes.items() if any(cell(*both) for both in found)}}
    return markdown(list(columns), [[cell(*both) or "-" for cell in columns.values()] for both in found])


def _paper_table(runs: Sequence[Run], benchmark: str) -> str | None:
    """The paper's figures for Q-RAG on the tasks that were run, one column per length; None if it has none."""
    known = expected(benchmark)
    tasks = {row["task"] for run in runs for row in run.rows if row["benchmark"] == benchmark}
    figures = [figure for figure in known.figures if figure.method == METHOD and figure.task in tasks] if known else []
    if not figures:
        return None
    groups: dict[tuple[str, ...], dict[int, Figure]] = {}
    for f in figures:
        kind = (f.task, f.metric, str(f.budget or "-"), f.embedder or "-", f.trained_on or "-")
        groups.setdefault((*kind, f.place, f.note or "-"), {})[f.context_tokens or 0] = f
    lengths = sorted({length for group in groups.values() for length in group})
    lines = [
        [*kind, *(f"{group[length].value:.3f}" if length in group else "-" for length in lengths), place, note]
        for (*kind, place, note), group in groups.items()
    ]
    heads = [format_tokens(length).upper() if length else "no length given" for length in lengths]
    return markdown(["task", "metric", "picks", "embedder", "trained on", *heads, "where", "note"], lines)


def title(benchmark: str) -> str:
    """The title of a benchmark; its name if this version does not know it."""
    known = benchmarks.BENCHMARKS.get(benchmark)
    return benchmark if known is None else known.title


def _score(row: dict[str, Any], name: str) -> str | None:
    """A figure, with its spread if it is a mean over seeds; None if it was not measured."""
    return None if row.get(name) is None else cell(row[name], row.get("spread", {}).get(name))


def _pictures(runs: Sequence[Run]) -> dict[str, str]:
    """File name -> benchmark, for the benchmarks with rows at several context lengths."""
    lengths: dict[str, set[int]] = {}
    for run in runs:
        for row in run.rows:
            lengths.setdefault(row["benchmark"], set()).update({row["context_tokens"]} - {None})
    return {f"{benchmark}.png": benchmark for benchmark in sorted(lengths) if len(lengths[benchmark]) > 1}


def _lines(runs: Sequence[Run], benchmark: str) -> list[Line]:
    """One line per run, task and method: its test rows by context length."""
    lines: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for run in runs:
        for row in run.rows:
            if row["benchmark"] == benchmark and row["context_tokens"] is not None and row["split"] == "test":
                name = run.name.removeprefix(f"{benchmark}-") + (f", {row['method']}" if row.get("method") else "")
                lines.setdefault((name, row["task"]), []).append(row)
    return [Line(name, task, tuple(sorted(rows, key=lambda row: row["context_tokens"]))) for (name, task), rows in lines.items()]


def _paper(benchmark: str) -> list[PaperLine]:
    """Q-RAG's Fact F1 and answer accuracy in the paper, for each task by context length."""
    figures, lines = by_length(benchmark), []
    for metric, column, name in (("fact_f1", "fact_em", "paper: Fact F1"), ("answer_accuracy", "answer_em", "paper: answer accuracy")):
        lines += [PaperLine(name, task, column, figures[task, of]) for task, of in sorted(figures) if of == metric]
    return lines


if __name__ == "__main__":
    raise SystemExit(main())
