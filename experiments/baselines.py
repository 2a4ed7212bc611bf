"""Scores of retrieval without fine-tuning on the test questions of a run: BM25, single-step search, multi-step search, random picks.

    python -m experiments.baselines                                                # BabiLong qa2 with MiniLM
    python -m experiments.baselines --benchmark hotpotqa --data-dir DIR            # picks two paragraphs of ten
    python -m experiments.baselines --preset runs/babilong-qa2-minilm --methods bm25 multi

--preset takes the questions, context lengths and budget of a preset, or of a run (its folder, its export or its config.json).
Embedders are used before any fine-tuning; "tiny" has random weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from experiments.checks import read_results
from experiments.cli import execute, read, typed
from experiments.options import OWN, Questions
from experiments.paper.compare import write_comparison
from qrag_jax.config import EvalConfig, RunConfig
from qrag_jax.config.retarget import only_tested, retest
from qrag_jax.rundir.files import write_text

if TYPE_CHECKING:
    from qrag_jax.retrieve.retriever import Retriever


@dataclass(frozen=True)
class Command:
    questions: Annotated[Questions, tyro.conf.arg(name="")] = Questions()  # noqa: RUF009  (frozen)
    preset: str = "minilm"
    """Settings: a preset, a .json or .yaml file of settings, or the folder of a run or of an export."""
    run_dir: Path | None = None
    """Folder for results.json, results.md, comparison.md and episodes/. Default: runs/BENCHMARK-TASK-baselines."""
    methods: tuple[str, ...] = ("bm25", "single", "multi", "random")
    """Baselines: bm25, single (all picks at once by similarity to the question), multi (the multi-step search), random."""
    similarity: Literal["cosine", "dot"] = "cosine"
    """Similarity of the single-step search. Use the one that the embedder was trained with: dot for contriever, cosine for most others."""
    eval_tokens: Annotated[tuple[str, ...] | None, OWN] = None
    """Context lengths."""
    eval_episodes: Annotated[int | None, OWN] = None
    """Questions at each length."""
    budget: Annotated[int | None, OWN] = None
    """T: chunks picked."""
    seed: Annotated[int | None, OWN] = None
    """Seed of the test questions and of the random picks."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code: 0 done, 64 bad input."""
    return execute(lambda: run(read(Command, argv, "experiments.baselines", __doc__ or "")), typed(Command))


def run(command: Command) -> None:
    config = configuration(command)
    run_dir = command.run_dir or Path("runs", f"{config.data.benchmark}-{config.data.task}-baselines")
    vocabulary = Path(command.preset).parent if command.preset.endswith(".json") else Path(command.preset)
    measure(config, command.methods, run_dir, similarity=command.similarity, vocabulary=vocabulary)


def measure(
    config: RunConfig, methods: Sequence[str], run_dir: Path, *, similarity: Literal["cosine", "dot"] = "cosine", vocabulary: Path
) -> list[dict[str, Any]]:
    """Runs the baselines ``methods`` on the test of ``config``; writes the run directory and returns the rows of its results.json.

    ``vocabulary``: if it is the folder of a from-scratch run, that run's vocabulary is used.
    """
    from qrag_jax.evaluate import baselines
    from qrag_jax.evaluate.sets import final_sets
    from qrag_jax.rundir.log import say
    from qrag_jax.train.training import check_run_dir

    if not methods or not set(methods) <= set(baselines.METHODS):
        raise ValueError(f"methods = {methods}: must be one or more of {', '.join(baselines.METHODS)}")
    check_run_dir(config, run_dir)
    check_results(run_dir)
    sets = final_sets(config)
    retriever = untrained(config, vocabulary) if set(methods) & set(baselines.NEED_EMBEDDER) else None
    found = [(name, baselines.make(name, retriever=retriever, similarity=similarity, seed=config.train.seed)) for name in methods]
    write_text(run_dir / "config.json", config.to_json())
    rows = [row for name, find in found for row in baselines.evaluate_baseline(name, find, sets, run_dir)]
    baselines.write_baselines(run_dir, rows)
    say(f"\n{baselines.baselines_table(rows)}\n\nresults are in {run_dir}")
    write_comparison(run_dir, rows, config, config)
    return rows


def configuration(command: Command) -> RunConfig:
    """The settings of a preset or a run, with the changes of the command. Raises ValueError if it is neither."""
    base = command.questions.of_preset(command.preset, command.seed)
    test = retest(base.eval, tokens=command.eval_tokens, episodes=command.eval_episodes, budget=command.budget)
    return untuned(replace(base, eval=test))


def untuned(config: RunConfig) -> RunConfig:
    """``config`` for a test without training: greedy search, no reader."""
    old = config.eval
    test = EvalConfig(tokens=old.tokens, benchmarks=old.benchmarks, episodes=old.episodes, budget=old.budget, haystacks=old.haystacks)
    return only_tested(replace(config, train=replace(config.train, init_from=None)), test)


def check_results(run_dir: Path) -> None:
    """Raises ValueError if the folder holds a training run or results that are not of baselines."""
    path = run_dir / "results.json"
    if (run_dir / "checkpoints").exists() or (path.exists() and any("method" not in row for row in read_results(path))):
        raise ValueError(f"{run_dir}: holds a run; baselines would overwrite its results, so choose another --run-dir")


def untrained(config: RunConfig, run_dir: Path) -> Retriever:
    """A retriever before any fine-tuning. ``run_dir`` may hold the vocabulary of a from-scratch run."""
    import jax

    from qrag_jax.retrieve.retriever import Retriever
    from qrag_jax.train.batches import stage_examples
    from qrag_jax.train.model import build_model

    scratch = config.model.embedder == "tiny" and not (run_dir / "tokenizer.json").exists()
    examples = [stage_examples(config, stage) for stage in config.train.stages(config.data)] if scratch else []
    model = build_model(config, run_dir, examples)
    return Retriever(config, model.embedder, jax.device_put(model.params), model.tokenizer)


if __name__ == "__main__":
    raise SystemExit(main())
