"""RULER-QA: questions of SQuAD and HotpotQA among paragraphs of others."""

from __future__ import annotations

from pathlib import Path

import pytest

from qrag_jax.config import DataConfig
from qrag_jax.data.ruler.tasks import load
from qrag_jax.data.splits import SPLITS
from tests.support.small import write_lines


def squad(**changes: object) -> dict[str, object]:
    """Ten articles of two paragraphs, each with a question that has an answer and one that has none."""
    question = lambda n, k: {
        "id": f"q{n}-{k}",
        "question": f"Who lives at {n}-{k}?",
        "answers": [{"text": f"Tenant {n}-{k}", "answer_start": 0}, {"text": "Tenant", "answer_start": 0}],
        "is_impossible": False,
        **changes,
    }
    nobody = {"id": "x", "question": "Who else?", "answers": [], "is_impossible": True}
    paragraphs = lambda n: [{"context": f"Tenant {n}-{k} lives here.", "qas": [question(n, k), nobody]} for k in range(2)]
    return {"version": "v2.0", "data": [{"title": f"House_{n}", "paragraphs": paragraphs(n)} for n in range(10)]}


def hotpot(count: int, name: str) -> list[dict[str, object]]:
    context = lambda n: [[f"{name} {n} {k}", [f"Paragraph {k}.", f"About {name} {n}."]] for k in range(3)]
    return [
        {
            "_id": f"{name}{n}",
            "question": f"What of {name} {n}?",
            "answer": "yes",
            "type": "bridge",
            "context": context(n),
            "supporting_facts": [[f"{name} {n} 2", 0], [f"{name} {n} 0", 1]],
        }
        for n in range(count)
    ]


@pytest.fixture(scope="module")
def paragraphs(tmp_path_factory: pytest.TempPathFactory) -> str:
    root = tmp_path_factory.mktemp("qa")
    write_lines(root / "squad" / "dev-v2.0.json", squad())
    write_lines(root / "hotpotqa" / "hotpot_fit.json", hotpot(60, "Fit"))
    write_lines(root / "hotpotqa" / "hotpot_eval.json", hotpot(20, "Eval"))
    return str(root)


def test_squad_questions_have_their_paragraph_and_a_split_its_articles(paragraphs: str) -> None:
    articles: dict[str, set[str]] = {}
    for split, houses in (("train", 5), ("validation", 1), ("test", 4)):
        documents = load(DataConfig(task="qa_sh", data_dir=paragraphs), split, seed=0, haystacks=2, chunks=2 * houses)
        assert len(documents) == 2 * houses
        seen = set()
        for example in documents:
            place = example.question.removeprefix("Who lives at ").removesuffix("?")
            assert [example.chunks[n] for n in example.support] == [f"House {place[0]}. Tenant {place} lives here."]
            assert example.answer == f"Tenant {place}"
            assert len(set(example.chunks)) == 2 * houses  # every paragraph of the split, once
            seen.add(example.question)
            articles.setdefault(split, set()).update(chunk.split(".")[0] for chunk in example.chunks)
        assert len(seen) == 2 * houses
        assert len(articles[split]) == houses
    assert len(set.union(*articles.values())) == 10


def test_hotpotqa_questions_bring_their_paragraphs_along(paragraphs: str) -> None:
    for split, name in (("train", "Fit"), ("validation", "Fit"), ("test", "Eval")):
        config = DataConfig(task="qa_mh", data_dir=paragraphs, shared_noise=20)
        for documents in (load(config, split, seed=0, group=4, chunks=9), load(config, split, seed=0, haystacks=2, chunks=9)):
            orders = set()
            for example in documents:
                number = example.question.removeprefix(f"What of {name} ").removesuffix("?")
                titles = [chunk.split(".")[0] for chunk in example.chunks]
                own = [f"{name} {number} {k}" for k in range(3)]
                assert len(set(titles)) == len(titles) == 9
                assert {titles[n] for n in example.support} == {own[0], own[2]}
                assert set(own) <= set(titles)
                orders.add(tuple(title[-1] for title in titles if title in own))
                assert f"{name} {number} 1. Paragraph 1. About {name} {number}." in example.chunks
            assert len(orders) > 2
    questions = {split: {e.question for e in load(config, split, seed=0, haystacks=1, chunks=9)} for split in SPLITS}
    assert [len(questions[split]) for split in ("test", "train")] == [20, 60 - len(questions["validation"])]
    assert 0 < len(questions["validation"]) < 20
    assert not questions["train"] & questions["validation"]


def test_real_paragraphs(shared_data: Path) -> None:
    for task, needed in (("qa_sh", 1), ("qa_mh", 2)):
        config = DataConfig(task=task, data_dir=str(shared_data))
        for split in SPLITS:
            documents = load(config, split, seed=0, haystacks=2, chunks=100)
            for i in (0, 1, 77):
                example = documents[i]
                assert len(set(example.chunks)) == 100
                assert len(example.support) == needed
                text = " ".join(example.chunks[n] for n in example.support)
                assert example.answer.lower() in ("yes", "no") or example.answer in text


@pytest.mark.parametrize(
    ("tree", "reason"),
    [
        (squad(is_impossible="no"), r"article 1 \(House 0\), paragraph 1: wrong type of is_impossible"),
        (squad(answers=[]), r"article 1 \(House 0\), paragraph 1: no answer: question 'q0-0' has none"),
        (squad(answers=[{"text": "Nobody"}]), "paragraph 1: answer not in its paragraph: 'Nobody'"),
        ({"data": [{"title": "A", "paragraphs": []}, {"title": "A", "paragraphs": []}]}, "article 2: duplicate title"),
        ({"data": [{"title": "A", "paragraphs": []}]}, "1 articles; the three splits share none"),
        ({}, "the file: no data"),
    ],
)
def test_refuses_broken_squad_files(tree: object, reason: str, tmp_path: Path) -> None:
    write_lines(tmp_path / "squad" / "dev-v2.0.json", tree)
    with pytest.raises(ValueError, match=rf"dev-v2.0.json: .*{reason}"):
        load(DataConfig(task="qa_sh", data_dir=str(tmp_path)), "train", seed=0, group=1)


def test_refuses_bad_arguments(paragraphs: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"chunks = 9: must be <= 8, the number of different paragraphs of task qa_sh in test"):
        load(DataConfig(task="qa_sh", data_dir=paragraphs), "test", seed=0, haystacks=1, chunks=9)
    with pytest.raises(ValueError, match=r"task qa_sh asks SQuAD questions, so a folder with squad/dev-v2.0.json must be given"):
        load(DataConfig(task="qa_sh"), "train", seed=0, group=1)
    with pytest.raises(ValueError, match=r"task qa_mh asks HotpotQA questions, so a folder with hotpotqa/\*.json must be given"):
        load(DataConfig(task="qa_mh"), "train", seed=0, group=1)
    with pytest.raises(ValueError, match=r"dev-v2.0.json: no such file"):
        load(DataConfig(task="qa_sh", data_dir=str(tmp_path)), "train", seed=0, group=1)
