"""Measured scores compared with the paper's: comparison.md of every experiment.

The paper's figures are data: ``experiments/paper/expected/BENCHMARK.json``. The verdict is OK or below only for runs of the same kind as
the paper's; for other runs the table shows both numbers and how the runs differ. A score is OK down to ``tolerance`` below the paper's
figure. The tolerances are this project's choice, since the paper gives few spreads.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, get_args

from qrag_jax.config import RunConfig, benchmarks
from qrag_jax.config.lengths import format_tokens
from qrag_jax.config.parse import decode, require
from qrag_jax.rundir.files import read_json, write_text
from qrag_jax.rundir.log import say

FOLDER = Path(__file__).parent / "expected"
SCHEMA = 1
Metric = Literal["fact_f1", "fact_em", "fact_f1_stopped", "fact_em_stopped", "answer_em", "answer_f1", "answer_accuracy"]
Verdict = Literal["OK", "below", "not comparable", "no figure"]
METHOD, BEAM_METHOD, SUPERVISED = "Q-RAG", "Plan Q-RAG", "supervised fine-tuning"


@dataclass(frozen=True)
class Figure:
    """One number of the paper, as a share of 1.

    ``context_tokens``, ``budget``, ``seeds``: None if the paper gives none. ``place``: its table or figure in the paper.
    ``embedder``, ``updates``, ``trained_on``, ``reader``: settings of the paper's run, as far as known.
    """

    benchmark: str
    task: str
    context_tokens: int | None
    budget: int | None
    method: str
    metric: Metric
    value: float
    seeds: int | None
    tolerance: float
    place: str
    embedder: str | None = None
    updates: int | None = None
    trained_on: str | None = None
    reader: str | None = None
    note: str | None = None

    def __post_init__(self) -> None:
        for name in ("benchmark", "task", "method", "place"):
            require(bool(getattr(self, name).strip()), name, getattr(self, name), "a name")
        for name in ("context_tokens", "budget", "seeds", "updates"):
            require(getattr(self, name) is None or getattr(self, name) >= 1, name, getattr(self, name), ">= 1, or null")
        require(0 <= self.value <= 1, "value", self.value, "in [0, 1]: percentages are divided by 100")
        require(0 <= self.tolerance < 1, "tolerance", self.tolerance, "in [0, 1)")

    @property
    def column(self) -> str:
        """The column of results.json that it is compared with.

        BabiLong's and RULER's accuracies are the answer EM under their own rules. A Fact F1 without a budget is higher than a fixed number
        of picks can reach, so it is compared with the Fact F1 of a search that may stop.
        """
        if self.metric == "answer_accuracy":
            return "answer_em"
        return "fact_f1_stopped" if self.metric == "fact_f1" and self.budget is None else self.metric


@dataclass(frozen=True)
class Expected:
    source: str
    figures: tuple[Figure, ...]


@dataclass(frozen=True)
class Comparison:
    """A measured number and the paper's; ``here`` or ``figure`` is None if it does not exist. ``why``: how the two runs differ."""

    row: Mapping[str, Any]
    figure: Figure | None
    here: float | None
    verdict: Verdict
    why: str


def load_expected(path: Path) -> Expected:
    """Reads a file of figures. Raises ValueError, naming file, row and field, if it breaks the schema or repeats a figure."""
    tree = read_json(path)
    if not isinstance(tree, dict) or set(tree) != {"schema", "source", "rows"}:
        raise ValueError(f"{path}: must be an object with schema, source and rows")
    if tree["schema"] != SCHEMA:
        raise ValueError(f"{path}: schema = {tree['schema']!r}: must be {SCHEMA}")
    if not isinstance(tree["source"], str) or not tree["source"].strip():
        raise ValueError(f"{path}: source = {tree['source']!r}: must name the paper")
    if not isinstance(tree["rows"], list) or not tree["rows"]:
        raise ValueError(f"{path}: rows must be a list of one or more figures")
    needed = [field.name for field in fields(Figure) if field.default is MISSING]
    seen: dict[tuple[Any, ...], int] = {}
    figures = []
    for number, row in enumerate(tree["rows"], 1):
        try:
            if isinstance(row, dict) and (missing := [name for name in needed if name not in row]):
                raise ValueError(f"no field {missing[0]!r}; needed: {', '.join(needed)}")
            figure = decode(Figure, row)
            require(figure.benchmark == path.stem, "benchmark", figure.benchmark, f"{path.stem!r}, the name of the file")
        except ValueError as error:
            raise ValueError(f"{path}: row {number}: {error}") from error
        key = (figure.task, figure.context_tokens, figure.budget, figure.method, figure.metric, figure.trained_on, figure.place)
        if seen.setdefault(key, number) != number:
            raise ValueError(f"{path}: row {number}: repeats row {seen[key]}")
        figures.append(figure)
    return Expected(tree["source"], tuple(figures))


@lru_cache
def expected(benchmark: str) -> Expected | None:
    """The paper's figures for a benchmark; None if the paper has none."""
    path = FOLDER / f"{benchmark.removesuffix('-official')}.json"
    return load_expected(path) if path.exists() else None


