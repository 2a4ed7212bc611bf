"""Searches an open corpus: the paragraphs of all test questions are one collection, and each question is searched in all of it.

    python -m experiments.open runs/hotpotqa-all-minilm --run-dir runs/hotpotqa-open
    python -m experiments.open --benchmark musique --data-dir DIR --run-dir runs/musique-open       # no retriever: the baselines alone
    python -m experiments.open RUN --run-dir OUT --distractors passages.jsonl --beams 1 4 --encoders minilm DIR/my-encoder

It compares a trained retriever with BM25, with one look of an encoder, with that encoder asked again with its first pick, and with BM25 and
one look fused by reciprocal ranks. Scores: all-support@k (all supporting chunks are among k picks) and recall@k, with 95 % intervals
(bootstrap over questions), for each number of supporting chunks; and how far each way of using the retriever is ahead of the best baseline.

The stop threshold, and which way is used for each number of picks, are chosen on validation questions, in a corpus filled up with training
paragraphs to the size of the test's. RUN_DIR gets open.json, open.md, open.png, and the picks of every question in episodes/.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import tyro

from experiments.baselines import untuned
from experiments.cli import execute, read, typed
from experiments.open.report import NAME, write_report
from experiments.options import OWN, Questions
from qrag_jax.config import RunConfig, benchmarks
from qrag_jax.config.parse import LARGEST
from qrag_jax.rundir.files import check_folder
from qrag_jax.rundir.lock import only_writer

PRESET, VALIDATION = "minilm", 200


@dataclass(frozen=True)
class Command:
    run_dir: Annotated[Path, tyro.conf.arg(aliases=["--out"])]
    """Folder for open.json, open.md, open.png and episodes/; it must be new, empty, or hold such results already."""
    retriever: tyro.conf.Positional[str | None] = None
    """The retriever: a run directory, an export folder, gs://BUCKET/NAME, or OWNER/NAME[@REVISION] on the hub. Omitted: baselines alone."""
    questions: Annotated[Questions, tyro.conf.arg(name="")] = Questions()  # noqa: RUF009  (frozen)
    preset: str | None = None
    """Without a retriever: the settings (longest chunk and question, encoder) of a preset, a .json or .yaml file, or a run.
    Default: minilm."""
    baselines_only: bool = False
    """Search with the baselines alone. A retriever then only gives questions, encoder and lengths."""
    asked: Annotated[int | None, tyro.conf.arg(name="questions")] = None
    """At most so many test questions. Default: all."""
    split: Literal["test", "validation"] = "test"
    """The questions that are scored. Choose settings on validation."""
    distractors: Path | None = None
    """More passages for the corpus: a .jsonl file of {"title": ..., "text": ...}, or a .json list of them. The title is optional."""
    picks: tuple[int, ...] = (2, 4, 6)
    """Numbers of picks at which all-support is measured. The retriever makes the largest of them in one search."""
    recall: tuple[int, ...] = (2, 5, 10)
    """Numbers of picks at which recall is measured. After its own picks, the retriever adds those of its first look."""
    beams: tuple[int, ...] | None = None
    """Beam widths of the retriever's search, each measured. Greedy search (1) always is. A width of 4 takes some four times as long."""
    encoders: tuple[str, ...] = ()
    """Encoders of the baselines: minilm, a folder of sentence-transformers, or a hub name. Default: the one the retriever started from."""
    similarity: Literal["cosine", "dot"] = "cosine"
    """Similarity of the encoders, as they were trained: dot for contriever, cosine for most others."""
    validation_questions: int | None = None
    """Validation questions for the choices above. 0: no choice; the retriever's own stop threshold. Default: 200."""
    seed: Annotated[int | None, OWN] = None
    """Seed of the questions and of the bootstrap."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code: 0 done, 64 bad input."""
    return execute(lambda: run(read(Command, argv, "experiments.open", __doc__ or "")), typed(Command))


