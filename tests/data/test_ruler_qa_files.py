"""RULER's own QA records: documents, question and answers of a prompt, and supporting documents from SQuAD's and HotpotQA's files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from qrag_jax.data.ruler.files import official_lengths
from qrag_jax.data.ruler.tasks import load_official
from tests.support.small import write_lines

RULE = "Answer the question based on the given documents. Only give me the answer and do not output any other words."
HOUSES = ["Ada lives here,\nat 1.", "Bo lives here.", "Cy lives here.", "Di lives here."]


def squad() -> dict[str, Any]:
    question = lambda number, text, answer: {
        "id": str(number),
        "question": text,
        "answers": [{"text": answer, "answer_start": 0}],
        "is_impossible": False,
    }
    # "Who lives here?" is asked about two paragraphs.
    asked = [question(0, "Who lives at 1?", "Ada"), question(1, "Who lives here?", "Bo"), question(2, "Who lives here?", "Cy")]
    paragraphs = [{"context": text, "qas": asked[n : n + 1]} for n, text in enumerate(HOUSES)]
    return {"version": "v2.0", "data": [{"title": "House", "paragraphs": paragraphs}]}


def hotpotqa() -> list[dict[str, Any]]:
    context = [["Ilm", ["Ilm has a fair. ", "It is in June."]], ["Brask", ["Ilm lies in Brask."]], ["Lorne", ["Lorne has vines."]]]
    facts = [["Brask", 0], ["Ilm", 1]]
    base = {"_id": "a", "question": "When is the fair in Brask?", "answer": "June", "type": "bridge"}
    return [{**base, "context": context, "supporting_facts": facts}]


def record(index: int, question: str, outputs: list[str], documents: list[str], **changes: Any) -> dict[str, Any]:
    listed = "\n\n".join(f"Document {number}:\n{text}" for number, text in enumerate(documents, 1))
    text = f"{RULE}\n\nThe following are given documents.\n\n{listed}\n\n{RULE}\n\nQuestion: {question}"
    return {"index": index, "input": text, "outputs": outputs, "length": 90, **changes}


LORNE, ILM, BRASK = "Lorne\nLorne has vines.", "Ilm\nIlm has a fair. It is in June.", "Brask\nIlm lies in Brask."
BRIDGE = "When is the fair in Brask?"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_lines(tmp_path / "squad" / "dev-v2.0.json", squad())
    write_lines(tmp_path / "hotpotqa" / "hotpot_fit.json", [{**hotpotqa()[0], "_id": "b", "question": "What of Lorne?"}])
    write_lines(tmp_path / "hotpotqa" / "hotpot_eval.json", hotpotqa())
    return tmp_path


def write(folder: Path, task: str, *records: dict[str, Any]) -> Path:
    return write_lines(folder / "ruler" / "4096" / task / "validation.jsonl", *records)


def test_squad_records_by_hand(folder: Path) -> None:
    answered = record(2, "Who lives here?", ["Cy"], [HOUSES[3], HOUSES[2]])
    answered["input"] += " Answer:"  # some versions of the generator begin the answer
    write(
        folder,
        "qa_1",
        record(0, "Who lives at 1?", ["Ada", "Ada", "ada"], [HOUSES[1], HOUSES[0], HOUSES[3]]),
        record(1, "Who lives here?", ["Bo"], [HOUSES[0], HOUSES[1]]),
        answered,
    )
    first, second, third = load_official(str(folder), "qa_sh", 4096)
    assert first.chunks == ("Bo lives here.", "Ada lives here,\nat 1.", "Di lives here.")
    assert (first.question, first.answer, first.aliases, first.support) == ("Who lives at 1?", "Ada", ("ada",), (1,))
    assert first.id == "ruler/qa_1/official/0"
    # Of the two paragraphs with this question, each record has one.
    assert (second.support, third.support, third.question) == ((1,), (1,), "Who lives here?")
    assert official_lengths(folder, "qa_sh") == [4096]


def test_hotpotqa_records_by_hand(folder: Path) -> None:
    orders = ([LORNE, ILM, BRASK], [BRASK, LORNE, ILM], [ILM, BRASK])
    write(folder, "qa_2", *(record(n, BRIDGE, ["June"], documents) for n, documents in enumerate(orders)))
    examples = load_official(str(folder), "qa_mh", 4096)
    assert [example.support for example in examples] == [(1, 2), (0, 2), (0, 1)]
    assert examples[0].chunks[1] == ILM


@pytest.mark.parametrize(
    ("task", "line", "reason"),
    [
        ("qa_1", record(1, "Who lives at 9?", ["Ed"], HOUSES), r"question 'Who lives at 9\?' is not in .*dev-v2.0.json, which names"),
        ("qa_1", record(1, "Who lives at 1?", ["Ada"], HOUSES[1:]), "are not all among its documents"),
        ("qa_1", record(1, "Who lives at 1?", [], HOUSES), r"outputs = \[\]"),
        ("qa_1", record(1, "Who lives at 1?", ["Ada"], HOUSES, input="Who lives at 1?"), "input is no prompt of a QA task"),
        ("qa_1", record(1, "Who lives at 1?", ["Ada"], [HOUSES[0], ""]), "document 2 is empty"),
        ("qa_2", record(1, BRIDGE, ["June"], [LORNE, ILM]), "are not all among its documents"),
        ("qa_2", record(1, "What of Lorne?", ["vines"], [LORNE, ILM, BRASK]), "is not in the test file in .*hotpotqa, which names"),
    ],
)
def test_what_is_not_known_is_refused(task: str, line: dict[str, Any], reason: str, folder: Path) -> None:
    good = {"qa_1": record(0, "Who lives at 1?", ["Ada"], HOUSES), "qa_2": record(0, BRIDGE, ["June"], [LORNE, ILM, BRASK])}
    write(folder, task, good[task], line)
    with pytest.raises(ValueError, match=rf"validation.jsonl:2: .*{reason}"):
        load_official(str(folder), {"qa_1": "qa_sh", "qa_2": "qa_mh"}[task], 4096)


def test_numbers_have_no_gaps(folder: Path) -> None:
    broken = record(0, "Who lives at 1?", ["Ada"], HOUSES)
    broken["input"] = broken["input"].replace("Document 3:", "Document 4:", 1)
    write(folder, "qa_1", broken)
    with pytest.raises(ValueError, match="its documents are numbered 1, 2, 4, 4; they must be numbered from 1, without gaps"):
        load_official(str(folder), "qa_sh", 4096)


def test_the_files_that_name_the_support_are_needed(folder: Path) -> None:
    (folder / "squad" / "dev-v2.0.json").unlink()
    (folder / "hotpotqa" / "hotpot_eval.json").unlink()
    with pytest.raises(ValueError, match=r"dev-v2\.0\.json: no such file; RULER's qa_1 records do not say which documents answer"):
        load_official(str(folder), "qa_sh", 4096)
    with pytest.raises(ValueError, match=r"RULER's qa_2 records do not say which documents answer.*hotpot_dev_distractor_v1\.json"):
        load_official(str(folder), "qa_mh", 4096)


def test_records_made_from_the_real_files(shared_data: Path, tmp_path: Path) -> None:
    """As RULER's generator makes them: title, line break, sentences joined; SQuAD's paragraphs as they are."""
    hotpot = json.loads((shared_data / "hotpotqa" / "hotpot_eval.json").read_text(encoding="utf-8"))
    lines = [
        record(n, one["question"], [one["answer"]], [f"{title}\n{''.join(parts)}" for title, parts in one["context"]])
        for n, one in enumerate(hotpot)
    ]
    write(tmp_path, "qa_2", *lines)
    for name in ("hotpotqa", "squad"):
        (tmp_path / name).symlink_to(shared_data / name)
    for example, one in zip(load_official(str(tmp_path), "qa_mh", 4096), hotpot, strict=True):
        titles = {example.chunks[k].split("\n")[0] for k in example.support}
        assert titles == {title.strip() for title, _ in one["supporting_facts"]}
    articles = json.loads((shared_data / "squad" / "dev-v2.0.json").read_text(encoding="utf-8"))["data"]
    paragraphs = [paragraph for article in articles for paragraph in article["paragraphs"]]
    texts = [paragraph["context"] for paragraph in paragraphs[:20]]
    asked = [(qa, paragraph) for paragraph in paragraphs[:20] for qa in paragraph["qas"] if not qa["is_impossible"]]
    write(tmp_path, "qa_1", *(record(n, qa["question"], [a["text"] for a in qa["answers"]], texts) for n, (qa, _) in enumerate(asked)))
    for example, (_, paragraph) in zip(load_official(str(tmp_path), "qa_sh", 4096), asked, strict=True):
        assert [example.chunks[k] for k in example.support] == [paragraph["context"].strip()]
