"""Measures the paper's tables that need no further training, with one trained retriever: budgets, early stopping, beam search.

    python -m experiments.tables runs/babilong-qa2-tiny --run-dir runs/qa2-tables
    python -m experiments.tables EXPORT --run-dir runs/hotpotqa-tables --data-dir DIR --budgets 2 3 4 5

Each test question is searched greedily once, with the largest budget. Its first picks are the search with a smaller budget (Table 4) and
the search that stops at a threshold (Tables 5 and 6). Questions whose document has fewer chunks than that budget are skipped, and the
command says how many. Each beam width is a separate search, with the retriever's budget. The retriever's own stop threshold was chosen on
validation questions (experiments.calibrate); the curve shows the scores at other thresholds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from experiments.checks import COUNT, NUMBER, SCORE, TIME, Check, check_fields, check_rows, is_count, many, optional
from experiments.cli import execute, read, typed
from experiments.options import OWN, Questions
from experiments.paper.compare import METHOD, expected, markdown
from qrag_jax.config import RunConfig
from qrag_jax.config.lengths import format_tokens
from qrag_jax.config.retarget import only_tested, retest
from qrag_jax.rundir.files import check_folder, is_name, read_json, write_json, write_text

if TYPE_CHECKING:
    from qrag_jax.evaluate.results import EpisodeRecord
    from qrag_jax.retrieve.retriever import Retriever
    from qrag_jax.types import QAExample

SCHEMA = 1
POINTS = 21  # thresholds of the stopping table
NAME: Check = (is_name, "a name")
SECTION = {"benchmark": NAME, "task": NAME, "context_tokens": optional(COUNT), "episodes": COUNT}
SCORES = {"fact_em": SCORE, "fact_f1": SCORE}
CURVE = ("threshold", "fact_f1", "fact_em", "length", "perfect")
"""Lists of a section's stopping curve (:class:`~qrag_jax.evaluate.metrics.Stopping`)."""
STOPPED = {"fact_f1_stopped": "Fact F1", "fact_em_stopped": "Fact EM"}


@dataclass(frozen=True)
class Command:
    retriever: tyro.conf.Positional[Path]
    """Run directory or export of the retriever."""
    run_dir: Path
    """Folder for tables.json, tables.md and the pictures; it must be new, empty, or hold tables already."""
    questions: Annotated[Questions, tyro.conf.arg(name="")] = Questions()  # noqa: RUF009  (frozen)
    eval_tokens: tuple[str, ...] = ("4k",)
    """Context lengths."""
    eval_episodes: int = 200
    """Test questions at each length."""
    budgets: tuple[int, ...] = (2, 3, 4, 5)
    """Numbers of picks to compare."""
    beams: tuple[int, ...] = (1, 2, 4, 8)
    """Beam widths to compare, at the retriever's own budget."""
    seed: Annotated[int | None, OWN] = None
    """Seed of the questions and of their order."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code: 0 done, 64 bad input."""
    return execute(lambda: run(read(Command, argv, "experiments.tables", __doc__ or "")), typed(Command))


