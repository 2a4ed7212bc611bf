"""Multi-hop questions over separate paragraphs: the code shared by HotpotQA, MuSiQue, 2WikiMultihopQA and a user's own questions.

A document consists of a question's own paragraphs, so there is no context length to choose, and documents share no noise.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from operator import attrgetter
from pathlib import Path
from typing import Any, SupportsIndex

import numpy as np

from qrag_jax.config import DataConfig, benchmarks
from qrag_jax.data.multihop.records import EMPTY, ReadReport, Record
from qrag_jax.data.prepared import prepared_folder, read_records
from qrag_jax.data.splits import SPLITS, Split, check_split, hashed_split
from qrag_jax.rundir.log import say
from qrag_jax.types import QAExample

_KINDS = ("parquet", "jsonl", "jsonl.gz", "json")
HUGGING_FACE = tuple((f"train.{kind}", f"{test}.{kind}") for test in ("validation", "dev") for kind in _KINDS)
"""Names for the rows of Hugging Face ``datasets``: dataset["train"].to_parquet("DIR/hotpotqa/train.parquet"), and so on."""
_ORDER, _PARAGRAPHS = 301, 302  # first words of the keys of independent random streams


@dataclass(frozen=True)
class QuestionFiles:
    """The places of a benchmark's files and the function that reads them.

    ``files``: pairs of a training and a test file, the preferred pair first; a training file alone also gives the test. ``downloads``:
    addresses of the first pair, if they are plain files; ``after_title``: the text that the reference code puts between the title and the
    text of a chunk; ``group``: the part of a file that stays in one split when the file is divided, by default each question."""

    name: str
    folder: str
    files: tuple[tuple[str, ...], ...]
    home: str
    read: Callable[..., tuple[tuple[Record, ...], ReadReport]]
    downloads: tuple[str, str] | None = None
    after_title: str = ". "
    group: Callable[[Record], str] = attrgetter("id")

    @property
    def wanted(self) -> str:
        """The files that a data folder must hold, and their source."""
        named = [" and ".join(pair) for pair in self.files if pair not in HUGGING_FACE]
        if HUGGING_FACE[0] in self.files:
            kinds = ", ".join(f".{kind}" for kind in _KINDS)
            named.append(f"the rows of Hugging Face datasets as train and validation (or dev) with one of the endings {kinds}")
        pairs = ", or ".join(named)
        return f"looked for in data_dir/{self.folder}: {pairs}. They come from {self.home}"


class MultihopQuestions(Sequence[QAExample]):
    """The given records in an order that depends on the seed. ``self[i]`` exists for every i >= 0: from ``len(self)`` on, the records are
    repeated in another order. Iteration ends at ``len``. ``shuffle`` True (training): each example has its paragraphs in its own random
    order; False: in the order of the file, which is already shuffled in the published files."""

    def __init__(self, name: str, records: Sequence[Record], split: Split, *, seed: int, shuffle: bool, after_title: str = ". ") -> None:
        check_split(split)
        if not records:
            raise ValueError(f"{name}: no question is left for {split}; a tenth of the training file, by a hash of the ids, is validation")
        self.name, self.records, self.split, self.seed, self.shuffle = name, records, split, seed, shuffle
        self.after_title = after_title
        self._order = lru_cache(maxsize=4)(
            lambda epoch: np.random.default_rng((seed, _ORDER, SPLITS.index(split), epoch)).permutation(len(records))
        )

    def __len__(self) -> int:
        return len(self.records)

    def __iter__(self) -> Iterator[QAExample]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, i: SupportsIndex) -> QAExample:  # type: ignore[override]  # slices of an endless sequence are not offered
        record = self.record(i)
        chunks, order = record.chunks(self.after_title), list(range(len(record.paragraphs)))
        if self.shuffle:
            draw = np.random.default_rng((self.seed, _PARAGRAPHS, SPLITS.index(self.split), operator.index(i)))
            order = draw.permutation(len(chunks)).tolist()
        return QAExample(
            id=f"{self.name}/{record.id}",
            question=record.question,
            chunks=tuple(chunks[k] for k in order),
            answer=record.answer,
            support=tuple(place for place, k in enumerate(order) if k in record.support),
            aliases=record.aliases,
            missing=record.missing,
            path=tuple(order.index(k) for k in record.path),
            titles=tuple(record.paragraphs[k][0] for k in order) if any(title for title, _ in record.paragraphs) else (),
        )

    def record(self, i: SupportsIndex) -> Record:
        """The record of example i."""
        i = operator.index(i)
        if i < 0:
            raise IndexError(f"example {i}: must be >= 0, since the sequence has no end")
        epoch, place = divmod(i, len(self.records))
        return self.records[self._order(epoch)[place]]


def load(
    benchmark: QuestionFiles,
    config: DataConfig,
    split: Split,
    *,
    seed: int,
    chunks: int | None = None,
    group: int | None = None,
    haystacks: int | None = None,
) -> MultihopQuestions:
    """The questions of a split with the type ``config.task`` ('all': any type).

    ``chunks``, ``group`` and ``haystacks`` are accepted, as by every benchmark, but ignored, since documents have their own lengths.
    Raises ValueError on missing or broken files, and in training on documents of more than ``config.chunks`` paragraphs.
    """
    check_split(split)
    ordered = benchmarks.task(benchmark.name, config.task).ordered
    if config.data_dir is None:
        raise ValueError(f"data.data_dir: {benchmark.name} is read from files, so give their folder; {benchmark.wanted}")
    records = [r for r in read_split(benchmark, config.data_dir, split, config.skip_bad) if config.task in (benchmarks.ALL, r.type)]
    if split == "train":
        check_room(records, config.chunks)
    after_title = benchmark.after_title if config.chunk_text == "reference" else ". "
    shuffle = split == "train" and not ordered
    return MultihopQuestions(benchmark.name, records, split, seed=seed, shuffle=shuffle, after_title=after_title)


def check_room(records: Sequence[Record], chunks: int) -> None:
    """Raises ValueError if a document has more chunks than there is room for in a training batch."""
    longest = max((len(record.paragraphs) for record in records), default=0)
    if longest > chunks:
        raise ValueError(f"data.chunks = {chunks}: must be >= {longest}, the number of paragraphs of the longest training document")


def find_files(benchmark: QuestionFiles, data_dir: str | Path) -> tuple[Path, ...] | None:
    """The training and the test file (or a training file alone): the first of ``benchmark.files`` that exist; None if there are none.

    Files of two pairs are never mixed, since a training subset may hold questions of the official test file."""
    for pair in benchmark.files:
        paths = tuple(Path(data_dir, benchmark.folder, name) for name in pair)
        if all(path.is_file() for path in paths):
            return paths
    return None


@lru_cache(maxsize=32)
def read_split(benchmark: QuestionFiles, data_dir: str, split: Split, skip_bad: bool) -> tuple[Record, ...]:
    """Records of a split, from prepared records if they exist, else from the files. Cached for the life of the process."""
    files = find_files(benchmark, data_dir)
    if folder := prepared_folder(data_dir, "multihop", benchmark.name):
        return tuple(_from_record(record) for record in read_records(folder, split, files or ()))
    if files is None:
        raise ValueError(f"data.data_dir = {data_dir!r}: no files of {benchmark.name}; {benchmark.wanted}")
    return split_files(benchmark, files, skip_bad)[split]


@lru_cache(maxsize=8)
def split_files(benchmark: QuestionFiles, files: tuple[Path, ...], skip_bad: bool) -> dict[Split, tuple[Record, ...]]:
    """The three splits: the test file is test; a tenth of the training file is validation, and without a test file another tenth is test,
    by a hash of ``benchmark.group`` (usually the id).

    Prints how many records were skipped. Raises ValueError if the two files share a question id."""
    train, *tests = (read_and_say(benchmark.read, path, skip_bad) for path in files)
    for test in tests:
        check_disjoint({"train": train, "test": test}, f"{files[0]} and {files[1]}")
    share = 0.0 if tests else 0.1
    side = lambda split: tuple(record for record in train if hashed_split(benchmark.group(record), test=share) == split)
    return {"train": side("train"), "validation": side("validation"), "test": tests[0] if tests else side("test")}


def read_and_say(read: Callable[..., tuple[tuple[Record, ...], ReadReport]], path: Path, skip_bad: bool) -> tuple[Record, ...]:
    """The records of a file. Prints how many records were skipped, or paragraphs left out."""
    records, report = read(path, skip_bad=skip_bad)
    if report.skipped or report.notes[EMPTY]:
        say(str(report))
    return records


def check_disjoint(sides: dict[str, tuple[Record, ...]], where: str) -> None:
    """Raises ValueError if a question id is in two of the splits."""
    seen: dict[str, str] = {}
    for name, records in sides.items():
        for record in records:
            if seen.setdefault(record.id, name) != name:
                raise ValueError(f"{where}: question {record.id!r} is in {seen[record.id]} and in {name}; splits must share no question")


def _from_record(record: dict[str, Any]) -> Record:
    """The record that ``tfds_builders.MultihopBuilder`` has written."""
    words = lambda name: tuple(text.decode() for text in record[name])
    return Record(
        id=record["id"].decode(),
        question=record["question"].decode(),
        answer=record["answer"].decode(),
        aliases=words("aliases"),
        paragraphs=tuple(zip(words("title"), words("text"), strict=True)),
        support=tuple(int(index) for index in record["support"]),
        type=record["type"].decode(),
        path=tuple(int(index) for index in record["path"]),
    )
