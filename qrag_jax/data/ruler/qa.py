"""RULER-QA: the paragraphs that answer a question, among any number of paragraphs of other questions.

qa_sh (single-hop) asks SQuAD 2.0 questions from ``squad/dev-v2.0.json``; questions without an answer are left out. qa_mh (multi-hop) asks
HotpotQA questions with their own ten paragraphs. The noise consists of all paragraphs of the split, in an order that depends on the seed.
Splits share no article (SQuAD) and no question (HotpotQA, where two questions sometimes share a paragraph).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from qrag_jax.data.documents import Item, Piece, TextHaystack
from qrag_jax.data.multihop.hotpotqa import HOTPOTQA
from qrag_jax.data.multihop.questions import MultihopQuestions, read_split
from qrag_jax.data.multihop.records import BadRecord, Record, check, get, get_text
from qrag_jax.data.splits import SPLITS, Split, stable_fraction
from qrag_jax.rundir.files import read_json

QA_TASKS = ("qa_sh", "qa_mh")
SQUAD_FILE = Path("squad", "dev-v2.0.json")
TEST_SHARE, VALIDATION_SHARE = 0.4, 0.1
"""Shares of the splits in SQuAD's articles."""
_PIECES, _HAYSTACK = 121, 122  # first words of the keys of independent random streams


class ParagraphQuestions:
    """Records in an order that depends on the seed. Each question has its paragraphs in its own random order."""

    def __init__(self, task: str, records: Sequence[Record], split: Split, *, seed: int) -> None:
        self.records = MultihopQuestions(f"ruler {task}", records, split, seed=seed, shuffle=False)
        self.split, self.seed = split, seed
        self.most_pieces = max(len(record.paragraphs) for record in records)

    def __len__(self) -> int:
        return len(self.records)

    def item(self, i: int) -> Item:
        record = self.records.record(i)
        draw = np.random.default_rng((self.seed, _PIECES, SPLITS.index(self.split), i))
        chunks = record.chunks()
        order = draw.permutation(len(chunks)).tolist()
        return Item(
            question=record.question,
            answer=record.answer,
            pieces=tuple(Piece(chunks[k], chunks[k]) for k in order),
            support=tuple(place for place, k in enumerate(order) if k in record.support),
        )


def load_qa(task: str, data_dir: str | None, split: Split, *, seed: int) -> tuple[ParagraphQuestions, TextHaystack]:
    """Questions and noise of a split. Raises ValueError, naming the file, if a file is missing or broken."""
    if task == "qa_mh":
        if data_dir is None:
            raise ValueError("data.data_dir: task qa_mh asks HotpotQA questions, so a folder with hotpotqa/*.json must be given")
        records = read_split(HOTPOTQA, data_dir, split, False)
        texts = tuple(chunk for record in records for chunk in record.chunks())
    else:
        if data_dir is None:
            raise ValueError(f"data.data_dir: task {task} asks SQuAD questions, so a folder with {SQUAD_FILE} must be given")
        records, texts = squad_split(Path(data_dir, SQUAD_FILE), split)
    distinct = list(dict.fromkeys(texts))
    order = np.random.default_rng((seed, _HAYSTACK, SPLITS.index(split))).permutation(len(distinct))
    return ParagraphQuestions(task, records, split, seed=seed), TextHaystack([distinct[k] for k in order])


def squad_split(path: Path, split: Split) -> tuple[tuple[Record, ...], tuple[str, ...]]:
    """Questions and all chunks of the articles of a split. The split of an article depends only on the titles."""
    articles = sorted(read_squad(path).items(), key=lambda article: (stable_fraction(article[0]), article[0]))
    test = round(TEST_SHARE * len(articles))
    train = test + max(1, round(VALIDATION_SHARE * len(articles)))
    if not 0 < test < train < len(articles):
        raise ValueError(f"{path}: {len(articles)} articles; the three splits share none, so there must be 3 or more")
    ours = {"test": articles[:test], "validation": articles[test:train], "train": articles[train:]}[split]
    return tuple(record for _, (records, _) in ours for record in records), tuple(chunk for _, (_, chunks) in ours for chunk in chunks)


@lru_cache(maxsize=4)
def read_squad(path: Path) -> dict[str, tuple[tuple[Record, ...], tuple[str, ...]]]:
    """Title -> the answerable questions of an article, each with its paragraph, and the article's chunks "title. paragraph".

    Raises ValueError('file: place: reason'). Cached for the life of the process."""
    found: dict[str, tuple[tuple[Record, ...], tuple[str, ...]]] = {}
    tree = read_json(path)
    place = "the file"
    try:
        for number, article in enumerate(get(tree, "data", list), start=1):
            place = f"article {number}"
            title = get_text(article, "title").replace("_", " ")
            if title in found:
                raise BadRecord("duplicate title", f"{title!r} is the title of an earlier article")
            records: list[Record] = []
            chunks: list[str] = []
            for row, paragraph in enumerate(get(article, "paragraphs", list), start=1):
                place = f"article {number} ({title}), paragraph {row}"
                context = get_text(paragraph, "context")
                chunks.append(f"{title}. {context}")
                records += [_question(qa, title, context) for qa in get(paragraph, "qas", list) if not get(qa, "is_impossible", bool)]
            found[title] = (tuple(records), tuple(chunks))
    except BadRecord as error:
        raise ValueError(f"{path}: {place}: {error}") from error
    return found


def _question(qa: Any, title: str, context: str) -> Record:
    answers = [get_text(check(answer, dict, "answer"), "text") for answer in get(qa, "answers", list)]
    if not answers:
        raise BadRecord("no answer", f"question {get_text(qa, 'id')!r} has none, but is_impossible is false")
    for answer in answers:
        if answer not in context:
            raise BadRecord("answer not in its paragraph", f"{answer!r}, of question {get_text(qa, 'id')!r}")
    aliases = tuple(answer for answer in dict.fromkeys(answers) if answer != answers[0])
    return Record(get_text(qa, "id"), get_text(qa, "question"), answers[0], aliases, ((title, context),), (0,), "squad")
