"""The files of an open-corpus evaluation: open.json, open.md, open.png."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path

from experiments.paper.anchors import anchors
from experiments.paper.compare import markdown
from experiments.paper.plots import COLOURS, MARKERS
from qrag_jax.config import benchmarks
from qrag_jax.config.parse import decode, require
from qrag_jax.evaluate.corpus import ALL, UNTIL_STOP, Metric, Score
from qrag_jax.rundir.files import is_name, markdown_text, read_json, write_json, write_text

SCHEMA = 1
NAME = "open.json"
NAMES: dict[Metric, str] = {"all_support": "all", "recall": "recall"}


@dataclass(frozen=True)
class Head:
    """What was tested. ``published``: questions in the published development file; None if there is none. ``embedder``, ``step``: of the
    trained retriever; None if there is none."""

    benchmark: str
    task: str
    split: str
    questions: int
    published: int | None
    chunks: int
    distractors: int
    embedder: str | None
    step: int | None
    stop_threshold: float | None
    encoders: tuple[str, ...]
    seed: int


@dataclass(frozen=True)
class Open(Head):
    """One test with its results. ``chosen``: number of picks -> the method chosen on validation questions."""

    chosen: dict[int, str]
    scores: tuple[Score, ...]

    @property
    def title(self) -> str:
        """Which questions and which corpus, and whether the questions are a subset."""
        known = benchmarks.BENCHMARKS.get(self.benchmark)
        name = self.benchmark if known is None else known.title
        of = "" if self.published in (None, self.questions) else f", a subset of the {self.published:,} published ones"
        more = f", {self.distractors:,} of them from a file" if self.distractors else ""
        return f"{name} ({self.task}): {self.questions:,} {self.split} questions{of}; one corpus of {self.chunks:,} chunks{more}"


def write_report(folder: Path, found: Open) -> str:
    """Writes the three files; returns the text of open.md."""
    tree = {"schema": SCHEMA, **asdict(found), "chosen": {str(k): name for k, name in found.chosen.items()}}
    write_json(folder / NAME, tree)
    again = read_open(folder / NAME)
    for path, draw in drawings(folder).items():
        draw(path)
    text = table(again)
    write_text(folder / "open.md", text + "\n")
    return text


def read_open(path: Path) -> Open:
    """Reads an open.json. Raises ValueError, naming file and field, if it is not one."""
    tree = read_json(path)
    if not isinstance(tree, dict) or tree.get("schema") != SCHEMA or not isinstance(tree.get("scores"), list) or not tree["scores"]:
        raise ValueError(f"{path}: must be an object with schema = {SCHEMA} and scores")
    try:
        rows = tuple(decode(Score, row, f"scores[{number}]") for number, row in enumerate(tree["scores"]))
        for number, row in enumerate(rows):
            for name in ("picks", "value", "low", "high", "difference", "difference_low", "difference_high"):
                value = getattr(row, name)
                require(value is None or abs(value) <= 100, f"scores[{number}].{name}", value, "a number, as a share of 1")
        choice = tree.get("chosen")
        require(isinstance(choice, dict) and all(k.isdigit() and isinstance(choice[k], str) for k in choice), "chosen", choice, "names")
        rest = {name: value for name, value in tree.items() if name not in ("schema", "scores", "chosen")}
        if missing := [one.name for one in fields(Open) if one.name not in tree]:
            raise ValueError(f"no field {missing[0]!r}")
        found = decode(Head, rest)
        for name in ("benchmark", "task"):
            require(is_name(rest[name]), name, rest[name], "a name")
        for name in ("questions", "chunks", "distractors"):
            require(rest[name] >= 0, name, rest[name], ">= 0")
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: {error}") from error
    return Open(**vars(found), chosen={int(k): name for k, name in tree["chosen"].items()}, scores=rows)


def table(found: Open) -> str:
    """All scores as Markdown: those of :func:`summary`, and a table for each number of supporting chunks."""
    parts = [summary(found)]
    for hops in dict.fromkeys(score.hops for score in found.scores):
        if hops != ALL:
            part = [score for score in found.scores if score.hops == hops]
            parts += [f"{hops} supporting chunk{'s' * (hops != '1')} ({part[0].questions:,} questions):", _scores(found, hops)]
    return "\n\n".join(parts)


def summary(found: Open) -> str:
    """The scores of all questions as Markdown, how far each way to use the retriever is ahead of the best
    baseline, and published figures of other retrievers."""
    parts = [f"**{found.title}**", _scores(found, ALL)]
    if any(score.trained for score in found.scores):
        parts += ["Lead over the best baseline of the column:", _lead(found)]
    if found.chosen:
        ways = ", ".join(f"{k} picks: {markdown_text(name)}" for k, name in found.chosen.items())
        parts.append(f"Chosen on validation questions: {ways}.")
    if known := anchors(found.benchmark):
        lines = [[a.method, a.metric, f"{a.value:.3f}", a.source, a.differs] for a in known]
        parts += ["Published figures, which are not comparable:", markdown(["method", "metric", "value", "source", "what differs"], lines)]
    return "\n\n".join(parts)


def _columns(found: Open) -> list[tuple[Metric, int]]:
    return list(dict.fromkeys((score.metric, score.k) for score in found.scores))


def _scores(found: Open, hops: str) -> str:
    at = {(score.method, score.metric, score.k): score for score in found.scores if score.hops == hops}
    columns = _columns(found)
    lines = []
    for method in dict.fromkeys(name for name, *_ in at):
        cells = [at[method, metric, k] for metric, k in columns]
        made = [f" ({one.picks:.1f} picks)" if one.picks < one.k - 0.05 else "" for one in cells]
        shown = [f"{one.value:.3f} ({one.low:.3f}-{one.high:.3f}){picks}" for one, picks in zip(cells, made, strict=True)]
        lines.append([markdown_text(method), *shown])
    return markdown(["method", *(f"{NAMES[metric]}@{k}" for metric, k in columns)], lines)


def _lead(found: Open) -> str:
    at = {(score.method, score.metric, score.k): score for score in found.scores if score.hops == ALL}
    columns = _columns(found)
    heads, lines = ["method"], []
    for metric, k in columns:
        best = next((score.best for score in at.values() if (score.metric, score.k) == (metric, k) and score.best), "-")
        heads.append(f"{NAMES[metric]}@{k}: over {markdown_text(best)}")
    for method in dict.fromkeys(score.method for score in at.values() if score.trained):
        cells = [at[method, metric, k] for metric, k in columns]
        lines.append(
            [markdown_text(method), *(f"{c.difference:+.3f} ({c.difference_low:+.3f} to {c.difference_high:+.3f})" for c in cells)]
        )
    return markdown(heads, lines)


def drawings(folder: Path) -> dict[Path, Callable[[Path], None]]:
    """The picture of a folder's open.json: path -> the function that draws it there."""
    found = read_open(folder / NAME)
    return {folder / "open.png": partial(draw, found)}