def by_length(benchmark: str) -> dict[tuple[str, str], dict[int, float]]:
    """(task, metric) -> context length in tokens -> the paper's figure for Q-RAG; empty if there are none."""
    known = expected(benchmark)
    found: dict[tuple[str, str], dict[int, float]] = {}
    for figure in known.figures if known else ():
        if figure.method == METHOD and figure.context_tokens is not None:
            found.setdefault((figure.task, figure.metric), {})[figure.context_tokens] = figure.value
    return found


def compare(rows: Sequence[Mapping[str, Any]], tested: RunConfig, trained: RunConfig) -> list[Comparison]:
    """Compares each row of results.json with each figure of the same task, length and method.

    ``tested``: what was evaluated; ``trained``: what the retriever was trained on (the same, at the end of a training run).
    """
    return [comparison for row in rows for comparison in _compare_row(row, tested, trained)]


def _compare_row(row: Mapping[str, Any], tested: RunConfig, trained: RunConfig) -> Iterator[Comparison]:
    # A run may have rows of other benchmarks than its own.
    tested = replace(tested, data=replace(tested.data, benchmark=row["benchmark"].removesuffix("-official"), task=row["task"]))
    known = expected(row["benchmark"])
    if known is None:
        yield Comparison(row, None, None, "no figure", f"no figure of the paper is on record for {row['benchmark']}")
        return
    task, tokens = _short(row), _nominal(row)
    of_task = [figure for figure in known.figures if figure.task == task]
    method = _method(row, tested, trained, of_task)
    found = [figure for figure in of_task if figure.method == method and figure.context_tokens in (None, tokens)]
    if not found:
        others = sorted({figure.context_tokens or 0 for figure in of_task if figure.method == method} - {0})
        at = "" if tokens is None else f" at {format_tokens(tokens)}"
        hint = f" (but at {', '.join(map(format_tokens, others))})" if others else ""
        why = f"no figure of the paper is on record for {method} on {row['benchmark']} {task}{at}{hint}"
        yield Comparison(row, None, None, "no figure", why)
        return
    for figure in _nearest_budget(found, row["budget"], trained.data.benchmark):
        here = row.get(figure.column)
        apart = _differences(figure, row, tested, trained)
        if here is None:
            yield Comparison(row, figure, None, "not comparable", f"{figure.column} was not measured")
        elif apart:
            yield Comparison(row, figure, here, "not comparable", "; ".join(apart))
        else:
            yield Comparison(row, figure, here, "OK" if here >= figure.value - figure.tolerance else "below", "")


def _method(row: Mapping[str, Any], tested: RunConfig, trained: RunConfig, figures: Sequence[Figure]) -> str:
    """The paper's name for the method of a row: a baseline, an ablation, Plan Q-RAG (beam search, if the paper has figures) or Q-RAG."""
    if row.get("method"):
        return str(row["method"])
    if trained.rl.objective == "supervised":
        return SUPERVISED if trained.rl.supervised_loss == "binary" else f"{SUPERVISED} by softmax"
    left_out = [name for name, there in (("soft Q", trained.rl.soft), ("target network", trained.rl.target_network)) if not there]
    if left_out:
        return f"{METHOD} without {' and '.join(left_out)}"
    return BEAM_METHOD if tested.eval.beam > 1 and any(figure.method == BEAM_METHOD for figure in figures) else METHOD


def _short(row: Mapping[str, Any]) -> str:
    """The task under its short name, which the figures use: RULER's tasks also have a long name."""
    known = benchmarks.BENCHMARKS.get(row["benchmark"].removesuffix("-official"))
    short = {} if known is None else {long: short for short, long in known.aliases.items()}
    return short.get(row["task"], str(row["task"]))


