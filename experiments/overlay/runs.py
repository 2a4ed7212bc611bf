"""What an overlay reads of each run: its validations, its results, and the score of every test question."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from experiments.checks import read_results
from experiments.seeds import seeds_in
from qrag_jax.config.lengths import format_tokens
from qrag_jax.config.trees import parse_json
from qrag_jax.rundir.log import RunLog

Metric = Literal["fact_em", "answer_em"]
Key = tuple[str, str, str | None, int | None]
"""Benchmark, task, split and context length of a row of results.json."""
Question = tuple[str, str, tuple[int, ...], int]
"""What tells a test question from another: its id, text, supporting chunks and number of chunks. Runs of other seeds ask others."""


@dataclass(frozen=True)
class Run:
    """One run. ``minutes``: update -> minutes of training until then."""

    folder: Path
    seed: int
    validations: tuple[tuple[int, float], ...]
    minutes: Mapping[int, float]
    rows: tuple[dict[str, Any], ...]

    def row(self, key: Key) -> dict[str, Any] | None:
        return next((row for row in self.rows if key_of(row) == key), None)

    def questions(self, key: Key, metric: Metric) -> dict[Question, float]:
        """The score of each test question; empty if the run keeps no episodes. Raises ValueError, naming file and line, on a bad one."""
        benchmark, task, _, tokens = key
        names = (f"{benchmark}-{task}", *(f"{benchmark}-{task}-{length}" for length in (tokens, format_tokens(tokens or 1))))
        path = next((path for name in names if (path := self.folder / "episodes" / f"{name}.jsonl").exists()), None)
        found: dict[Question, float] = {}
        for number, line in enumerate(path.read_bytes().splitlines() if path else (), 1):
            try:
                record = parse_json(line)
                question = (str(record["id"]), str(record["question"]), tuple(record["support"]), int(record["chunks"]))
                if record[metric] is not None:
                    found[question] = float(record[metric])
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"{path}:{number}: is not an episode of an evaluation ({error!r}); evaluate the run again") from error
        return found


@dataclass(frozen=True)
class Group:
    """Runs that differ in their seed only; often one."""

    name: str
    runs: tuple[Run, ...]

    def scores(self, key: Key, metric: Metric) -> list[float]:
        """The score of each run that has measured it."""
        rows = [run.row(key) for run in self.runs]
        return [row[metric] for row in rows if row is not None and row[metric] is not None]


def key_of(row: Mapping[str, Any]) -> Key:
    return row["benchmark"], row["task"], row["split"], row["context_tokens"]


def keys(groups: Sequence[Group]) -> list[Key]:
    """The tests that at least two groups have made, in the order of the first."""
    found = [list(dict.fromkeys(key_of(row) for run in group.runs for row in run.rows)) for group in groups]
    every = dict.fromkeys(key for part in found for key in part)
    return [key for key in every if sum(key in part for part in found) > 1]


def read_groups(folders: Sequence[Path]) -> list[Group]:
    """Reads run directories and folders of several seeds. Raises ValueError, naming the folder, if it holds no run."""
    if len({folder.resolve() for folder in folders}) < 2:
        raise ValueError("runs: give two or more different run directories")
    names = short_names(folders)
    return [Group(name, read_runs(folder)) for name, folder in zip(names, folders, strict=True)]


def short_names(folders: Sequence[Path]) -> list[str]:
    """The ends of the paths, as long as they must be to differ."""
    whole = [folder.resolve().parts for folder in folders]
    for length in range(1, max(map(len, whole)) + 1):
        names = ["/".join(parts[-length:]) for parts in whole]
        if len(set(names)) == len(names):
            break
    return names


def read_runs(folder: Path) -> tuple[Run, ...]:
    from qrag_jax.train.training import SEEDS

    if not (folder / SEEDS).exists():
        return (read_run(folder),)
    return tuple(read_run(folder / f"seed-{seed}") for seed in seeds_in(folder))


def read_run(folder: Path) -> Run:
    from qrag_jax.train.training import read_config

    if not (folder / "config.json").exists() or not (folder / "metrics.jsonl").exists():
        raise ValueError(f"{folder}: holds no training run (no config.json and metrics.jsonl)")
    log, results = RunLog(folder), folder / "results.json"
    minutes = {0: 0.0} | {r["step"]: r["seconds"] / 60 for r in log.read() if r["kind"] == "train" and r.get("seconds") is not None}
    validations = tuple((record["step"], record["fact_em"]) for record in log.validations("fact_em"))
    return Run(folder, read_config(folder).train.seed, validations, minutes, read_results(results) if results.exists() else ())
