"""Builds the tables and pictures of docs/results from the results.json files there.

    python -m experiments.report            # rewrites the generated section of README.md, and every committed picture
    python -m experiments.report --check    # changes nothing; fails when the section is not what the files give

Only what stands between the two marks of README.md is generated. Every RUN/results.json is a row source; a config.json beside it says what
the run was, a manifest.json with what it was made.
An ablations.json or a tables.json gives its own tables below. A figure that was not measured is a dash.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.ablations.report import read_ablations, table
from experiments.cli import EXIT_BAD_CONFIGURATION, read
from experiments.paper.compare import METHOD, by_length, expected, markdown
from experiments.paper.plots import Line, PaperLine, draw
from experiments.pictures import redraw, without_data
from experiments.seeds import cell
from experiments.tables import read_tables, tables_text
from qrag_jax.config import RunConfig, benchmarks
from qrag_jax.rundir.files import read_json, write_text
from qrag_jax.rundir.log import say

SCHEMA = 1
BEGIN, END = "<!-- report:begin -->", "<!-- report:end -->"
EXIT_STALE = 1
NEEDED = (
    *("benchmark", "task", "split", "context_tokens", "chunks", "episodes", "budget", "fact_em", "fact_f1", "fact_f1_stopped"),
    *("stop_threshold", "answer_em", "answer_f1", "ci95", "seconds_per_episode", "checkpoint_step"),
)
"""Of a row of results.json; a baseline's has ``method`` as well, newer ones fact_em_stopped, means over seeds ``seeds`` and ``spread``."""


@dataclass(frozen=True)
class Command:
    results: Path = Path("docs/results")
    """Folder with README.md and one folder for each run."""
    check: bool = False
    """Only say whether the generated section is up to date."""