def run(command: Command) -> None:
    from qrag_jax.evaluate.metrics import stopping
    from qrag_jax.evaluate.sets import final_sets
    from qrag_jax.retrieve.retriever import Retriever
    from qrag_jax.rundir.log import say

    for name in ("budgets", "beams"):
        values = getattr(command, name)
        if not values or min(values) < 1 or len(set(values)) != len(values):
            raise ValueError(f"{name} = {values}: must be one or more different numbers >= 1")
    if max(command.budgets) < 2:
        raise ValueError(f"budgets = {command.budgets}: the largest must be >= 2; with one pick there is nothing to stop")
    check_folder(command.run_dir)
    if command.run_dir.exists() and any(command.run_dir.iterdir()) and not (command.run_dir / "tables.json").exists():
        raise ValueError(f"{command.run_dir}: not empty and holds no tables; choose another --run-dir")
    retriever = Retriever.from_pretrained(command.retriever)
    config = configuration(command, retriever.config)
    sections = []
    for questions in final_sets(config):
        groups = [[example for example in examples if len(example.chunks) >= config.eval.budget] for examples in questions]
        asked = sum(map(len, questions.groups))
        short = asked - sum(map(len, groups))
        left_out = f"; {short} are skipped because their documents have fewer than {config.eval.budget} chunks" if short else ""
        say(f"{questions.name}: {asked} questions{left_out}")
        if short == asked:
            raise ValueError(f"budgets = {command.budgets}: no document of {questions.name} has that many chunks")
        greedy, _ = search(retriever, groups, config.eval.budget, 1)
        picked, q, support = ([getattr(record, name) for record in greedy] for name in ("picked", "q", "support"))
        section: dict[str, Any] = {
            **{"benchmark": questions.benchmark, "task": questions.task, "context_tokens": questions.context_tokens},
            "episodes": len(greedy),
            "budgets": budget_rows(greedy, sorted(command.budgets)),
            "stopping": asdict(stopping(picked, q, support, POINTS)),
            "beams": beam_rows(retriever, groups, command.beams, retriever.config.eval.budget),
        }
        sections.append(section)
    named = {"step": retriever.step, "stop_threshold": retriever.threshold, "embedder": retriever.config.model.embedder}
    write_json(command.run_dir / "tables.json", {"schema": SCHEMA, **named, "sections": sections})
    for path, draw in drawings(command.run_dir).items():
        draw(path)
    text = tables_text(read_tables(command.run_dir / "tables.json"))
    write_text(command.run_dir / "tables.md", text + "\n")
    say(f"\n{text}\n\ntables are in {command.run_dir}")


def configuration(command: Command, old: RunConfig) -> RunConfig:
    """The test, with the largest budget. Raises ValueError on bad values."""
    test = retest(
        old.eval,
        beam=1,
        benchmarks=(),
        reader="none",
        tokens=command.eval_tokens,
        episodes=command.eval_episodes,
        budget=max(*command.budgets, old.eval.budget),
    )
    return only_tested(command.questions.of(old, seed=command.seed), test)


def search(retriever: Retriever, groups: Sequence[Sequence[QAExample]], budget: int, beam: int) -> tuple[list[EpisodeRecord], float]:
    """The episodes of a test, and the seconds per episode."""
    from qrag_jax.evaluate.episodes import run_episodes

    start = time.perf_counter()
    records = [record for examples in groups if examples for record in run_episodes(retriever, examples, budget, beam=beam)]
    return records, (time.perf_counter() - start) / len(records)


def budget_rows(records: Sequence[EpisodeRecord], budgets: Sequence[int]) -> list[dict[str, Any]]:
    """Fact EM and Fact F1 of the first T picks of greedy episodes."""
    from qrag_jax.evaluate.metrics import fact_em, fact_f1

    mean = lambda score, t: sum(score(r.picked[:t], r.support, r.missing) for r in records) / len(records)
    return [{"budget": t, "fact_em": mean(fact_em, t), "fact_f1": mean(fact_f1, t)} for t in budgets]


def beam_rows(retriever: Retriever, groups: Sequence[Sequence[QAExample]], beams: Sequence[int], budget: int) -> list[dict[str, Any]]:
    from qrag_jax.evaluate.episodes import summary

    rows = []
    for beam in sorted(beams):
        records, seconds = search(retriever, groups, budget, beam)
        found = summary(records, None)
        rows.append({"beam": beam, "budget": budget, **{name: found[name] for name in ("fact_em", "fact_f1")}, "seconds": seconds})
    return rows


def read_tables(path: Path) -> dict[str, Any]:
    """Reads a tables.json. Raises ValueError, naming the file and the field, if it is not one."""
    tree = read_json(path)
    if not isinstance(tree, dict) or not is_count(tree.get("schema")) or tree["schema"] != SCHEMA:
        raise ValueError(f"{path}: must be an object with schema = {SCHEMA} and sections")
    check_fields(tree, {"stop_threshold": optional(NUMBER)}, f"{path}: top level")
    check_rows(tree.get("sections"), SECTION, f"{path}: sections")
    for number, section in enumerate(tree["sections"]):
        where = f"{path}: sections[{number}]"
        check_rows(section.get("budgets"), {"budget": COUNT, **SCORES}, f"{where}.budgets")
        check_rows(section.get("beams"), {"beam": COUNT, "budget": COUNT, "seconds": TIME, **SCORES}, f"{where}.beams")
        curve = section.get("stopping")
        check_fields(curve, {**dict.fromkeys(CURVE, many(NUMBER)), "roc_auc": optional(SCORE)}, f"{where}.stopping")
        if set(curve) != {*CURVE, "roc_auc"} or len({len(curve[name]) for name in CURVE}) != 1:
            raise ValueError(f"{where}.stopping: must have {', '.join(CURVE)}, lists of one length, and roc_auc")
    return tree


