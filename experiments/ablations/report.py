"""The files of an ablation study, made from the rows of its runs: ablations.json, ablations.md and ablations.png."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.checks import COUNT, NUMBER, TEXT, check_fields, is_count, many, optional
from experiments.paper.compare import Comparison, compare, markdown
from experiments.paper.plots import COLOURS, MARKERS
from experiments.seeds import cell, statistics
from qrag_jax.config import RunConfig
from qrag_jax.config.lengths import format_tokens
from qrag_jax.evaluate.plots import BLACK, legend, save, subplots
from qrag_jax.rundir.files import markdown_text, read_json, write_json, write_text

SCHEMA = 1
METRICS = {"fact_em": "Fact EM", "fact_f1": "Fact F1", "fact_f1_stopped": "Fact F1, stopped"}
HEAD = {
    **{"benchmark": TEXT, "task": TEXT, "embedder": TEXT, "beside_paper": many(TEXT)},
    "rows": (lambda value: isinstance(value, list), "a list"),
}
ROW = {
    **{"label": TEXT, "task": TEXT, "context_tokens": optional(COUNT), "updates": optional(COUNT), "seeds": many(COUNT)},
    **dict.fromkeys(METRICS, optional(many(NUMBER))),
}
PAPER = {"fact_f1": NUMBER, "place": TEXT}


@dataclass(frozen=True)
class Found:
    """One finished run of a variant."""

    variant: str
    label: str
    in_paper: bool
    seed: int
    folder: str
    config: RunConfig
    rows: tuple[dict[str, Any], ...]


def write_report(run_dir: Path, found: Sequence[Found]) -> None:
    """Writes the three files. ``found`` must be in the order of the table."""
    rows, reasons = aggregate(found)
    first = found[0].config
    named = {"benchmark": first.data.benchmark, "task": first.data.task, "embedder": first.model.embedder}
    write_json(run_dir / "ablations.json", {"schema": SCHEMA, **named, "beside_paper": reasons, "rows": rows})
    write_text(run_dir / "ablations.md", table(read_ablations(run_dir / "ablations.json")) + "\n")
    draw(read_ablations(run_dir / "ablations.json"), run_dir / "ablations.png")


def aggregate(found: Sequence[Found]) -> tuple[list[dict[str, Any]], list[str]]:
    """One row for each variant and test, with the scores of each seed, their mean and their spread; and how the paper's runs differ.

    ``spread`` is the sample standard deviation over seeds, null for one seed. ``updates`` is null where nothing is trained.
    """
    groups: dict[tuple[Any, ...], list[tuple[Found, dict[str, Any]]]] = {}
    for one in found:
        for row in one.rows:
            key = (one.variant, row["benchmark"], row["task"], row["context_tokens"])
            groups.setdefault(key, []).append((one, row))
    rows, reasons = [], []
    for group in groups.values():
        one, row = group[0]
        known = statistics([r for _, r in group], tuple(METRICS))
        paper = _paper({**row, **known.mean}, one) if one.in_paper else None
        if paper is not None:
            reasons.append(paper.why)
        rows.append(
            {
                **{"variant": one.variant, "label": one.label},
                **{name: row[name] for name in ("benchmark", "task", "context_tokens", "chunks", "episodes", "budget")},
                "updates": None if row.get("method") else one.config.train.steps,
                "seeds": [f.seed for f, _ in group],
                "runs": [f.folder for f, _ in group],
                "checkpoint_step": [r["checkpoint_step"] for _, r in group],
                **known.values,
                "mean": known.mean,
                "spread": known.spread,
                "paper": paper and paper.figure and {"fact_f1": paper.figure.value, "place": paper.figure.place},
            }
        )
    return rows, sorted({reason for reason in reasons if reason})


def _paper(row: dict[str, Any], one: Found) -> Comparison | None:
    """The paper's Fact F1 for a row; None if the paper has none."""
    found = [c for c in compare([row], one.config, one.config) if c.figure is not None and c.figure.metric == "fact_f1"]
    return found[0] if found else None


