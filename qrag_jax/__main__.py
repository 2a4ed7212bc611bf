"""Index text once, then ask it: python -m qrag_jax index build RETRIEVER SOURCE INDEX; python -m qrag_jax ask INDEX "question"."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from qrag_jax.retrieve.index import Index
from qrag_jax.retrieve.retriever import Retriever
from qrag_jax.retrieve.storage import Dtype
from qrag_jax.retrieve.types import Step
from qrag_jax.rundir.log import say as say_line

DONE, BAD_INPUT = 0, 64
CURVE = 400  # stretches of the score curve in a trace
SHOWN = 20  # sources that info lists


@dataclass(frozen=True)
class Build:
    """Cut text into chunks, embed them, write an index. Killed, the same command goes on where it was."""

    retriever: tyro.conf.Positional[Path]
    """Run directory or export of the retriever."""
    source: tyro.conf.Positional[Path]
    """Text file, or folder of .txt and .md files at any depth."""
    index: tyro.conf.Positional[Path]
    """Folder to write."""
    dtype: Dtype = "float32"
    """Vectors: float32 exact; bfloat16 half the bytes; int8 a quarter."""


@dataclass(frozen=True)
class Add:
    """Append text to an index. Killed, the old index stays valid and the same command goes on."""

    retriever: tyro.conf.Positional[Path]
    """The retriever that the index was built with."""
    source: tyro.conf.Positional[Path]
    """Text file, or folder of .txt and .md files at any depth."""
    index: tyro.conf.Positional[Path]
    """Folder of the index."""


@dataclass(frozen=True)
class Info:
    """Say what an index holds."""

    index: tyro.conf.Positional[Path]
    """Folder of the index."""
    verify: bool = False
    """Read every file and compare checksums."""


@dataclass(frozen=True)
class Indexing:
    """Build, extend, describe an index."""

    command: Annotated[
        Annotated[Build, tyro.conf.subcommand("build", prefix_name=False)]
        | Annotated[Add, tyro.conf.subcommand("add", prefix_name=False)]
        | Annotated[Info, tyro.conf.subcommand("info", prefix_name=False)],
        tyro.conf.arg(name=""),
    ]


@dataclass(frozen=True)
class Ask:
    """Search an index in several steps, each shown as it is made."""

    index: tyro.conf.Positional[Path]
    """Folder of the index."""
    question: tyro.conf.Positional[str]
    """The question."""
    retriever: Path | None = None
    """Run directory or export of the retriever; none: where it was when the index was built."""
    budget: int = 4
    """Chunks to pick."""
    beam: int = 1
    """Paths to keep at each step; 1 is greedy. The steps of the best path are shown at the end."""
    stop: bool = False
    """End at the first pick below the calibrated threshold."""
    trace: Path | None = None
    """HTML page to write, with every step and its scores."""
    support: tuple[int, ...] = ()
    """Chunks known to hold the answer: marked here and in the trace."""


Command = Annotated[Indexing, tyro.conf.subcommand("index")] | Annotated[Ask, tyro.conf.subcommand("ask")]


def main(args: Sequence[str] | None = None, say: Callable[[str], None] = say_line) -> int:
    """Runs a command and returns its exit code: 0 done, 64 bad input (one line on stderr says what)."""
    try:
        options = (tyro.conf.FlagCreatePairsOff,)
        command = tyro.cli(Command, prog="python -m qrag_jax", description=__doc__, args=args, config=options)
    except SystemExit as stop:
        return BAD_INPUT if stop.code else DONE
    try:
        _run(command.command if isinstance(command, Indexing) else command, say)
    except ValueError as error:
        sys.stderr.write(f"error: {' '.join(str(error).split())}\n")
        return BAD_INPUT
    return DONE


def _run(command: Build | Add | Info | Ask, say: Callable[[str], None]) -> None:
    if isinstance(command, Ask):
        _ask(command, say)
    elif isinstance(command, Info):
        _info(Index.open(command.index, verify=command.verify), command.verify, say)
    elif isinstance(command, Build):
        retriever = Retriever.from_pretrained(command.retriever)
        index = Index.build(retriever, command.source, command.index, dtype=command.dtype, retriever_path=command.retriever)
        say(f'{index.path}: {len(index):,} chunks; ask it: python -m qrag_jax ask {index.path} "question"')
    else:
        index = Index.open(command.index)
        grown = index.add(Retriever.from_pretrained(command.retriever), command.source)
        say(f"{grown.path}: {len(grown):,} chunks, {len(grown) - len(index):,} of them new")


def _info(index: Index, verified: bool, say: Callable[[str], None]) -> None:
    meta = index.meta
    files = [file for shard in meta.shards for file in shard.files.values()]
    size = sum(file.bytes for file in files)
    model = meta.model
    say(f"{index.path}: {len(index):,} chunks by {model.chunk_by}, {model.chunk_tokens} tokens embedded of each, {size / 1e6:,.1f} MB")
    say(f"vectors: {meta.dtype}, {meta.width} wide, in {len(meta.shards)} shards")
    say(f"model: {meta.model.hash[:12]}, loaded from {meta.model.retriever or 'a place that was not recorded'}")
    for source in meta.sources[:SHOWN]:
        say(f"source: {source.name or 'given chunks'}, {source.characters:,} characters, {source.chunks:,} chunks")
    if len(meta.sources) > SHOWN:
        say(f"and {len(meta.sources) - SHOWN:,} more sources")
    if verified:
        say(f"verified: the checksums of {len(files)} files are right")


def _ask(command: Ask, say: Callable[[str], None]) -> None:
    index = Index.open(command.index)
    for chunk in command.support:
        if not 0 <= chunk < len(index):
            raise ValueError(f"support {chunk}: must be in 0..{len(index) - 1}, the chunks of {index.path}")
    retriever = Retriever.from_pretrained(_home(index, command.retriever))
    bins = min(CURVE, len(index)) if command.trace else 0
    steps = []
    for step in retriever.stream(command.question, index, command.budget, beam=command.beam, stop=command.stop, bins=bins):
        steps.append(step)
        say(_line(step, step.pick.chunk in command.support))
    say(f"{len(steps)} steps in {sum(step.seconds for step in steps):.3f} s over {len(index):,} chunks")
    say(_ending(steps, retriever.threshold))
    if command.trace:
        from qrag_jax.retrieve.trace import write_trace

        out = write_trace(
            command.trace,
            question=command.question,
            steps=steps,
            chunks=len(index),
            threshold=retriever.threshold,
            positions=retriever.config.qhead.positions,
            source=str(index.path),
            support=command.support,
        )
        say(f"{out}: trace written")


def _home(index: Index, named: Path | None) -> Path:
    if named is not None:
        return named
    recorded = index.meta.model.retriever
    if recorded is None:
        raise ValueError(f"{index.path}: does not say where its retriever is; name it with --retriever")
    if not Path(recorded).is_dir():
        raise ValueError(f"{recorded}: the retriever of {index.path} is no longer there; name it with --retriever")
    return Path(recorded)


def _line(step: Step, support: bool) -> str:
    pick = step.pick
    place = "" if pick.source is None else f"  {pick.source}:{pick.start}-{pick.end}"
    below = "  below the stop threshold" if step.stop else ""
    mark = "  support" if support else ""
    text = " ".join(pick.text.split())
    return f"{step.number + 1:>3}  Q {pick.q:7.3f}  chunk {pick.chunk}{place}  {step.seconds:.3f} s{below}{mark}\n     {text}"


def _ending(steps: Sequence[Step], threshold: float | None) -> str:
    if threshold is None:
        return "stop threshold: this retriever has none"
    kept = next((t for t, step in enumerate(steps) if step.stop), len(steps))
    return f"stop threshold {threshold:.3f}: " + (f"keeps the first {kept}" if kept < len(steps) else "no pick is below it")


if __name__ == "__main__":
    raise SystemExit(main())
