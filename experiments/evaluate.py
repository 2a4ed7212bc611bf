"""Evaluates a trained retriever again: at other lengths, on another task, on other data. Nothing is trained.

python -m experiments.evaluate runs/babilong-qa2-tiny --run-dir runs/long --eval-tokens 1m
python -m experiments.evaluate runs/babilong-qa2-tiny --run-dir runs/qa2-official --data-dir DIR
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import tyro

from experiments.cli import execute, read, working_folder
from experiments.paper.compare import write_comparison
from qrag_jax.config import EvalConfig

DEFAULTS = EvalConfig()


@dataclass(frozen=True)
class Command:
    retriever: tyro.conf.Positional[str]
    """Run directory or export of the retriever; a folder, or gs://BUCKET/NAME."""
    run_dir: str
    """Folder for results.json, results.md, comparison.md, context.png and episodes/; must not hold another run. May be gs://BUCKET/NAME."""
    benchmark: str | None = None
    """Benchmark; none: the one it was trained on."""
    task: str | None = None
    """Task; none: the one it was trained on."""
    data_dir: str | None = None
    """Folder with the benchmark's files; none: generated stories and needles in Python's documentation."""
    official: bool = False
    """RULER's own records (data_dir/ruler/LENGTH/TASK/validation.jsonl) in place of generated ones."""
    split: Literal["test", "validation"] = DEFAULTS.split
    """Which questions are asked; validation: to compare retrievers without a look at the test."""
    eval_tokens: tuple[str, ...] = DEFAULTS.tokens
    """Context lengths."""
    eval_episodes: int = DEFAULTS.episodes
    """Questions at each length."""
    budget: int = DEFAULTS.budget
    """T: chunks picked."""
    beam: int = DEFAULTS.beam
    """Paths kept at each step of a search; 1 is greedy."""
    haystacks: int = DEFAULTS.haystacks
    """Distinct haystacks at each length."""
    reader: str = DEFAULTS.reader
    """The frozen LLM that answers: none, flax:NAME (a hub name, a folder or a .gguf file), or openai:URL,MODEL."""
    reader_context: Literal["retrieved", "stopped", "gold", "none"] = DEFAULTS.reader_context
    """What the reader is given: the picked chunks, those picked before Q fell below the stop threshold, the supporting ones, or only the
    question."""
    reader_tokens: int = DEFAULTS.reader_tokens
    """Longest answer, in tokens of the reader."""
    reader_timeout: float = DEFAULTS.reader_timeout
    """Seconds an openai: reader may take for one answer, waiting for its turn included, before it is asked again."""
    reader_concurrency: int = DEFAULTS.reader_concurrency
    """Requests in flight at an openai: reader. A server that answers one at a time wants 1."""
    reader_devices: int = DEFAULTS.reader_devices
    """Devices of this host that the network of a flax: reader is split over; 0: all. They must divide its key/value heads."""
    reader_dtype: Literal["auto", "float32", "bfloat16"] = DEFAULTS.reader_dtype
    """Type of a flax: reader's weights, cache and activations. auto: bfloat16 on accelerators, float32 on CPUs."""
    seed: int = 0


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code: 0 done, 64 bad input, 75 the reader is out of reach (run it again to ask the rest)."""
    return execute(lambda: run(read(Command, argv, "experiments.evaluate", __doc__ or "")))


def run(command: Command) -> None:
    from experiments.paper.plots import draw_context
    from qrag_jax.evaluate import episodes
    from qrag_jax.evaluate.sets import final_sets, official_sets
    from qrag_jax.retrieve.retriever import Retriever
    from qrag_jax.rundir.files import write_text
    from qrag_jax.train.training import check_run_dir, write_report

    retriever = Retriever.from_pretrained(command.retriever)
    old = retriever.config
    config = replace(
        old,
        data=replace(
            old.data,
            benchmark=command.benchmark or old.data.benchmark,
            task=command.task or old.data.task,
            data_dir=command.data_dir,
        ),
        train=replace(old.train, seed=command.seed, curriculum=()),
        eval=EvalConfig(
            tokens=command.eval_tokens,
            split=command.split,
            episodes=command.eval_episodes,
            budget=command.budget,
            beam=command.beam,
            haystacks=command.haystacks,
            reader=command.reader,
            reader_context=command.reader_context,
            reader_tokens=command.reader_tokens,
            reader_timeout=command.reader_timeout,
            reader_concurrency=command.reader_concurrency,
            reader_devices=command.reader_devices,
            reader_dtype=command.reader_dtype,
        ),
    )
    with working_folder(command.run_dir) as folder:
        check_run_dir(config, folder)
        sets = official_sets(config) if command.official else final_sets(config)
        write_text(folder / "config.json", config.to_json())
        rows = episodes.evaluate(config, folder, retriever, sets)
        write_report(folder, rows)
        write_comparison(folder, rows, config, old)
        draw_context(rows, folder / "context.png")


if __name__ == "__main__":
    raise SystemExit(main())