def run(command: Command) -> None:
    from experiments.open.measure import Test, measure
    from qrag_jax.retrieve.retriever import Retriever
    from qrag_jax.rundir.log import say

    check(command)
    retriever = None if command.retriever is None else Retriever.from_pretrained(command.retriever)
    config = configuration(command, None if retriever is None else retriever.config)
    test = Test(
        config=config,
        split=command.split,
        questions=command.asked,
        distractors=command.distractors,
        picks=tuple(sorted(command.picks)),
        recall=tuple(sorted(command.recall)),
        beams=command.beams or (),
        encoders=command.encoders,
        similarity=command.similarity,
        validation_questions=VALIDATION if command.validation_questions is None else command.validation_questions,
        vocabulary=Path(command.retriever or command.preset or PRESET),
    )
    with only_writer(command.run_dir):
        found = measure(test, None if command.baselines_only else retriever, command.run_dir / "episodes")
        text = write_report(command.run_dir, found)
    say(f"\n{text}\n\nresults are in {command.run_dir}")


def check(command: Command) -> None:
    """Raises ValueError, before anything is loaded, on values that cannot be used, and on a folder that holds something else."""
    for name in ("picks", "recall", "beams"):
        values = getattr(command, name)
        if values is None:
            continue
        if not values or min(values) < 1 or len(set(values)) != len(values):
            raise ValueError(f"{name} = {values}: must be one or more different numbers >= 1")
    if max(*command.picks, *command.recall) > 100:
        raise ValueError("picks and recall: must be <= 100, the chunks that are kept of each order")
    if command.asked is not None and command.asked < 1:
        raise ValueError(f"questions = {command.asked}: must be >= 1; omit it to ask all of them")
    if command.retriever is not None and command.preset is not None:
        raise ValueError(f"preset = {command.preset!r}: the retriever has its own settings; give one of the two")
    searched = command.retriever is not None and not command.baselines_only
    for name in ("beams", "validation_questions"):
        if not searched and getattr(command, name) is not None:
            raise ValueError(f"{name} = {getattr(command, name)}: only for the search of a retriever; omit it for the baselines")
    if command.validation_questions is not None and command.validation_questions < 0:
        raise ValueError(f"validation_questions = {command.validation_questions}: must be >= 0; 0 chooses nothing")
    if len(set(command.encoders)) != len(command.encoders):
        raise ValueError(f"encoders = {command.encoders}: name each encoder once")
    check_folder(command.run_dir)
    if command.run_dir.exists() and any(command.run_dir.glob("[!.]*")) and not (command.run_dir / NAME).exists():
        raise ValueError(f"{command.run_dir}: not empty and holds no {NAME}; choose another --run-dir")


def configuration(command: Command, old: RunConfig | None) -> RunConfig:
    """The settings of the retriever, or of the preset, with the questions of the command. Documents may be of any length.

    Raises ValueError on bad values, and on benchmarks whose documents are made to length: their questions share no corpus.
    """
    refuse_mixture(command.questions.benchmark or "")
    config = (
        command.questions.of_preset(command.preset or PRESET, command.seed) if old is None else command.questions.of(old, seed=command.seed)
    )
    refuse_mixture(config.data.benchmark)
    if benchmarks.made_to_length(config.data.benchmark):
        fit = [name for name, known in benchmarks.BENCHMARKS.items() if not known.made_to_length]
        raise ValueError(
            f"data.benchmark = {config.data.benchmark!r}: its documents are made for each question, so they are no corpus; "
            f"choose with --benchmark: {', '.join(fit)}"
        )
    return replace(untuned(config), data=replace(config.data, chunks=LARGEST))


def refuse_mixture(benchmark: str) -> None:
    """Raises ValueError on a mixture: its parts have corpora of their own."""
    if "+" in benchmark:
        raise ValueError(f"data.benchmark = {benchmark!r}: is a mixture; name one of its parts with --benchmark")


if __name__ == "__main__":
    raise SystemExit(main())