def _nominal(row: Mapping[str, Any]) -> int | None:
    """Context length as the paper writes it: RULER's own files count in powers of two, so 4096 is the paper's 4K."""
    tokens = row["context_tokens"]
    if not tokens or not row["benchmark"].endswith("-official") or tokens & (tokens - 1):
        return tokens
    power = tokens.bit_length() - 1
    return int(2 ** (power % 10) * 1000 ** (power // 10))


def _nearest_budget(figures: Sequence[Figure], budget: int, trained_on: str) -> list[Figure]:
    """The figures whose training benchmark and budget are closest to the run's, for each metric."""

    def closest(some: Sequence[Figure]) -> list[Figure]:
        distance = [abs((figure.budget or budget) - budget) for figure in some]
        return [figure for figure, away in zip(some, distance, strict=True) if away == min(distance)]

    kept: list[Figure] = []
    for metric in get_args(Metric):
        of_metric = [figure for figure in figures if figure.metric == metric]
        alike = [figure for figure in of_metric if figure.trained_on in (None, trained_on)]
        kept += closest(alike or of_metric) if of_metric else []
    return kept


def _differences(figure: Figure, row: Mapping[str, Any], tested: RunConfig, trained: RunConfig) -> list[str]:
    """The reasons why a measured number cannot be compared directly with the paper's."""
    why = []
    if figure.budget not in (None, row["budget"]):
        why.append(f"{row['budget']} picks instead of {figure.budget}")
    if figure.context_tokens is None and row["context_tokens"] is not None:
        why.append("the paper's context length is not known")
    if figure.embedder is not None and not _same_embedder(trained.model.embedder, figure.embedder):
        why.append(f"embedder {trained.model.embedder} instead of {figure.embedder}")
    if figure.updates is not None and trained.train.steps < figure.updates:
        why.append(f"{trained.train.steps:,} of the paper's {figure.updates:,} updates")
    if figure.method.startswith(METHOD) and trained.rl.supervised_weight:
        why.append("labels in the loss beside the rewards")
    if training := _other_training(figure, tested, trained):
        why.append(training)
    if figure.method.startswith(METHOD) and tested.eval.beam > 1:
        why.append(f"a beam of {tested.eval.beam} instead of greedy search")
    if data := _other_data(row, tested):
        why.append(data)
    if figure.metric.startswith("answer"):
        if tested.eval.reader_context != "retrieved":
            why.append(f"the reader was given the {tested.eval.reader_context} context")
        if figure.reader is None:
            why.append("the paper's reader is not known")
        elif figure.reader.lower() not in tested.eval.reader.lower():
            why.append(f"reader {tested.eval.reader} instead of {figure.reader}")
    return why


def _other_training(figure: Figure, tested: RunConfig, trained: RunConfig) -> str | None:
    """How the training questions differ from those behind a figure; None if they do not, or if nothing was trained for it."""
    ours, theirs = trained.data, figure.trained_on or figure.benchmark
    if figure.trained_on not in (None, ours.benchmark):
        return f"trained on {ours.benchmark} instead of {theirs}"
    if figure.updates is None:
        return None
    if ours.benchmark != theirs or (ours.benchmark == tested.data.benchmark and ours.task != tested.data.task):
        return f"trained on {ours.benchmark} {ours.task}"
    stories = benchmarks.task(tested.data.benchmark, tested.data.task).documents == "stories"
    if stories and ours.data_dir is None and tested.data.data_dir is not None:
        return "trained on generated stories"
    return None


def _same_embedder(here: str, paper: str) -> bool:
    """Whether two names mean the same model: a short name, a hub name, or a folder with that name."""
    from qrag_jax.models.pretrained import ALIASES

    full = ALIASES.get(paper, paper)
    return here in (paper, full) or Path(here).name == full.rpartition("/")[2]


def _other_data(row: Mapping[str, Any], tested: RunConfig) -> str | None:
    """How the test differs from the published one, as far as the configuration shows."""
    if row["split"] != "test":
        return f"{row['split']} questions"
    known = benchmarks.BENCHMARKS.get(row["benchmark"])
    if known is None:  # official records
        return None
    if tested.data.data_dir is None and (generated := benchmarks.task(row["benchmark"], row["task"]).generated):
        return generated
    if known.published is not None and row["episodes"] < known.published:
        return f"{row['episodes']:,} of {known.published:,} questions"
    return None


def comparison_table(comparisons: Sequence[Comparison]) -> str:
    """The comparisons as a Markdown table, with a title that names the paper."""
    show = lambda value: "-" if value is None else f"{value:.3f}"
    heads = ("task", "method", "tokens", "T", "metric", "here", "paper", "difference", "verdict", "because", "where")
    lines: list[tuple[str, ...]] = []
    several = len({found.row["benchmark"] for found in comparisons}) > 1
    for found in comparisons:
        row, figure = found.row, found.figure
        tokens = "-" if row["context_tokens"] is None else f"{row['context_tokens']:,}"
        named = (
            f"{row['benchmark']} {row['task']}" if several else str(row["task"]),
            figure.method if figure else row.get("method") or METHOD,
            tokens,
            str(row["budget"]),
        )
        gap = "-" if figure is None or found.here is None else f"{found.here - figure.value:+.3f}"
        measured = ("-", "-", "-") if figure is None else (figure.column, show(found.here), show(figure.value))
        lines.append((*named, *measured, gap, found.verdict, found.why or "-", figure.place if figure else "-"))
    sources = sorted({known.source for found in comparisons if (known := expected(found.row["benchmark"]))})
    title = f"Compared with the paper ({', '.join(sources)})" if sources else "Compared with the paper"
    return f"{title}:\n\n{markdown(heads, lines)}"


def markdown(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    return "\n".join("| " + " | ".join(line) + " |" for line in [heads, ["---"] * len(heads), *lines])


def write_comparison(run_dir: str | Path, rows: Sequence[Mapping[str, Any]], tested: RunConfig, trained: RunConfig) -> None:
    """Writes comparison.md into a run directory, and says where it lies and how many scores have which verdict."""
    found = compare(rows, tested, trained)
    path = write_text(Path(run_dir) / "comparison.md", comparison_table(found) + "\n")
    counts = Counter(one.verdict for one in found)
    say(f"compared with the paper: {path} ({', '.join(f'{number} {verdict}' for verdict, number in counts.items())})")