def drawings(folder: Path) -> dict[Path, Callable[[Path], None]]:
    """The pictures of a folder's tables.json: path -> the function that draws it there."""
    from qrag_jax.evaluate import plots
    from qrag_jax.evaluate.metrics import Stopping

    tables = read_tables(folder / "tables.json")
    found: dict[Path, Callable[[Path], None]] = {}
    for section in tables["sections"]:
        tokens = section["context_tokens"]
        name = f"{section['benchmark']}-{section['task']}" + ("" if tokens is None else f"-{format_tokens(tokens)}")
        paper = {metric: by_budget for metric in ("fact_em", "fact_f1") if (by_budget := _table4(section, metric))}
        title = f"{name}, test questions"
        found[folder / f"{name}-search.png"] = partial(plots.search, section["budgets"], section["beams"], paper, title=title)
        if tables["stop_threshold"] is not None:
            curve: dict[str, Any] = {key: tuple(part) if isinstance(part, list) else part for key, part in section["stopping"].items()}
            found[folder / f"{name}.png"] = partial(plots.stopping, Stopping(**curve), tables["stop_threshold"], title=title)
    return found


def tables_text(tables: dict[str, Any]) -> str:
    """The text of tables.md."""
    return "\n\n".join(section_text(section) for section in tables["sections"])


def section_text(section: dict[str, Any]) -> str:
    """The tables of one test as Markdown, with the paper's figures for each budget."""
    tokens = "" if section["context_tokens"] is None else f", {section['context_tokens']:,} tokens"
    shown = lambda value: "-" if value is None else f"{value:.3f}"
    curve = section["stopping"]
    stops = zip(*(curve[name] for name in ("threshold", "fact_f1", "fact_em", "length", "perfect")), strict=True)
    budgets = [
        [str(row["budget"]), shown(row["fact_em"]), shown(row["fact_f1"])]
        + [shown(_table4(section, name).get(row["budget"])) for name in ("fact_em", "fact_f1")]
        for row in section["budgets"]
    ]
    beams = [[str(row["beam"]), *(shown(row[name]) for name in ("fact_em", "fact_f1", "seconds"))] for row in section["beams"]]
    best = [
        f"{STOPPED[f.metric]} with early stopping in the paper: {f.value:.3f} ({f.place}{'; ' + f.note if f.note else ''})."
        for f in _figures(section)
        if f.metric in STOPPED
    ]
    parts = [
        f"**{section['benchmark']} {section['task']}{tokens}: {section['episodes']} test questions**",
        "Retrieval budget:",
        markdown(["T", "Fact EM", "Fact F1", "paper: Fact EM (Table 4)", "paper: Fact F1"], budgets),
        f"Early stopping, ROC AUC of the stop {shown(curve['roc_auc'])}:",
        markdown(["stop below", "Fact F1", "Fact EM", "picks", "perfect stops"], [[shown(value) for value in row] for row in stops]),
        *best,
        f"Beam search (the paper's planning), {section['beams'][0]['budget']} picks:",
        markdown(["beam", "Fact EM", "Fact F1", "s / question"], beams),
    ]
    return "\n\n".join(parts)


def _table4(section: dict[str, Any], metric: str) -> dict[int, float]:
    """Budget -> the paper's figure."""
    return {f.budget: f.value for f in _figures(section) if f.place == "Table 4" and f.metric == metric and f.budget is not None}


def _figures(section: dict[str, Any]) -> list[Any]:
    known = expected(section["benchmark"])
    return [f for f in known.figures if f.task == section["task"] and f.method == METHOD] if known else []


if __name__ == "__main__":
    raise SystemExit(main())
