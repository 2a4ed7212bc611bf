"""The passages of a folder of documents, and the folder of questions that were written over them.

train.jsonl  validation.jsonl  test.jsonl    as `python -m experiments.own --data-dir` reads them
written.json                                 what they were made from, and how: see About; the places of each question's passages
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from experiments.writing.prompts import TEMPLATE
from experiments.writing.questions import Written
from qrag_jax.data.splits import SPLITS
from qrag_jax.models.tokenizer import TextTokenizer
from qrag_jax.retrieve.chunks import Chunk
from qrag_jax.retrieve.sources import ChunkStream
from qrag_jax.retrieve.words import WordIndex, words
from qrag_jax.rundir.files import read_json, whole_folder, write_json
from qrag_jax.rundir.log import progress, say

FORMAT, VERSION = "qrag-jax-written", 1
NAME = "written.json"


@dataclass(frozen=True)
class About:
    """What questions are written from, and how. ``documents``: SHA-256 of the passages. ``seed``: of the order of the links."""

    documents: str
    passages: int
    reader: str
    seed: int
    questions: int
    chunks: int
    template: str = TEMPLATE


def read_passages(source: Path, tokenizer: TextTokenizer, max_tokens: int) -> list[Chunk]:
    """The passages of a file or a folder, each text once, in order. Says what was left out.

    Raises ValueError when there is no such file, nothing can be read, or there are too few passages to link.
    """
    stream = ChunkStream(source, tokenizer, max_tokens, "tokens")
    found: dict[str, Chunk] = {}
    with progress(desc=f"reading {source}", unit="passage", leave=False) as bar:
        for chunk in stream:
            found.setdefault(chunk.text, chunk)
            bar.update()
    for name, reason in stream.unread.items():
        say(f"{source}: {name} was not read: {reason}")
    if stream.skipped:
        say(f"{source}: left out, of a kind that is not read: {', '.join(f'{n} {kind}' for kind, n in stream.skipped.items())}")
    if len(found) < 10:
        raise ValueError(f"--documents {source}: has {len(found)} different passages; at least 10 are needed, and some hundred are better")
    return list(found.values())


def digest(passages: Sequence[Chunk]) -> str:
    """Hex SHA-256 of the passages and their places."""
    places = [(chunk.text, chunk.source, chunk.start) for chunk in passages]
    return hashlib.sha256(json.dumps(places).encode()).hexdigest()


def haystacks(passages: Sequence[Chunk], written: Sequence[Written], chunks: int) -> list[tuple[int, ...]]:
    """For each question, the numbers of the ``chunks`` passages that it is searched in, ascending: its own, and those that BM25 finds."""
    index = WordIndex.of_words(words([chunk.text for chunk in passages]))
    found = []
    for one, asked in zip(written, words([one.question for one in written]), strict=True):
        order = np.argsort(-index.scores(asked), kind="stable")[:chunks].tolist()
        others = [number for number in order if number not in one.link.passages]
        found.append(tuple(sorted((*one.link.passages, *others[: chunks - len(one.link.passages)]))))
    return found


def write_folder(out: Path, passages: Sequence[Chunk], written: Sequence[Written], about: About) -> Counter[str]:
    """Writes the questions completely or not at all; returns their number in each split. Raises ValueError if a split has none."""
    counts: Counter[str] = Counter({split: sum(one.link.split == split for one in written) for split in SPLITS})
    if missing := [split for split, count in counts.items() if not count]:
        raise ValueError(
            f"kept: {len(written)} questions, none of them for {missing[0]}: give more documents, a larger --questions, or a "
            "model that writes better questions"
        )
    lines: dict[str, list[str]] = {split: [] for split in SPLITS}
    places: dict[str, list[list[object]]] = {}
    for number, (one, chunks) in enumerate(zip(written, haystacks(passages, written, about.chunks), strict=True)):
        name, split = f"written-{number}", one.link.split
        support = [chunks.index(passage) for passage in sorted(one.link.passages)]
        record = {
            "id": name,
            "question": one.question,
            "chunks": [passages[i].text for i in chunks],
            "support": support,
            "answer": one.answer,
        }
        lines[split].append(json.dumps(record, ensure_ascii=False))
        places[name] = [[passages[i].source, passages[i].start, passages[i].end] for i in sorted(one.link.passages)]
    with whole_folder(out) as folder:
        for split in SPLITS:
            (folder / f"{split}.jsonl").write_text("".join(f"{line}\n" for line in lines[split]), encoding="utf-8")
        write_json(folder / NAME, {"format": FORMAT, "version": VERSION, "about": asdict(about), "places": places})
    return counts


def is_written(out: Path, about: About) -> bool:
    """Whether the questions of ``about`` are in the folder. Raises ValueError when it holds others, or something else."""
    if not out.exists():
        return False
    try:
        tree = read_json(out / NAME)
        known = tree["about"] if (tree["format"], tree["version"]) == (FORMAT, VERSION) else None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{out}: holds no questions that this command has written ({error}); choose another --run-dir") from error
    if known is None:
        raise ValueError(f"{out / NAME}: format {tree['format']!r}, version {tree['version']!r}: only {FORMAT}, version {VERSION}, is read")
    now = asdict(about)
    if changed := [name for name in now if known.get(name) != now[name]]:
        raise ValueError(
            f"{out}: its questions were written with another {changed[0]} ({known.get(changed[0])!r}, now {now[changed[0]]!r}); "
            "choose another --run-dir"
        )
    return True
