"""The command ``qrag ask``. In several processes, all search together; process 0 asks the reader, prints and writes."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Annotated

import jax
import tyro

from qrag_jax.config.command_line import RARE
from qrag_jax.config.parse import require
from qrag_jax.reader.make import open_reader
from qrag_jax.reader.protocol import Reader
from qrag_jax.retrieve.answering import CitedAnswer, kept_steps, least_to_fit, read_answer
from qrag_jax.retrieve.clock import SearchClock
from qrag_jax.retrieve.index import Index
from qrag_jax.retrieve.ranking import Mode
from qrag_jax.retrieve.report import answer_lines, search_tree, step_lines, stop_line
from qrag_jax.retrieve.retriever import Retriever
from qrag_jax.retrieve.trace import write_trace
from qrag_jax.retrieve.types import Step
from qrag_jax.rundir import hosts
from qrag_jax.rundir.log import aside
from qrag_jax.rundir.log import say as say_line
from qrag_jax.rundir.printable import printable

CURVE = 400  # stretches of the score curve in a trace
RECORDED = "(default: the one recorded in the index)"


@dataclass(frozen=True)
class Ask:
    """Search an index, show each pick, and let a reader answer with citations.

    Example: qrag ask docs.index "Where is the milk?" --reader openai:http://localhost:8000/v1,MODEL
    """

    index: tyro.conf.Positional[Path]
    """Folder of the index."""
    question: tyro.conf.Positional[str]
    """The question, in quotes."""
    reader: Annotated[str | None, tyro.conf.arg(metavar="READER", help_behavior_hint="(default: none, only search)")] = None
    """The LLM that answers from the picks: openai:URL,MODEL (its key in OPENAI_API_KEY), or flax:NAME (folder, .gguf file, hub name)."""
    budget: int = 4
    """How many chunks to pick."""
    mode: Annotated[Mode | None, tyro.conf.arg(metavar="MODE", help_behavior_hint="(default: multi if trained, else hybrid)")] = None
    """multi: in several steps. single: one look by the encoder's similarity. bm25: by words. hybrid: single and bm25."""
    filter: Annotated[
        tyro.conf.UseAppendAction[tuple[str, ...]],
        tyro.conf.arg(metavar="KEY=VALUE", help_behavior_hint="(default: none; may be repeated)"),
    ] = ()
    """Pick only from documents of this name or metadata, such as 'source=reports/*' or year=2024; * is any text. All filters must match."""
    stop: tyro.conf.FlagCreatePairsOff[bool] = False
    """Stop at the first pick whose Q is below the calibrated threshold."""
    trace: Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="(default: none)")] = None
    """HTML page to write, with every step and its scores."""
    json: tyro.conf.FlagCreatePairsOff[bool] = False
    """Print one JSON object instead of lines; messages go to stderr."""
    least_q: Annotated[float | None, RARE, tyro.conf.arg(metavar="Q", help_behavior_hint="(default: the calibrated one)")] = None
    """With --reader, in mode multi: if no pick reaches this Q, the answer is "not in the documents"."""
    reader_tokens: Annotated[int, RARE] = 256
    """Longest answer, in tokens of the reader."""
    reader_timeout: Annotated[float, RARE] = 120.0
    """Seconds to wait for an openai: reader before asking again."""
    beam: Annotated[int, RARE] = 1
    """How many search paths to keep at each step; 1 is greedy. With 2 or more, the steps of the best path are shown at the end."""
    retriever: Annotated[str | None, RARE, tyro.conf.arg(metavar="RUN", help_behavior_hint=RECORDED)] = None
    """The retriever that the index was built with; needed only if it has moved."""
    support: Annotated[
        tyro.conf.UseAppendAction[tuple[tuple[int, ...], ...]],
        RARE,
        tyro.conf.arg(metavar="CHUNK ...", help_behavior_hint="(default: none; may be repeated)"),
    ] = ()
    """Numbers of the chunks that are known to hold the answer; they are marked in the output and in the trace."""


def run_ask(command: Ask, say: Callable[[str], None]) -> None:
    """Prints the steps of a search as they are made and the answer as it is written, or one JSON object at the end.

    Raises ValueError on bad input, ReaderError when the reader cannot be reached.
    """
    if command.json:
        with aside():  # what is said on the way must not be in the object
            tree = _ask(command, lambda line: None)
        if hosts.is_leader():
            sys.stdout.write(json.dumps(tree, ensure_ascii=False, allow_nan=False) + "\n")
    else:
        _ask(command, say)