def read_ablations(path: Path) -> dict[str, Any]:
    """Reads an ablations.json. Raises ValueError, naming the file, if it is not one."""
    tree = read_json(path)
    if not isinstance(tree, dict) or not is_count(tree.get("schema")) or tree["schema"] != SCHEMA:
        raise ValueError(f"{path}: must be an object with schema = {SCHEMA} and {', '.join(HEAD)}")
    check_fields(tree, HEAD, f"{path}: top level")
    for number, row in enumerate(tree["rows"]):
        where = f"{path}: rows[{number}]"
        check_fields(row, ROW, where)
        for name in ("mean", "spread"):
            check_fields(row.get(name), dict.fromkeys(METRICS, optional(NUMBER)), f"{where}.{name}")
        for name in METRICS:
            if (row[name] is None) != (row["mean"][name] is None):
                raise ValueError(f"{where}.mean.{name} = {row['mean'][name]}: must be null exactly where {name} is null")
        if row.get("paper") is not None:
            check_fields(row["paper"], PAPER, f"{where}.paper")
    return tree


def table(ablations: dict[str, Any]) -> str:
    """ablations.md."""
    rows = ablations["rows"]
    several = len({row["task"] for row in rows}) > 1
    heads = ["variant", *(["task"] if several else []), "tokens", "updates", "seeds", *METRICS.values(), "paper: Fact F1"]
    lines: list[list[str]] = []
    for row in rows:
        lines.append(
            [
                markdown_text(row["label"]),
                *([markdown_text(row["task"])] if several else []),
                "-" if row["context_tokens"] is None else f"{row['context_tokens']:,}",
                "-" if row["updates"] is None else f"{row['updates']:,}",
                str(len(row["seeds"])),
                *(cell(row["mean"][name], row["spread"][name]) for name in METRICS),
                "-" if row.get("paper") is None else f"{row['paper']['fact_f1']:.3f} ({markdown_text(row['paper']['place'])})",
            ]
        )
    named = f"{ablations['benchmark']} {ablations['task']}"
    text = [
        f"Ablations on {', embedder '.join(map(markdown_text, (named, ablations['embedder'])))}: "
        "mean ± standard deviation over seeds. Fact F1, stopped: the search stops at the threshold calibrated on validation questions.",
        markdown(heads, lines),
        *(f"Not directly comparable with the paper: {markdown_text(reason)}." for reason in ablations["beside_paper"]),
    ]
    return "\n\n".join(text)


def draw(ablations: dict[str, Any], path: Path) -> None:
    """Draws, for each variant and context length: the mean of the seeds, a dot for each seed, and the paper's Fact F1."""
    rows = ablations["rows"]
    panels = ("fact_em", "fact_f1_stopped")
    names = list(dict.fromkeys(row["label"] for row in rows))
    lengths = sorted({row["context_tokens"] or 0 for row in rows})
    figure, axes = subplots(len(panels))
    figure.set_size_inches(5 * len(panels) + 1.5, 2.2 + 0.45 * len(names))
    for metric, axis in zip(panels, axes[0], strict=True):
        for row in rows:
            number = lengths.index(row["context_tokens"] or 0)
            y = names.index(row["label"]) + 0.16 * (number - (len(lengths) - 1) / 2)
            colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
            if row[metric] is not None:
                axis.plot(row[metric], [y] * len(row[metric]), ".", color=colour, alpha=0.6, markersize=5)
                label = "all" if row["context_tokens"] is None else f"{format_tokens(row['context_tokens'])} tokens"
                axis.plot(row["mean"][metric], y, marker, color=colour, markeredgecolor=BLACK, markersize=7, linestyle="", label=label)
            if row.get("paper") is not None and metric == "fact_f1_stopped":
                axis.plot(row["paper"]["fact_f1"], y, "*", color=BLACK, markersize=6, linestyle="", label="paper: Fact F1")
        axis.set_yticks(range(len(names)), names if metric == panels[0] else [])
        axis.set(xlabel=METRICS[metric], xlim=(-0.02, 1.02), ylim=(len(names) - 0.5, -0.5))
        axis.grid(alpha=0.3)
        legend(axis, title="mean of the seeds; a dot for each seed")
    axes[0, 0].set_ylabel("variant")
    figure.suptitle(f"{ablations['benchmark']} {ablations['task']}, {ablations['embedder']}, test questions")
    save(figure, path)