def draw(found: Open, path: Path) -> None:
    """All-support against the number of picks: baselines dashed, ways to use the trained retriever solid, with 95 % intervals."""
    from qrag_jax.evaluate.plots import legend, save, subplots

    figure, axes = subplots(1)
    axis = axes[0, 0]
    rows = [score for score in found.scores if score.hops == ALL and score.metric == "all_support"]
    shown = [name for name in dict.fromkeys(score.method for score in rows) if not name.startswith("Q-RAG +") and name != UNTIL_STOP]
    shown.sort(key=lambda name: not name.startswith("Q-RAG"))
    for number, method in enumerate(shown):
        own = [score for score in rows if score.method == method]
        x = [score.k + 0.07 * (number - (len(shown) - 1) / 2) for score in own]  # beside each other, so that all intervals are seen
        bars = [[score.value - score.low for score in own], [score.high - score.value for score in own]]
        line, width = ("-", 2.0) if own[0].trained else ("--", 1.2)
        look = {"color": COLOURS[number % len(COLOURS)], "marker": MARKERS[number % len(MARKERS)], "linestyle": line, "linewidth": width}
        axis.errorbar(x, [score.value for score in own], yerr=bars, markersize=5, capsize=2, label=method, **look)
    axis.set_xticks(sorted({score.k for score in rows}))
    axis.set(xlabel="picks", ylabel="all supporting chunks found", ylim=(-0.02, 1.02))
    axis.grid(alpha=0.3)
    legend(axis)
    figure.suptitle(found.title.replace("; ", ";\n"), fontsize=9)
    save(figure, path)