@dataclass(frozen=True)
class Run:
    """A committed run; ``config`` and ``commit`` are None where its folder does not have them."""

    name: str
    rows: tuple[dict[str, Any], ...]
    config: RunConfig | None
    commit: str | None


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code: 0 done, 1 the section is not up to date, 64 bad files."""
    try:
        command = read(Command, argv, "experiments.report", __doc__ or "")
        runs = read_runs(command.results)
        readme = command.results / "README.md"
        text = _readme(readme)
        new = replaced(text, section(runs, read_more(command.results)), str(readme))
        if command.check:
            missing = [name for name in _pictures(runs) if not (command.results / name).is_file()]
            if astray := without_data(command.results):
                say(f"{astray[0]}: the data of this picture is not beside it; commit the data or delete the picture")
                return EXIT_STALE
            if new == text and not missing:
                return 0
            what = f"{missing[0]} is missing" if missing else f"{readme} is not what the results.json files give"
            say(f"{what}; run python -m experiments.report")
            return EXIT_STALE
        for name, benchmark in _pictures(runs).items():
            draw(command.results / name, title(benchmark), _lines(runs, benchmark), _paper(benchmark))
        drawn = redraw(command.results)
        write_text(readme, new)
        say(f"{readme}: {sum(len(run.rows) for run in runs)} rows of {len(runs)} runs, {drawn} pictures of their folders redrawn")
    except ValueError as error:
        sys.stderr.write(f"error: {error}\n")
        return EXIT_BAD_CONFIGURATION
    return 0


def read_runs(folder: Path) -> list[Run]:
    """The runs of a folder, by name. Raises ValueError, naming file and row, on what is no results.json or config.json."""
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
        commit = read_json(manifest).get("git") if manifest.is_file() else None
        runs.append(Run(path.parent.name, read_results(path), settings, commit))
    return runs


def read_results(path: Path) -> tuple[dict[str, Any], ...]:
    """Rows of a results.json. Raises ValueError on another schema, no rows, and rows without a column."""
    tree = read_json(path)
    if not isinstance(tree, dict) or tree.get("schema") != SCHEMA or not isinstance(tree.get("rows"), list) or not tree["rows"]:
        raise ValueError(f"{path}: must be an object with schema = {SCHEMA} and one or more rows")
    for number, row in enumerate(tree["rows"], 1):
        if not isinstance(row, dict) or (missing := [name for name in NEEDED if name not in row]):
            raise ValueError(f"{path}: row {number}: " + (f"no column {missing[0]!r}" if isinstance(row, dict) else "must be an object"))
        for name in ("fact_em", "fact_f1", "fact_em_stopped", "fact_f1_stopped", "answer_em", "answer_f1"):
            value = row.get(name)
            if value is not None and not (type(value) in (int, float) and 0 <= value <= 1):
                raise ValueError(f"{path}: row {number}: {name} = {value!r}: must be in [0, 1], or null where it was not measured")
    return tuple(tree["rows"])


def read_more(folder: Path) -> list[str]:
    """The tables and pictures of committed ablations.json and tables.json, each under a heading that names its folder."""
    ablations = [(path, table(read_ablations(path))) for path in sorted(folder.glob("*/ablations.json"))]
    tables = [(path, tables_text(read_tables(path))) for path in sorted(folder.glob("*/tables.json"))]
    found = []
    for path, text in [*ablations, *tables]:
        folder = path.parent
        pictures = [f"![{folder.name}: {png.stem}]({folder.name}/{png.name})" for png in sorted(folder.glob("*.png"))]
        found.append("\n\n".join([f"### [{folder.name}]({folder.name})", text, *pictures]))
    return found


def section(runs: Sequence[Run], more: Sequence[str] = ()) -> str:
    """The generated section, without its marks. ``more``: of :func:`read_more`."""
    parts = ["Made by `python -m experiments.report` from the files of each folder. A dash: not measured, or not known."]
    for benchmark in sorted({row["benchmark"] for run in runs for row in run.rows}):
        parts += [f"### {title(benchmark)}", _runs_table(runs, benchmark)]
        parts += [
            f"![Fact EM against context length, every run of {benchmark}]({name})"
            for name, of in _pictures(runs).items()
            if of == benchmark
        ]
        if paper := _paper_table(runs, benchmark):
            parts += ["The paper on these tasks:", paper]
    return "\n\n".join([*parts, *more])


def replaced(text: str, new: str, where: str) -> str:
    """``text`` with ``new`` between the marks. Raises ValueError unless each mark stands there once, in order."""
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise ValueError(f"{where}: must hold {BEGIN} and, after it, {END}, each once; the generated section goes between them")
    return f"{text.partition(BEGIN)[0]}{BEGIN}\n{new}\n{END}{text.partition(END)[2]}"


def _readme(path: Path) -> str:
    if not path.is_file():
        raise ValueError(f"{path}: no such file; write one with {BEGIN} and {END} where the generated section goes")
    return path.read_text(encoding="utf-8")


def _runs_table(runs: Sequence[Run], benchmark: str) -> str:
    found = [(run, row) for run in runs for row in run.rows if row["benchmark"] == benchmark]
    found.sort(key=lambda both: (both[1]["task"], both[0].name, both[1].get("method") or "", both[1]["context_tokens"] or 0))
    # Column -> cell of a run's row; those of the second part only where some row has one.
    always = {
        "run": lambda run, row: f"[{run.name}]({run.name})",
        "task": lambda run, row: row["task"],
        "embedder": lambda run, row: run.config and run.config.model.embedder,
        "updates": lambda run, row: run.config and row["checkpoint_step"] is not None and f"{row['checkpoint_step']:,}",
        "data": lambda run, row: run.config and ("generated" if run.config.data.data_dir is None else "files"),
        "tokens": lambda run, row: row["context_tokens"] and f"{row['context_tokens']:,}",
        "chunks": lambda run, row: f"{row['chunks']:,}",
        "questions": lambda run, row: f"{row['episodes']:,}",
        "T": lambda run, row: str(row["budget"]),
        "Fact EM": lambda run, row: _score(row, "fact_em"),
        "95 %": lambda run, row: row["ci95"] and "-".join(f"{x:.3f}" for x in row["ci95"]),
        "Fact F1": lambda run, row: _score(row, "fact_f1"),
        "Fact F1, stopped": lambda run, row: _score(row, "fact_f1_stopped"),
    }
    sometimes = {
        "seeds": lambda run, row: str(len(row["seeds"])) if "seeds" in row else None,
        "split": lambda run, row: row["split"] if row["split"] != "test" else None,
        "Fact EM, stopped": lambda run, row: _score(row, "fact_em_stopped"),
        "method": lambda run, row: row.get("method"),
        "beam": lambda run, row: str(run.config.eval.beam) if run.config and run.config.eval.beam > 1 else None,
        "answer EM": lambda run, row: _score(row, "answer_em"),
        "answer F1": lambda run, row: _score(row, "answer_f1"),
        "reader": lambda run, row: run.config.eval.reader if run.config and row["answer_em"] is not None else None,
        "commit": lambda run, row: run.commit and run.commit[:8],
    }
    columns = always | {name: cell for name, cell in sometimes.items() if any(cell(*both) for both in found)}
    return markdown(list(columns), [[cell(*both) or "-" for cell in columns.values()] for both in found])


def _paper_table(runs: Sequence[Run], benchmark: str) -> str | None:
    """What the paper's own method reaches on the tasks that were run; None where it has no figures."""
    known = expected(benchmark)
    tasks = {row["task"] for run in runs for row in run.rows if row["benchmark"] == benchmark}
    figures = [figure for figure in known.figures if figure.method == METHOD and figure.task in tasks] if known else []
    if not figures:
        return None
    lines = [
        [f.task, f"{f.context_tokens:,}" if f.context_tokens else "-", f.metric, f"{f.value:.3f}", f.place, f.note or "-"] for f in figures
    ]
    return markdown(["task", "tokens", "metric", "value", "where", "note"], lines)


