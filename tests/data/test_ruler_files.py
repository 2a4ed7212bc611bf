"""RULER's official files: what a record becomes, and what is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from qrag_jax.config import DataConfig
from qrag_jax.data.ruler.files import cut, official_lengths, read_official
from qrag_jax.data.ruler.needles import NIAH, NOISE_LINE
from qrag_jax.data.ruler.tasks import load, load_official
from tests.support.small import NEEDLE, write_lines

INTRODUCTION = (
    "Some special magic numbers are hidden within the following text. Make sure to memorize it. "
    "I will quiz you about the numbers afterwards."
)
QUESTION = "What are all the special magic numbers for calm-fox and bold-hill mentioned in the provided text?"
ESSAY = " ".join(f"This is sentence number {n} of an essay that Mr. Brown wrote[2] at his desk." for n in range(9))


def record(**changes: object) -> dict[str, object]:
    calm, bold = "One of the special magic numbers for calm-fox is: 1234567.", "One of the special magic numbers for bold-hill is: 7654321."
    text = f"{INTRODUCTION}\n {bold} {ESSAY} An end with a note.[3] {calm} \n{QUESTION} The special magic numbers for calm-fox are"
    return {"index": 7, "input": text, "outputs": ["1234567", "7654321"], "length": 300, **changes}


def test_an_official_record_by_hand(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "ruler" / "4096" / "niah_multiquery" / "validation.jsonl", record(), record(index=8))
    (first, second) = load_official(str(tmp_path), "niah_mq", 4096)
    # A needle, nine sentences ("Mr." ends none), the sentence with a note, a needle; the question without what follows it.
    assert first.chunks == (
        "One of the special magic numbers for bold-hill is: 7654321.",
        *(f"This is sentence number {n} of an essay that Mr. Brown wrote[2] at his desk." for n in range(9)),
        "An end with a note.[3]",
        "One of the special magic numbers for calm-fox is: 1234567.",
    )
    assert (first.question, first.answer, first.support) == (QUESTION, "1234567, 7654321", (0, 11))
    assert (first.id, second.id) == ("ruler/niah_multiquery/official/7", "ruler/niah_multiquery/official/8")
    assert read_official(path) == [first, second]
    write_lines(tmp_path / "ruler" / "131072" / "niah_multiquery" / "validation.jsonl", record())
    assert official_lengths(tmp_path, "niah_multiquery") == [4096, 131072]


def test_short_lines_stay_whole_and_nothing_is_lost() -> None:
    text = f"\n{NOISE_LINE}\nOne of the special magic words for a-b is: c-d.\n\n{NOISE_LINE}\n{ESSAY}"
    chunks = list(cut(text))
    assert chunks[:3] == [NOISE_LINE, "One of the special magic words for a-b is: c-d.", NOISE_LINE]
    assert " ".join(chunks).split() == text.split()
    assert len(chunks) == 12


@pytest.mark.parametrize("task", NIAH)
def test_the_official_generators_records(task: str, shared_data: Path) -> None:
    examples = load_official(str(shared_data), task, 4096)
    lines = (shared_data / "ruler" / "4096" / task / "validation.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(examples) == len(lines) == 3
    for example, line in zip(examples, lines, strict=True):
        raw = json.loads(line)
        assert example.question in raw["input"]
        text = raw["input"].split("afterwards.\n", 1)[1].rsplit("\nWhat ", 1)[0]
        assert "".join(" ".join(example.chunks).split()) == "".join(text.split())
        assert all(NEEDLE.fullmatch(example.chunks[n]) for n in example.support)
        assert sorted(NEEDLE.fullmatch(example.chunks[n])[3] for n in example.support) == sorted(raw["outputs"])  # type: ignore[index]
        keys = {NEEDLE.fullmatch(example.chunks[n])[2] for n in example.support}  # type: ignore[index]
        assert all(key in example.question for key in keys)
        assert example.answer.split(", ") == raw["outputs"]
        wanted = {"niah_multikey_2": 201, "niah_multikey_3": 51, "niah_single_1": 151}.get(task)
        assert wanted is None or abs(len(example.chunks) - wanted) <= 2
        generated = load(DataConfig(task=task, data_dir=str(shared_data)), "test", seed=0, haystacks=1, chunks=40)[0]
        masked = lambda question: re.sub(r"for .* mentioned", "for KEYS mentioned", question)
        assert masked(generated.question) == masked(example.question)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "is not JSON"),
        ("", "is not JSON"),
        ([1], "is a JSON list; a record is an object"),
        ({"index": 1, "outputs": ["1"]}, "has no field 'input'"),
        (record(index="7"), "index = '7': must be a number >= 0"),
        (record(index=7), "index 7 is also the index of line 1"),
        (record(index=8, input=5), "input = 5: must be the prompt"),
        (record(index=8, outputs=[]), r"outputs = \[\]: must be a list of one or more values"),
        (record(index=8, outputs=["1234567", 5]), "must be a list of one or more values, each a string"),
        (record(index=8, outputs=["1, 2"]), "a value holds ', '"),
        (record(index=8, outputs=["234567"]), "output '234567' is not found in the text"),
        (record(index=8, outputs=["1234567", "7654322"]), "output '7654322' is not found in the text"),
        (record(index=8, input="Read this.\nWhat is the special magic number for a mentioned in the provided text?"), "no introduction"),
        (record(index=8, input=f"{INTRODUCTION}\nText. Why?"), "input has no question"),
    ],
)
def test_a_broken_record_is_named_by_file_and_line(line: object, reason: str, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "validation.jsonl", record(), line)
    with pytest.raises(ValueError, match=rf"validation.jsonl:2: .*{reason}"):
        read_official(path)


def test_refuses_missing_official_files(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such file"):
        read_official(tmp_path / "validation.jsonl")
    with pytest.raises(ValueError, match="is empty"):
        read_official(write_lines(tmp_path / "validation.jsonl"))
    with pytest.raises(ValueError, match=r"must hold ruler/LENGTH/niah_single_1/validation.jsonl"):
        official_lengths(tmp_path, "niah_single_1")
    with pytest.raises(ValueError, match=r"a folder with ruler/4096/niah_single_1/validation.jsonl must be given"):
        load_official(None, "niah_s1", 4096)
