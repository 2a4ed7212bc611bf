"""Measures `qrag serve` under load on this machine: questions per second, times, memory, and a restart in the middle.

    python -m experiments.speed.serve --run-dir runs/speed-serve --data-dir DIR
    python -m experiments.speed.serve --run-dir runs/speed-serve --chunks 10k --clients 1 4 --seconds 5

The server is a process of its own, and so are its clients: threads that ask one question after another. Every answer is compared with a
direct search of the same question. At the end, the server is stopped by SIGTERM under the load of the most clients, and started again on
the same port; a client that is refused asks again. The results are serve.json and serve.md in RUN_DIR. Server and clients share the cores
of this machine, so run nothing else meanwhile. The default sizes take about 4 minutes on two cores, and 1 GB of disk. Chunks are sentences,
and their vectors are drawn: what a search takes does not depend on their values.
"""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.cli import execute, read, typed
from qrag_jax.config.lengths import parse_tokens
from qrag_jax.rundir.files import check_folder


@dataclass(frozen=True)
class Command:
    run_dir: Path
    """Folder for serve.json and serve.md."""
    data_dir: str | None = None
    """Folder with books/train/*.txt; none: the text of Python's documentation, repeated as often as needed."""
    index: Path | None = None
    """An index to serve, or the folder in which to keep the one that is built; none: it is removed at the end."""
    chunks: str = "400k"
    """Size of the index to build."""
    clients: tuple[int, ...] = (1, 8, 32)
    """Clients at once, in turn."""
    seconds: float = 20.0
    """How long each number of clients asks."""
    budget: int = 4
    """Picks of each question."""
    questions: int = 64
    """Different questions."""

    def __post_init__(self) -> None:
        for name in ("budget", "questions"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)}: must be 1 or more")
        if not self.clients or min(self.clients) < 1:
            raise ValueError(f"clients = {' '.join(map(str, self.clients)) or 'none'}: give one or more numbers of 1 or more")
        if not 0 < self.seconds < float("inf"):
            raise ValueError(f"seconds = {self.seconds:g}: must be above 0")
        try:
            parse_tokens(self.chunks)
        except ValueError:
            raise ValueError(f"chunks = {self.chunks}: must be a positive number such as 400, 10k or 1m") from None


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code: 0 done, 64 bad input."""
    return execute(lambda: run(read(Command, argv, "experiments.speed.serve", __doc__ or "")), typed(Command))


def run(command: Command) -> None:
    check_folder(command.run_dir)
    from experiments.speed.serve_report import markdown
    from qrag_jax.rundir.files import write_json, write_text
    from qrag_jax.rundir.log import say

    scratch = command.run_dir / ".scratch"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    try:
        report = measure(command, scratch)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    write_json(command.run_dir / "serve.json", report)
    write_text(command.run_dir / "serve.md", markdown(report))
    say(f"\n{markdown(report)}\nserve.json and serve.md are in {command.run_dir}")


def measure(command: Command, scratch: Path) -> dict[str, Any]:
    """The content of serve.json."""
    from experiments.speed.load import Asker, Served, steady, through_a_restart
    from experiments.speed.timing import describe_machine
    from qrag_jax.data.text.haystack import load_haystack
    from qrag_jax.retrieve.retriever import Retriever
    from qrag_jax.rundir.log import progress, say

    index = _index(command, scratch)
    retriever = Retriever.of_index(index)
    asked = list(
        itertools.islice(itertools.cycle(load_haystack(command.data_dir, "validation", command.questions).sentences), command.questions)
    )
    direct = {}
    for question in progress(asked, desc="direct searches", unit="question", leave=False):
        picks = [step.pick for step in retriever.stream(question, index, command.budget)]
        direct[question] = ([pick.chunk for pick in picks], [pick.q for pick in picks])
    machine = describe_machine(1024, 3)
    with Served(index.path, command.budget, max(command.clients), scratch) as served:
        asker = Asker(served.port, direct, command.budget)
        say(f"asking for {command.seconds:g} s at a time: {', '.join(map(str, command.clients))} clients")
        asker.ask(asked[0])
        asker.close()
        rows = [steady(served, asker, clients, command.seconds) for clients in command.clients]
        say("stopping and starting the server under load")
        restart = through_a_restart(served, asker, max(command.clients), command.seconds)
    return {
        "schema": 1,
        "machine": machine,
        "settings": {"chunks": len(index), "budget": command.budget, "questions": len(direct), "seconds": command.seconds},
        "width": index.meta.width,
        "first_start_seconds": served.start_seconds[0],
        "load": rows,
        "restart": restart,
    }


def _index(command: Command, scratch: Path) -> Any:
    """The index to serve: the given one, or one of random vectors, whose values do not change how long a search takes."""
    from experiments.speed.inputs import DrawnVectors, given_or_untrained, many_texts
    from qrag_jax.retrieve.index import Index
    from qrag_jax.retrieve.retriever import Retriever
    from qrag_jax.rundir.log import say

    place = command.index or scratch / "index"
    if (place / "meta.json").is_file():
        return Index.open(place)
    say(f"building an index of {command.chunks} chunks")
    texts, _ = many_texts(command.data_dir, parse_tokens(command.chunks))
    export = given_or_untrained(None, texts, place.with_name(f"{place.name}-retriever"))
    return Index.build(DrawnVectors(Retriever.from_pretrained(export)), texts, place, retriever_path=export)


if __name__ == "__main__":
    raise SystemExit(main())
