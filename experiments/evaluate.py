"""Evaluates a trained retriever again: at other lengths, on another task, on other data. Nothing is trained.

    python -m experiments.evaluate runs/babilong-qa2-tiny --run-dir runs/long --eval-tokens 1m
    python -m experiments.evaluate runs/babilong-qa2-tiny --run-dir runs/qa2-official --data-dir DIR

Options that you omit keep the retriever's own values: data folder, context lengths, budget, beam, reader and so on.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from experiments.cli import execute, read, typed, working_folder
from experiments.options import EVAL_SHORT, OWN, EvalOptions, Questions, given, long_names, short_names
from experiments.paper.compare import write_comparison
from qrag_jax.config import RunConfig
from qrag_jax.config.retarget import only_tested, retest
from qrag_jax.rundir.compilations import prepare_compiling

SHORT = {**EVAL_SHORT, "--budget": "--eval.budget"}


@dataclass(frozen=True)
class Command:
    retriever: tyro.conf.Positional[str]
    """The retriever: run directory, export folder, released checkpoint, gs://BUCKET/NAME, or OWNER/NAME[@REVISION] on the hub."""
    run_dir: str
    """Folder for results.json, results.md, comparison.md, context.png and episodes/, or gs://BUCKET/NAME; must not hold another run."""
    questions: Annotated[Questions, tyro.conf.arg(name="")] = Questions()  # noqa: RUF009  (frozen)
    official: bool = False
    """What a benchmark's authors publish for evaluation: BABILong's rows (data_dir/babilong/data/TASK/LENGTH.json), RULER's own records
    (data_dir/ruler/LENGTH/TASK/validation.jsonl; for qa_sh and qa_mh TASK is qa_1 and qa_2), or HotpotQA's fullwiki questions
    (data_dir/hotpotqa/hotpot_dev_fullwiki_v1.json)."""
    eval: EvalOptions = EvalOptions()  # noqa: RUF009  (frozen)
    """The test. Omitted options keep the retriever's own values."""
    seed: Annotated[int | None, OWN] = None
    """Seed of the questions and of their order."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code: 0 done, 64 bad input, 75 the reader cannot be reached (run it again to resume)."""
    return execute(lambda: run(parse(argv)), typed(Command))


def parse(argv: Sequence[str] | None) -> Command:
    """Reads a command line. Raises ValueError, with a message of one line, on bad words."""
    words = long_names(sys.argv[1:] if argv is None else argv, SHORT)
    return read(Command, words, "experiments.evaluate", f"{__doc__}\n{short_names(SHORT)}", short=SHORT)


def run(command: Command) -> None:
    from experiments.paper.plots import draw_context
    from qrag_jax.evaluate import episodes
    from qrag_jax.evaluate.sets import final_sets, official_sets
    from qrag_jax.retrieve.retriever import Retriever
    from qrag_jax.rundir.files import write_text
    from qrag_jax.train.training import check_run_dir, write_report

    prepare_compiling()
    retriever = Retriever.from_pretrained(command.retriever)
    old = retriever.config
    config = configuration(command, old)
    with working_folder(command.run_dir) as folder:
        refuse_training(folder)
        check_run_dir(config, folder)
        sets = official_sets(config) if command.official else final_sets(config)
        write_text(folder / "config.json", config.to_json())
        rows = episodes.evaluate(config.eval, folder, retriever, sets)
        write_report(folder, rows)
        write_comparison(folder, rows, config, old)
        draw_context(rows, folder / "context.png")


def refuse_training(folder: Path) -> None:
    """Raises ValueError if training has written to ``folder``: its results would be overwritten."""
    for name in ("checkpoints", "export", "seeds.json", "spec.json"):
        if (folder / name).exists():
            raise ValueError(
                f"{folder}: holds a training run ({name}), whose results would be overwritten; choose another --run-dir. To test a "
                "finished run again with other settings in its own folder, repeat its training command with them"
            )


def configuration(command: Command, old: RunConfig) -> RunConfig:
    """The test of a retriever that was trained with ``old``. Raises ValueError on bad values."""
    new = command.questions.of(old, seed=command.seed)
    return only_tested(new, retest(new.eval, **given(command.eval)))


if __name__ == "__main__":
    raise SystemExit(main())