def title(benchmark: str) -> str:
    """Of a benchmark of results.json, which may be one that this version does not know."""
    known = benchmarks.BENCHMARKS.get(benchmark)
    return benchmark if known is None else known.title


def _score(row: dict[str, Any], name: str) -> str | None:
    """A figure, of a mean over seeds with its spread; None where it was not measured."""
    return None if row.get(name) is None else cell(row[name], row.get("spread", {}).get(name))


def _pictures(runs: Sequence[Run]) -> dict[str, str]:
    """File name -> benchmark, of the benchmarks with rows at several context lengths."""
    lengths: dict[str, set[int]] = {}
    for run in runs:
        for row in run.rows:
            lengths.setdefault(row["benchmark"], set()).update({row["context_tokens"]} - {None})
    return {f"{benchmark}.png": benchmark for benchmark in sorted(lengths) if len(lengths[benchmark]) > 1}


def _lines(runs: Sequence[Run], benchmark: str) -> list[Line]:
    """One line for each run, task and method: its test rows by context length."""
    lines: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for run in runs:
        for row in run.rows:
            if row["benchmark"] == benchmark and row["context_tokens"] is not None and row["split"] == "test":
                name = run.name.removeprefix(f"{benchmark}-") + (f", {row['method']}" if row.get("method") else "")
                lines.setdefault((name, row["task"]), []).append(row)
    return [Line(name, task, tuple(sorted(rows, key=lambda row: row["context_tokens"]))) for (name, task), rows in lines.items()]


def _paper(benchmark: str) -> list[PaperLine]:
    """Q-RAG's Fact F1 and answer accuracy in the paper, each task's by context length."""
    figures, lines = by_length(benchmark), []
    for metric, column, name in (("fact_f1", "fact_em", "paper: Fact F1"), ("answer_accuracy", "answer_em", "paper: answer accuracy")):
        lines += [PaperLine(name, task, column, figures[task, of]) for task, of in sorted(figures) if of == metric]
    return lines


if __name__ == "__main__":
    raise SystemExit(main())
