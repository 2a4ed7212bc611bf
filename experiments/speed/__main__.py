"""Measures the time and memory of building and searching an index on this CPU, compared with alternatives on the same data.

    python -m experiments.speed --run-dir runs/speed --data-dir DIR
    python -m experiments.speed --run-dir runs/speed-small --build-chunks 1k 4k --tokens 1k 10k 100k

It measures: index builds of several sizes; sentence-transformers with the same weights on the same texts; a search step, compared with
rotating every embedding again in NumPy and in PyTorch and with the plain dot product; other positions, storage types and batch sizes; whole
questions; peak memory. Alternatives are measured in turn (A B A B ...); figures are medians, and ratios are ratios of medians. Nothing else
should run on the machine meanwhile. The results are speed.json, speed.md and speed.png in RUN_DIR. The default sizes take about 15 minutes
on two cores, and 2 GB of disk while the command runs.
"""

from __future__ import annotations

import itertools
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.cli import execute, read, typed
from qrag_jax.config.lengths import context_chunks, format_tokens, parse_tokens
from qrag_jax.rundir.files import check_folder

QUESTIONS = 32


@dataclass(frozen=True)
class Command:
    run_dir: Path
    """Folder for speed.json, speed.md and speed.png. Its subfolder .scratch holds the indexes while the command runs."""
    data_dir: str | None = None
    """Folder with books/train/*.txt and books/test/*.txt; none: the text of Python's documentation, repeated as often as needed."""
    retriever: Path | None = None
    """Run directory or export of the retriever; none: an untrained BERT with one layer of width 384, 6 heads and an MLP of width 768."""
    build_chunks: tuple[str, ...] = ("10k", "100k", "400k")
    """Sizes of the indexes to build; the largest one is searched."""
    tokens: tuple[str, ...] = ("1k", "10k", "100k", "1m", "10m")
    """Context lengths to search. Each is the beginning of the largest index."""
    compare_chunks: int = 4096
    """Number of texts that this library and sentence-transformers embed."""
    minilm_chunks: int = 1024
    """The same, with the weights of all-MiniLM-L6-v2."""
    matmul: int = 2048
    """Rows of the square matrices whose product measures the machine's peak speed."""
    repeats: int = 5
    """Samples per figure. Calls that take seconds get fewer, at least 3; index builds as many as make 100k chunks, at least 1."""

    def sizes(self) -> list[int]:
        """Chunks of the builds, smallest first. Raises ValueError on bad fields."""
        for name in ("compare_chunks", "minilm_chunks", "matmul", "repeats"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)}: must be 1 or more")
        if not self.build_chunks or not self.tokens:
            raise ValueError("build_chunks and tokens: give at least one size each")
        try:
            sizes = sorted({parse_tokens(text) for text in self.build_chunks})
        except ValueError:
            raise ValueError(f"build_chunks = {' '.join(self.build_chunks)}: must be positive numbers such as 400, 10k or 1m") from None
        for text in self.tokens:
            if not 10 <= (chunks := context_chunks(parse_tokens(text))) <= sizes[-1]:
                raise ValueError(f"tokens {text} = {chunks} chunks: must be in 10..{sizes[-1]}, the largest of build_chunks")
        return sizes


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code: 0 done, 64 bad input."""
    return execute(lambda: run(read(Command, argv, "experiments.speed", __doc__ or "")), typed(Command))


def run(command: Command) -> None:
    sizes = command.sizes()
    check_folder(command.run_dir)
    import jax

    from experiments.speed import plots
    from experiments.speed.report import markdown
    from qrag_jax.rundir.files import write_json, write_text
    from qrag_jax.rundir.log import say

    if jax.default_backend() != "cpu":
        raise ValueError(f"JAX runs on {jax.default_backend()!r}: this command measures CPUs only; set JAX_PLATFORMS=cpu")
    scratch = command.run_dir / ".scratch"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    try:
        report = measure(command, sizes, scratch)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    write_json(command.run_dir / "speed.json", report)
    write_text(command.run_dir / "speed.md", markdown(report))
    plots.speed(report, command.run_dir / "speed.png")
    say(f"\n{markdown(report)}\nspeed.json, speed.md and speed.png are in {command.run_dir}")


def measure(command: Command, sizes: Sequence[int], scratch: Path) -> dict[str, Any]:
    """The content of speed.json. A figure that could not be measured is null, with a reason."""
    from experiments.speed import encoders, memory
    from experiments.speed import measures as m
    from experiments.speed.inputs import given_or_untrained, many_texts
    from experiments.speed.timing import describe_machine
    from qrag_jax.data.text.haystack import load_haystack
    from qrag_jax.retrieve.retriever import Retriever
    from qrag_jax.rundir.log import progress, say

    start = time.perf_counter()
    say("reading the haystack")
    texts, haystack = many_texts(command.data_dir, max(sizes[-1], command.compare_chunks, command.minilm_chunks))
    asked = list(itertools.islice(itertools.cycle(load_haystack(command.data_dir, "validation", QUESTIONS).sentences), QUESTIONS))
    export = given_or_untrained(command.retriever, texts, scratch / "retriever")
    retriever = Retriever.from_pretrained(export)
    say("the machine")
    machine = describe_machine(command.matmul, command.repeats)
    peak = max(machine["matmul"][name]["gflops"] for name in ("jax", "numpy"))
    say(f"building indexes of {', '.join(map(str, sizes))} chunks")
    rows, index = encoders.build(export, texts, sizes, command.repeats, scratch, peak)
    say("comparing with sentence-transformers")
    few, fewer = texts[: command.compare_chunks], texts[: command.minilm_chunks]
    compare = [
        encoders.compare_encoders("this retriever", export, few, command.repeats, scratch / "torch"),
        encoders.compare_minilm(retriever.config.data, fewer, command.repeats, scratch),
    ]
    lengths = {tokens: m.FirstChunks(index, context_chunks(tokens)) for tokens in sorted(set(map(parse_tokens, command.tokens)))}
    longest = lengths[max(lengths)]
    ask = asked[0]
    search = [
        {"tokens": tokens, **m.steps(retriever, document, ask, command.repeats)}
        for tokens, document in progress(lengths.items(), desc="a step", unit="length", leave=False)
    ]
    questions = [
        {"tokens": tokens, **m.whole_searches(retriever, document, ask, command.repeats)}
        for tokens, document in progress(lengths.items(), desc="questions", unit="length", leave=False)
    ]
    say("positions, batches, storage, memory")
    config = retriever.embedder.config
    report: dict[str, Any] = {
        "schema": 1,
        "machine": machine,
        "settings": {"tokens": list(map(format_tokens, lengths)), "build_chunks": list(sizes), "repeats": command.repeats},
        "retriever": {
            "source": "untrained" if command.retriever is None else str(command.retriever),
            "note": "the time of a scan does not depend on the values of the vectors",
            "width": config.width,
            "chunk_tokens": retriever.config.data.chunk_tokens,
        },
        "haystack": haystack,
        "build": rows,
        "build_flops": encoders.FLOPS,
        "compare": compare,
        "search": search,
        "positions": m.other_positions(retriever, longest, ask, command.repeats),
        "batches": m.batches(retriever, longest, asked, command.repeats),
        "storage": m.storage(retriever, longest, asked, command.repeats, scratch),
        "questions": questions,
        "memory": memory.memory(export, index.path, ask),
    }
    return report | {"ratios": _ratios(report), "seconds": time.perf_counter() - start}


def _ratios(report: dict[str, Any]) -> dict[str, float | None]:
    """The most telling figures: searches at the longest length, builds of the largest index."""
    search, build, (ours, minilm) = report["search"][-1], report["build"][-1], report["compare"]
    return {
        "step_over_plain_dot": search["step_over_plain_dot"],
        "textbook_over_step": search["textbook_over_step"],
        "numpy_over_step": search["numpy_over_step"],
        "pytorch_over_step": search["pytorch_over_step"],
        "sentence_transformers_over_build": ours["theirs_over_ours"],
        "sentence_transformers_over_build_minilm": minilm["theirs_over_ours"],
        "build_linearity": build["over_smallest"],
        "build_share_of_peak": build["share_of_peak"],
        "memory_over_index": report["memory"]["ratio"],
    }


if __name__ == "__main__":
    raise SystemExit(main())
