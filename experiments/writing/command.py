"""Writes the questions of ``python -m experiments.own --documents`` and tells what they cost."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from experiments.writing.folder import About, digest, is_written, read_passages, write_folder
from experiments.writing.links import Linker, in_splits
from experiments.writing.questions import Meter, Rejected, Written, write_questions
from qrag_jax.config import RunConfig
from qrag_jax.models.tokenizer import TextTokenizer
from qrag_jax.reader.make import make_reader
from qrag_jax.retrieve.chunks import Chunk
from qrag_jax.retrieve.places import place
from qrag_jax.rundir.log import progress, say
from qrag_jax.train.training import WRITTEN

SHOWN = 10
"""Questions that are shown before more are written."""
ANSWER_TOKENS = 96
"""Longest answer of the model: a question and its answer."""


@dataclass(frozen=True)
class Wish:
    """What is written: ``questions`` questions over ``documents``. ``yes``: without asking after the first ten."""

    documents: Path
    questions: int
    yes: bool


def written(wish: Wish, config: RunConfig, tokenizer: TextTokenizer, run_dir: Path) -> Path | None:
    """The folder of the questions, which are written unless they are there; None if the user does not want more than the first ten.

    Raises ValueError when questions of other documents or settings are there, or too few are kept; ReaderError when the model cannot be
    reached: what it has said so far is kept.
    """
    out = run_dir / WRITTEN / "questions"
    passages = read_passages(wish.documents, tokenizer, config.data.chunk_tokens)
    about = About(digest(passages), len(passages), config.eval.reader, config.train.seed, wish.questions, config.data.chunks)
    if is_written(out, about):
        say(f"{out}: the questions of these {len(passages):,} passages are there")
        return out
    reader = make_reader(replace(config.eval, reader_tokens=ANSWER_TOKENS), run_dir / WRITTEN)
    assert reader is not None
    meter, began = Meter(reader), time.monotonic()
    linker = Linker([chunk.text for chunk in passages], [chunk.source for chunk in passages])
    outcomes = write_questions(in_splits(linker.links(config.train.seed)), [chunk.text for chunk in passages], meter)
    say(f"{wish.documents}: {len(passages):,} passages; {config.eval.reader} writes {wish.questions} questions that need several of them")
    kept = _collect(outcomes, passages, wish, lambda: f"{meter}, {time.monotonic() - began:.0f} s")
    if kept is None:
        return None
    counts = write_folder(out, passages, kept, about)
    say(f"{out}: {', '.join(f'{count} for {split}' for split, count in counts.items())}; {meter}, {time.monotonic() - began:.0f} s")
    return out


def _collect(
    outcomes: Iterator[Written | Rejected], passages: Sequence[Chunk], wish: Wish, cost: Callable[[], str]
) -> list[Written] | None:
    """The questions that are kept; None if the user has seen ten and wants no more. Says why the others were not kept."""
    kept: list[Written] = []
    reasons: Counter[str] = Counter()
    bar = progress(total=wish.questions, desc="writing", unit="question", leave=False)
    with bar:
        for outcome in outcomes:
            if isinstance(outcome, Rejected):
                reasons[outcome.reason] += 1
            else:
                kept.append(outcome)
                bar.update()
                if len(kept) == min(SHOWN, wish.questions):
                    _show(kept, passages)
                    if not _goes_on(wish, len(kept) + reasons.total(), cost()):
                        return None
            bar.set_postfix_str(f"{len(kept)} of {len(kept) + reasons.total()} kept")
            if len(kept) == wish.questions:
                break
    if reasons:
        say(f"not kept: {', '.join(f'{count} {reason}' for reason, count in reasons.most_common())}")
    if len(kept) < wish.questions:
        say(f"kept: {len(kept)}, not {wish.questions}: all passages that share a rare word were tried")
    return kept


def _show(kept: Sequence[Written], passages: Sequence[Chunk]) -> None:
    for one in kept:
        where = "; ".join(place(passages[number]) for number in one.link.passages)
        say(f"  {one.question}")
        say(f"    {one.answer}  ({where})")


def _goes_on(wish: Wish, proposed: int, cost: str) -> bool:
    """Asks the user, unless there is no more to write. Raises ValueError when there is nobody to ask."""
    say(
        f"these {SHOWN} were kept of {proposed} proposed: {cost}; {wish.questions} would cost about {wish.questions / SHOWN:.0f} times that"
    )
    if wish.yes or wish.questions <= SHOWN:
        return True
    if not sys.stdin.isatty():
        raise ValueError("--yes is missing, and there is no terminal to ask at: add it to go on; what was asked so far is not asked again")
    return input("Write the others? [y/N] ").strip().lower() in ("y", "yes")
