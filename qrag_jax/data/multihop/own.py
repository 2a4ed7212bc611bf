"""Your own questions: a JSONL file, or a folder with train.jsonl, validation.jsonl and test.jsonl.

Each line is ``{"id": "q1", "question": "...", "chunks": ["...", ...], "support": [2, 5], "answer": "..."}``: ``chunks`` is the document in
order, ``support`` holds the indices (from 0) of the chunks that answer the question. ``answer`` is optional.
"""

from __future__ import annotations

from collections import Counter
from functools import lru_cache
from pathlib import Path
from typing import Any

from qrag_jax.config import DataConfig, benchmarks
from qrag_jax.data.multihop.questions import MultihopQuestions, check_disjoint, check_room, read_and_say
from qrag_jax.data.multihop.records import BadRecord, ReadReport, Record, check, get, get_text, read_file
from qrag_jax.data.splits import SPLITS, Split, check_split, hashed_split

FIELDS = ("id", "question", "chunks", "support", "answer")


def read_own(path: str | Path, *, skip_bad: bool = False) -> tuple[tuple[Record, ...], ReadReport]:
    """The records of a file. Errors: see :func:`qrag_jax.data.multihop.records.read_file`."""
    return read_file(path, _parse, skip_bad=skip_bad)


def _parse(tree: Any, notes: Counter[str]) -> Record:
    if unknown := sorted(set(check(tree, dict, "record")) - set(FIELDS)):
        raise BadRecord("unknown field", f"{unknown[0]!r}; known: {', '.join(FIELDS)}")
    chunks = [check(chunk, str, "chunks") for chunk in get(tree, "chunks", list)]
    if not chunks:
        raise BadRecord("empty chunks", "a document needs at least one chunk")
    for number, chunk in enumerate(chunks):
        if not chunk.strip():
            raise BadRecord("empty chunk", f"chunks[{number}] has no text")
    support = [check(index, int, "support") for index in get(tree, "support", list)]
    if not support:
        raise BadRecord("empty support", f"must hold at least one index in 0..{len(chunks) - 1}")
    for index in support:
        if not 0 <= index < len(chunks):
            raise BadRecord("support out of range", f"{index} must be in 0..{len(chunks) - 1}, the indices of the chunks")
    if len(set(support)) < len(support):
        raise BadRecord("support with repeats", f"{support} names a chunk twice")
    texts = {chunks[index]: index for index in support}
    for number, chunk in enumerate(chunks):
        if chunk in texts and number not in support:
            raise BadRecord(
                "contradictory support", f"chunks[{number}] has the same text as chunks[{texts[chunk]}], but only the latter is in support"
            )
    answer = get(tree, "answer", str).strip() if "answer" in tree else ""
    paragraphs = tuple(("", chunk) for chunk in chunks)
    return Record(get_text(tree, "id"), get_text(tree, "question"), answer, (), paragraphs, tuple(sorted(support)), "")


def load(
    config: DataConfig,
    split: Split,
    *,
    seed: int,
    chunks: int | None = None,
    group: int | None = None,
    haystacks: int | None = None,
) -> MultihopQuestions:
    """The questions of a split of ``config.data_dir``, which is a .jsonl file or a folder. From a file, a tenth of the questions, by a hash
    of their ids, is test and another tenth is validation. If questions share documents, give a folder, to keep documents apart.

    Chunks stay in order, since they may be parts of one text; shuffle them beforehand if the order gives the support away.
    ``chunks``, ``group`` and ``haystacks`` are ignored. Raises ValueError on missing or broken files.
    """
    check_split(split)
    benchmarks.task("own", config.task)
    if config.data_dir is None:
        raise ValueError("data.data_dir: give your questions, a .jsonl file or a folder with train.jsonl, validation.jsonl and test.jsonl")
    records = _read(config.data_dir, config.skip_bad)[split]
    if not records:
        raise ValueError(
            f"{config.data_dir}: none of its questions falls into {split}; add questions (about 100 or more), or give a folder with "
            "train.jsonl, validation.jsonl and test.jsonl"
        )
    if split == "train":
        check_room(records, config.chunks)
    return MultihopQuestions("own", records, split, seed=seed, shuffle=False)


@lru_cache(maxsize=8)
def _read(data_dir: str, skip_bad: bool) -> dict[Split, tuple[Record, ...]]:
    """The splits of a file or a folder. Cached for the life of the process."""
    path = Path(data_dir)
    if not path.is_dir():
        records = read_and_say(read_own, path, skip_bad)
        return {split: tuple(record for record in records if hashed_split(record.id) == split) for split in SPLITS}
    if missing := [f"{split}.jsonl" for split in SPLITS if not (path / f"{split}.jsonl").is_file()]:
        raise ValueError(f"{path}: no {missing[0]}; a folder of your own questions holds train.jsonl, validation.jsonl and test.jsonl")
    sides = {split: read_and_say(read_own, path / f"{split}.jsonl", skip_bad) for split in SPLITS}
    check_disjoint({str(split): records for split, records in sides.items()}, str(path))
    return sides
