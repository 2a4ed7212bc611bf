"""Measures a search step over each kind of stored vectors (`--dtype`): real vectors of an index, repeated with noise to larger sizes.

    qrag index build DOCS docs.index --retriever minilm-multihop
    python -m experiments.speed.exact --run-dir runs/speed-exact --index docs.index --questions questions.txt
    python -m experiments.speed.exact --run-dir runs/small --index docs.index --chunks 1k 20k --repeats 3

Times are measured in turn (A B A B ...), medians; Q is compared for all questions. The figures of int8-exact include how many rows a step
reads in float32. "Blocks skipped": of blocks of neighbouring rows, the share whose bound (the inner product with their mean, plus |q| times
their radius) is below the tenth best Q, so that no row of them had to be read. The results are exact.json and exact.md in RUN_DIR. 400k
chunks of width 384 take 1.9 GB of disk while the command runs, 4m chunks 14 GB (float32 and int8-exact only).
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from experiments.cli import execute, read, typed
from qrag_jax.config.lengths import parse_tokens
from qrag_jax.rundir.files import check_folder


@dataclass(frozen=True)
class Command:
    run_dir: Path
    """Folder for exact.json and exact.md. Its subfolder .scratch holds the indexes while the command runs."""
    index: Path
    """A finished index of float32 or int8-exact vectors, whose retriever is still where it was."""
    questions: Path | None = None
    """A text file with one question a line; none: sentences of --data-dir."""
    data_dir: str | None = None
    """Folder with books/train/*.txt, for the questions; none: the text of Python's documentation."""
    chunks: tuple[str, ...] = ("20k", "400k")
    """Sizes. Rows past the index's own are its rows again, with noise."""
    noise: float = 0.1
    """Length of the noise, compared with the row's."""
    count: int = 200
    """Number of questions."""
    repeats: int = 9
    """Samples of each time."""

    def sizes(self) -> list[int]:
        """The sizes, in order. Raises ValueError on bad fields."""
        for name in ("count", "repeats"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)}: must be 1 or more")
        if not 0 <= self.noise <= 1:
            raise ValueError(f"noise = {self.noise:g}: must be in 0..1")
        try:
            sizes = sorted({parse_tokens(text) for text in self.chunks})
        except ValueError:
            sizes = []
        if not sizes or sizes[0] < 100:
            raise ValueError(f"chunks = {' '.join(self.chunks) or 'none'}: must be numbers of 100 or more, such as 400, 10k or 1m")
        return sizes


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code: 0 done, 64 bad input."""
    return execute(lambda: run(read(Command, argv, "experiments.speed.exact", __doc__ or "")), typed(Command))


def run(command: Command) -> None:
    sizes = command.sizes()
    check_folder(command.run_dir)
    from experiments.speed.exact_measures import markdown, measure
    from experiments.speed.inputs import read_questions
    from qrag_jax.retrieve.index import Index
    from qrag_jax.retrieve.retriever import Retriever
    from qrag_jax.rundir.files import write_json, write_text
    from qrag_jax.rundir.log import say

    index = Index.open(command.index)
    if index.meta.dtype not in ("float32", "int8-exact"):
        raise ValueError(f"{command.index}: holds {index.meta.dtype} vectors; this command needs an index of float32 or int8-exact")
    asked = read_questions(command.questions, command.data_dir, command.count)
    scratch = command.run_dir / ".scratch"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    try:
        report = measure(index, Retriever.of_index(index), asked, sizes, command.noise, command.repeats, scratch)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    write_json(command.run_dir / "exact.json", report)
    write_text(command.run_dir / "exact.md", markdown(report))
    say(f"\n{markdown(report)}\nexact.json and exact.md are in {command.run_dir}")


if __name__ == "__main__":
    raise SystemExit(main())
