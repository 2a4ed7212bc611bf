"""Compares an index in each vector store (`--store`) with the same index in a folder: picks of whole searches, Q, and the cost of a step.

    python -m experiments.speed.stores --run-dir runs/stores --documents DOCS --retriever minilm-multihop --questions questions.txt \\
        --stores lancedb:runs/lance duckdb:runs/duck.db qdrant:runs/qdrant postgresql://localhost/test

Each question is searched with and without relative positions, with no filter and with each of --filters; then again after every fifth
document was removed, and after it was added again. A step is timed on the documents, and on --chunks chunks: their vectors, repeated with
noise. Times are measured in turn (A B A B ...), medians; nothing else should run on the machine. The results are stores.json and stores.md
in RUN_DIR. The tables stay in the stores; to delete one, see docs/stores.md.
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
    """Folder for stores.json and stores.md. Its subfolder .scratch holds the indexes while the command runs."""
    documents: Path
    """A file or a folder, as for `qrag index build`; at least five documents."""
    retriever: str
    """As for `qrag index build`: a run directory, an export or a name."""
    stores: tuple[str, ...]
    """Places of stores, as for --store of `qrag index build`."""
    questions: Path | None = None
    """A text file with one question a line; none: sentences of --data-dir."""
    data_dir: str | None = None
    """Folder with books/train/*.txt, for the questions; none: the text of Python's documentation."""
    filters: tuple[str, ...] = ()
    """Conditions such as kind=wiki; each is a filter of its own."""
    budget: int = 4
    """Picks of a search."""
    count: int = 200
    """Number of questions."""
    chunks: tuple[str, ...] = ("400k",)
    """Sizes at which a step is timed, besides the documents' own."""
    noise: float = 0.1
    """Length of the noise, compared with the row's."""
    repeats: int = 9
    """Samples of each time."""

    def sizes(self) -> list[int]:
        """The sizes, in order. Raises ValueError on bad fields."""
        for name in ("budget", "count", "repeats"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)}: must be 1 or more")
        if not 0 <= self.noise <= 1:
            raise ValueError(f"noise = {self.noise:g}: must be in 0..1")
        if not self.stores or len(set(self.stores)) < len(self.stores):
            raise ValueError(f"stores = {' '.join(self.stores) or 'none'}: must be places, each given once")
        try:
            return sorted({parse_tokens(text) for text in self.chunks})
        except ValueError:
            raise ValueError(f"chunks = {' '.join(self.chunks)}: must be numbers such as 400, 10k or 1m") from None


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code: 0 done, 64 bad input, 75 a store cannot be reached."""
    return execute(lambda: run(read(Command, argv, "experiments.speed.stores", __doc__ or "")), typed(Command))


def run(command: Command) -> None:
    sizes = command.sizes()
    check_folder(command.run_dir)
    from experiments.speed.inputs import read_questions
    from experiments.speed.store_measures import Measures, markdown
    from qrag_jax.retrieve.retriever import Retriever
    from qrag_jax.retrieve.stores.places import checked_place
    from qrag_jax.rundir.files import write_json, write_text
    from qrag_jax.rundir.log import say

    places = [checked_place(place) for place in command.stores]
    asked = read_questions(command.questions, command.data_dir, command.count)
    retriever = Retriever.from_pretrained(command.retriever)
    scratch = command.run_dir / ".scratch"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    try:
        measures = Measures(retriever, command.documents, places, scratch)
        report = measures.report(asked, command.filters, command.budget, sizes, command.noise, command.repeats)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    write_json(command.run_dir / "stores.json", report)
    write_text(command.run_dir / "stores.md", markdown(report))
    say(f"\n{markdown(report)}\nstores.json and stores.md are in {command.run_dir}")


if __name__ == "__main__":
    raise SystemExit(main())
