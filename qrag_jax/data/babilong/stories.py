"""The official bAbI files (Weston et al. 2015, arXiv 1502.05698): a strict reader.

A file is a list of stories. Each line is ``n sentence`` (a fact) or ``n question <tab> answer <tab> lines of support``.
n numbers the lines of a story, both facts and questions, and 1 begins the next story. A question may use the facts before it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from qrag_jax.config import benchmarks
from qrag_jax.data.prepared import prepared_folder, read_records
from qrag_jax.data.splits import Split, check_split, hashed_split

BABI_TASKS = benchmarks.find("babilong").names
TASK_FILES = {
    "qa1": "qa1_single-supporting-fact",
    "qa2": "qa2_two-supporting-facts",
    "qa3": "qa3_three-supporting-facts",
    "qa4": "qa4_two-arg-relations",
    "qa5": "qa5_three-arg-relations",
}


@dataclass(frozen=True)
class BabiQuestion:
    """``support``: 0-based, ascending indices into the facts of the story; ``facts``: the number of facts before the question."""

    question: str
    answer: str
    support: tuple[int, ...]
    facts: int


@dataclass(frozen=True)
class Story:
    facts: tuple[str, ...]
    questions: tuple[BabiQuestion, ...]

    @property
    def text(self) -> str:
        """The facts as one string. Stories with the same text are the same story."""
        return "\n".join(self.facts)


def check_task(task: str) -> None:
    """Raises ValueError on an unknown task."""
    benchmarks.task("babilong", task)


def babi_path(data_dir: str | Path, task: str, split: str) -> Path:
    """The official file of a task. ``split`` is 'train' or 'test'. Raises ValueError if the file does not exist."""
    check_task(task)
    if split not in ("train", "test"):
        raise ValueError(f"split = {split!r}: the official bAbI files have the splits train and test")
    path = Path(data_dir) / "babi" / "en-10k" / f"{TASK_FILES[task]}_{split}.txt"
    if not path.is_file():
        raise ValueError(
            f"{path}: no such file; data_dir = {str(data_dir)!r} must hold babi/en-10k/*.txt of the official archive "
            "tasks_1-20_v1-2 (folder en-10k). Without data_dir, generated stories are used"
        )
    return path


def read_babi(path: str | Path) -> list[Story]:
    """All stories of a bAbI file. Raises ValueError('file:line: reason') on the first line that breaks the format."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ValueError(f"{path}: no such file") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: is not UTF-8 text ({error}); bAbI files are plain text") from error
    lines = text.splitlines()
    if not lines:
        raise ValueError(f"{path}: is empty; a bAbI file has at least one story")
    stories: list[Story] = []
    draft = _Draft()
    for row, line in enumerate(lines, start=1):
        try:
            number, body = _numbered(line)
            if number == 1 and draft.lines:
                stories.append(draft.story())
                draft = _Draft()
            draft.add(number, body)
        except ValueError as error:
            raise ValueError(f"{path}:{row}: {error}") from error
    try:
        stories.append(draft.story())
    except ValueError as error:
        raise ValueError(f"{path}:{len(lines)}: {error}") from error
    return stories


def _numbered(line: str) -> tuple[int, str]:
    number, _, body = line.partition(" ")
    if not (number.isascii() and number.isdigit()):
        raise ValueError(f"line {line[:60]!r} has no number; it must begin with its number in the story and a space")
    return int(number), body.rstrip("\r")


class _Draft:
    """The story being read. ``fact_at`` maps a line number to the index of its fact."""

    def __init__(self) -> None:
        self.lines = 0
        self.facts: list[str] = []
        self.fact_at: dict[int, int] = {}
        self.questions: list[BabiQuestion] = []

    def add(self, number: int, body: str) -> None:
        if number != self.lines + 1:
            raise ValueError(f"line number {number} is out of sequence; expected {self.lines + 1}" + (" or 1" if self.lines else ""))
        self.lines = number
        fields = body.split("\t")
        if len(fields) == 1:
            if not body.strip():
                raise ValueError("the sentence is empty")
            self.fact_at[number] = len(self.facts)
            self.facts.append(body.strip())
        elif len(fields) == 3:
            self._add_question(*(part.strip() for part in fields))
        else:
            raise ValueError(f"{len(fields) - 1} tabs; a fact has none, a question has 2 (question, answer, support)")

    def _add_question(self, question: str, answer: str, support: str) -> None:
        if not question:
            raise ValueError("the question is empty")
        if not answer:
            raise ValueError(f"the answer to {question!r} is empty")
        indices: list[int] = []
        for word in support.split():
            if not (word.isascii() and word.isdigit()):
                raise ValueError(f"support {word!r} is not a line number")
            if int(word) not in self.fact_at:
                raise ValueError(f"support {word} is not the line of an earlier fact of this story (facts: {_ranges(self.fact_at)})")
            indices.append(self.fact_at[int(word)])
        if not indices:
            raise ValueError(f"the question {question!r} names no supporting line")
        if len(set(indices)) != len(indices):
            raise ValueError(f"support {support!r} names a line twice")
        self.questions.append(BabiQuestion(question, answer, tuple(sorted(indices)), len(self.facts)))

    def story(self) -> Story:
        if not self.questions:
            raise ValueError("the story that ends here has no question")
        return Story(tuple(self.facts), tuple(self.questions))


def _ranges(numbers: dict[int, int]) -> str:
    return ", ".join(map(str, numbers)) if numbers else "none so far"


def load_stories(data_dir: str, task: str, split: Split) -> tuple[Story, ...]:
    """Official stories of a split. The test file is test; of the train file, nine tenths are train and one tenth is validation.

    The split of a story depends only on its text, so equal stories stay together. Stories of the train file that also occur in the test
    file are left out of both: in qa4 that is the case for about three quarters of the test stories.
    """
    check_split(split)
    test = _read(data_dir, task, "test")
    if split == "test":
        return test
    tested = {story.text for story in test}
    train = _read(data_dir, task, "train")
    return tuple(story for story in train if story.text not in tested and hashed_split(story.text, test=0.0) == split)


@lru_cache(maxsize=2 * len(TASK_FILES))
def _read(data_dir: str, task: str, split: str) -> tuple[Story, ...]:
    """The stories of one official file, from prepared records if they exist, else from the file. Cached for the life of the process."""
    check_task(task)
    if folder := prepared_folder(data_dir, "babi", task):
        sources = list(Path(data_dir, "babi", "en-10k").glob(f"{TASK_FILES[task]}_*.txt"))
        return tuple(_from_record(record) for record in read_records(folder, split, sources))
    return tuple(read_babi(babi_path(data_dir, task, split)))


def _from_record(record: dict[str, Any]) -> Story:
    """A story from a record that ``tfds_builders.BabiBuilder`` has written."""
    questions: list[BabiQuestion] = []
    taken = 0
    for question, answer, before, size in zip(record["question"], record["answer"], record["before"], record["support_size"], strict=True):
        support = tuple(int(fact) for fact in record["support"][taken : taken + size])
        questions.append(BabiQuestion(question.decode(), answer.decode(), support, int(before)))
        taken += size
    return Story(tuple(fact.decode() for fact in record["facts"]), tuple(questions))