def _ask(command: Ask, say: Callable[[str], None]) -> dict[str, object]:
    note = partial(say_line, dim=True) if say is say_line else say
    index, retriever, reader, support = hosts.run_on_all(lambda: _opened(command))
    _join(command, index, retriever)
    mode = command.mode or retriever.usual_mode
    least = least_to_fit(mode, retriever.least_q, command.least_q)
    if mode in ("bm25", "hybrid"):
        hosts.from_leader(lambda: index.words().chunks)  # made here, since it is no part of the time of the search
        index.words()
    steps: list[Step] = []
    with SearchClock() as clock:
        found = retriever.stream(
            command.question,
            index,
            command.budget,
            mode=mode,
            beam=command.beam,
            stop=command.stop,
            bins=min(CURVE, len(index)) if command.trace else 0,
            filter=command.filter,
        )
        for step in found:
            steps.append(step)
            say(step_lines(step, mode, step.pick.chunk in support))
    if hosts.is_leader():
        _note_fewer(command, index, mode, steps)
    compiling = f", after {clock.compiling:.1f} s of compiling" if clock.compiling >= 0.05 else ""
    what = f"{len(steps)} steps" if mode == "multi" else f"{len(steps)} picks by one look"
    note(f"{what} in {sum(step.seconds for step in steps):.3f} s over {len(index):,} chunks{compiling}")
    note(stop_line(steps, mode, retriever.threshold, least))
    if command.trace and not steps:
        note(f"{command.trace}: not written, since nothing was picked")
    elif command.trace:
        written = hosts.from_leader(lambda: str(_write_trace(command, retriever, index, mode, steps, support)))
        note(f"{written}: trace written")
    tree = search_tree(command.question, index, mode, steps, retriever.threshold, least, clock)
    if command.reader is not None:
        tree["answer"] = hosts.from_leader(lambda: _answer(command, steps, reader, mode, least, say).tree())
    return tree


def _opened(command: Ask) -> tuple[Index, Retriever, Reader | None, tuple[int, ...]]:
    index = Index.open(command.index)
    support = _support(command, index)
    reader = _reader(command)
    return index, Retriever.of_index(index, command.retriever), reader, support


def _join(command: Ask, index: Index, retriever: Retriever) -> None:
    """Lets the devices of all processes hold the rows. Raises ValueError when the processes do not ask the same index the same question."""
    if hosts.is_multiprocess():
        asked = replace(command, index=Path(), reader=None, trace=None, retriever=None, json=False)
        hosts.agree(index=index.version, question=f"{asked} {command.trace is not None} {command.reader is not None}")
        retriever.devices = jax.devices()


def _reader(command: Ask) -> Reader | None:
    """On process 0 only."""
    for name in ("reader_tokens", "reader_timeout"):
        value = getattr(command, name)
        require(0 < value < float("inf"), name, value, "above 0")
    if command.reader is None:
        require(command.least_q is None, "least_q", command.least_q, "left out without --reader; it decides whether the reader is asked")
        return None
    if not hosts.is_leader():
        return None
    return open_reader(command.reader, max_new_tokens=command.reader_tokens, timeout=command.reader_timeout)


def _answer(
    command: Ask, steps: Sequence[Step], reader: Reader | None, mode: Mode, least_q: float | None, say: Callable[[str], None]
) -> CitedAnswer:
    """Shows the answer, on a terminal as it is written."""
    assert reader is not None
    live = sys.stdout.isatty() and not command.json

    def hear(piece: str) -> None:
        sys.stdout.write(printable(piece))
        sys.stdout.flush()

    say("")
    answer = read_answer(command.question, kept_steps(steps, command.stop), reader, mode=mode, least_q=least_q, hear=hear if live else None)
    say("" if live else answer.text)  # ends the line of the answer
    say("")
    for line in answer_lines(answer):
        say(line)
    return answer


def _support(command: Ask, index: Index) -> tuple[int, ...]:
    if () in command.support:
        raise ValueError("support: has no value; give numbers of chunks, as in --support 3 7")
    support = tuple(chain.from_iterable(command.support))
    for chunk in support:
        if not 0 <= chunk < len(index):
            raise ValueError(f"support {chunk}: must be in 0..{len(index) - 1}, the chunks of {index.path}")
    return support


def _note_fewer(command: Ask, index: Index, mode: Mode, steps: Sequence[Step]) -> None:
    """Says on stderr why there are fewer picks than asked for."""
    if len(steps) < command.budget and not (command.stop and steps[-1].stop):
        which = "chunks that match the filter" if command.filter else "chunks"
        which += " that share a word with the question" if mode == "bm25" else ""
        place = printable(str(index.path))
        sys.stderr.write(f"note: {len(steps)} picks, fewer than --budget {command.budget}: {place} has no more {which}\n")


def _write_trace(command: Ask, retriever: Retriever, index: Index, mode: Mode, steps: Sequence[Step], support: tuple[int, ...]) -> Path:
    positions = retriever.config.qhead.positions if mode == "multi" else "none"
    per_document = positions == "relative" and len(index.restarts) > 1
    assert command.trace is not None
    return write_trace(
        command.trace,
        question=command.question,
        steps=steps,
        chunks=len(index),
        threshold=retriever.threshold if mode == "multi" else None,
        positions="per document" if per_document else positions,
        source=str(index.path),
        support=support,
        mode=mode,
    )
