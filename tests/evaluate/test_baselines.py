"""Retrieval without fine-tuning: BM25, single-step search, multi-step search, chance."""

from __future__ import annotations

import builtins
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiments.baselines import main
from qrag_jax import data
from qrag_jax.evaluate.baselines import METHODS, bm25, evaluate_baseline, make, multi_step, random_chunks, single_step
from qrag_jax.evaluate.episodes import evaluate
from qrag_jax.evaluate.sets import EvaluationSet, final_sets
from qrag_jax.retrieve.retriever import Retriever
from qrag_jax.types import QAExample
from tests.support.small import SMALL, changed, small_learner, small_tokenizer

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"
HERONS = QAExample(
    "herons",
    "Which bird is on the flag of Sund?",
    ("Pell Town is a town of Sund.", "Sund is an island.", "The flag of Sund shows a heron, a grey bird.", "Bridges are long."),
    "a heron",
    (2,),
)


@pytest.fixture(scope="module")
def retriever() -> Retriever:
    learner, state = small_learner()
    return Retriever(SMALL, learner.embedder, state.params, small_tokenizer())


def examples(count: int = 4) -> list[QAExample]:
    made = data.load(SMALL.data, "test", seed=0, chunks=16, haystacks=2)
    return [made[i] for i in range(count)]


def lucene(query: list[str], corpus: list[list[str]]) -> list[float]:
    """Lucene's BM25 (without its constant factor k1 + 1), from its formula."""
    k1, b, mean = 1.5, 0.75, sum(map(len, corpus)) / len(corpus)
    scores = []
    for words in corpus:
        score = 0.0
        for word in query:
            count, held = words.count(word), sum(word in other for other in corpus)
            idf = math.log(1 + (len(corpus) - held + 0.5) / (held + 0.5))
            score += idf * count / (count + k1 * (1 - b + b * len(words) / mean))
        scores.append(score)
    return scores


def test_bm25_finds_the_obvious_paragraph() -> None:
    (found,) = bm25([HERONS], 2)
    assert found.picked[0] == 2
    # Words of two letters and more, without Lucene's English stop words.
    stop = {"is", "on", "the", "of", "an", "a", "are"}
    words = [[w for w in re.findall(r"\w\w+", text.lower()) if w not in stop] for text in (HERONS.question, *HERONS.chunks)]
    scores = lucene(words[0], words[1:])
    order = sorted(range(4), key=lambda i: -scores[i])
    assert found.picked == tuple(order[:2])
    np.testing.assert_allclose(found.q, [scores[i] for i in order[:2]], rtol=1e-5)


def test_bm25_without_a_common_word_keeps_the_order() -> None:
    for question in ("Zebras?", "Is it on the?"):
        (found,) = bm25([QAExample("none", question, HERONS.chunks, "", (0,))], 3)
        assert (found.picked, found.q) == ((0, 1, 2), (0.0, 0.0, 0.0))


def test_bm25_of_a_batch_is_that_of_each_question() -> None:
    some = [*examples(), HERONS]
    assert bm25(some, 4) == [found for example in some for found in bm25([example], 4)]


def test_bm25_says_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **options: Any) -> Any:
        if name == "bm25s":
            raise ImportError(name)
        return real(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ValueError, match="needs the package bm25s: pip install bm25s"):
        bm25([HERONS], 2)


@pytest.mark.parametrize("similarity", ["cosine", "dot"])
def test_one_look_takes_the_nearest_chunks(retriever: Retriever, similarity: Any) -> None:
    # Positions of the run must not matter: SMALL has relative ones.
    some = examples()
    for example, found in zip(some, single_step(retriever, similarity)(some, 3), strict=True):
        chunks = retriever.embed_chunks(example.chunks).astype(np.float64)
        (state,) = retriever.embed_states([example.question], [()], 2).astype(np.float64)
        scores = chunks @ state
        if similarity == "cosine":
            scores /= np.linalg.norm(chunks, axis=1) * np.linalg.norm(state)
        assert len(set(found.picked)) == 3
        np.testing.assert_allclose(found.q, [scores[i] for i in found.picked], rtol=1e-4)
        np.testing.assert_allclose(found.q, np.sort(scores)[::-1][:3], rtol=1e-4)


def test_many_looks_begin_with_the_one_look_and_go_on_from_the_state(retriever: Retriever) -> None:
    some = examples()
    once, many = single_step(retriever, "dot")(some, 3), multi_step(retriever)(some, 3)
    for example, first, found in zip(some, once, many, strict=True):
        assert found.picked[0] == first.picked[0]
        assert found.positions == (0.0, 0.0, 0.0)
        chunks = retriever.embed_chunks(example.chunks)
        (state,) = retriever.embed_states([example.question], [[example.chunks[found.picked[0]]]], 3)
        scores = chunks @ state
        scores[found.picked[0]] = -np.inf
        assert found.q[1] == pytest.approx(scores.max(), rel=1e-4)
    assert retriever.config.qhead.positions == "relative"


def test_random_is_a_function_of_seed_and_question() -> None:
    some = [QAExample(str(i), "?", tuple("abcdef"), "", (1, 4)) for i in range(3000)]
    found = random_chunks(7)(some, 4)
    assert all(len(set(f.picked)) == 4 and set(f.picked) <= set(range(6)) and f.q == () for f in found)
    assert random_chunks(7)(some[5:9][::-1], 4) == found[5:9][::-1]
    assert random_chunks(8)(some, 4) != found
    # Both of 2 among 4 of 6: C(4, 2) / C(6, 4) = 6 / 15, with a standard error of 0.009.
    assert np.mean([{1, 4} <= set(f.picked) for f in found]) == pytest.approx(0.4, abs=0.04)


def test_rows_are_those_of_an_evaluation(retriever: Retriever, tmp_path: Path) -> None:
    config = changed(SMALL, eval={"episodes": 3, "haystacks": 2})
    sets = final_sets(config)
    (wanted,) = evaluate(config.eval, tmp_path, retriever, sets)
    for method, name in METHODS.items():
        (row,) = evaluate_baseline(method, make(method, retriever=retriever, seed=1), sets, tmp_path)
        assert list(row) == [*wanted, "method"]
        assert row["method"] == name
        same = ("benchmark", "task", "split", "context_tokens", "chunks", "episodes", "budget")
        assert [row[key] for key in same] == [wanted[key] for key in same]
        assert (row["stop_threshold"], row["fact_f1_stopped"], row["answer_em"]) == (None, None, None)
        assert row["checkpoint_step"] == (0 if method in ("single", "multi") else None)
        lines = (tmp_path / "episodes" / f"babilong-qa1-1k-{method}.jsonl").read_text(encoding="utf-8").splitlines()
        episodes = [json.loads(line) for line in lines]
        assert row["fact_em"] == np.mean([set(e["support"]) <= set(e["picked"]) for e in episodes])
        trained = (tmp_path / "episodes" / "babilong-qa1-1k.jsonl").read_text(encoding="utf-8").splitlines()
        assert [e["id"] for e in episodes] == [json.loads(line)["id"] for line in trained]
        assert all(e["texts"] for e in episodes)


def test_bad_requests_are_refused(retriever: Retriever, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"method 'tfidf': unknown baseline; known: bm25, single, multi, random"):
        make("tfidf")
    with pytest.raises(ValueError, match="method 'single': needs an embedder"):
        make("single")
    unlabelled = EvaluationSet("own-all", "own", "all", None, 1, [QAExample("u", "?", ("a", "b"), "", ())], (range(1),))
    with pytest.raises(ValueError, match="support is empty"):
        evaluate_baseline("random", make("random"), [unlabelled], tmp_path)
    assert not list(tmp_path.rglob("*.jsonl"))


def test_a_document_with_fewer_chunks_than_the_budget_is_picked_empty(retriever: Retriever) -> None:
    for method in ("bm25", "single", "multi", "random"):
        (found,) = make(method, retriever=retriever)([HERONS], 9)
        assert sorted(found.picked) == list(range(len(HERONS.chunks))), method


def test_the_command_on_paragraphs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_dir = tmp_path / "run"
    words = ["--benchmark", "hotpotqa", "--data-dir", str(FIXTURES), "--methods", "bm25", "random", "--budget", "2"]
    assert main([*words, "--run-dir", str(run_dir)]) == 0
    results = json.loads((run_dir / "results.json").read_text(encoding="utf-8"))
    assert results["schema"] == 1
    first, second = results["rows"]
    # "Pell Town", "island" and "flag" are words of the two supporting paragraphs, and herons are not birds in words.
    assert (first["method"], first["fact_em"], first["fact_f1"]) == ("BM25", 1.0, 1.0)
    assert second["method"] == "random"
    assert (run_dir / "results.md").read_text(encoding="utf-8").splitlines()[2].startswith("| BM25 | all | test | - | 3 | 1 | 2 | 1.000 |")
    assert "on record for BM25 on hotpotqa all" in (run_dir / "comparison.md").read_text(encoding="utf-8")
    assert (run_dir / "episodes" / "hotpotqa-all-bm25.jsonl").is_file()
    assert "results are in" in capsys.readouterr().out
    before = (run_dir / "results.json").read_text(encoding="utf-8")
    assert main([*words, "--seed", "3", "--run-dir", str(run_dir)]) == 64
    assert "--seed was 0, now 3" in capsys.readouterr().err
    assert (run_dir / "results.json").read_text(encoding="utf-8") == before


def test_the_command_on_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").write_text(changed(SMALL, eval={"beam": 4, "reader": "flax:some/model"}).to_json(), encoding="utf-8")
    small_tokenizer().save(run / "tokenizer.json")
    out = tmp_path / "out"
    assert main(["--preset", str(run), "--run-dir", str(out), "--eval-episodes", "2", "--similarity", "dot"]) == 0
    rows = json.loads((out / "results.json").read_text(encoding="utf-8"))["rows"]
    assert [row["method"] for row in rows] == list(METHODS.values())
    assert {(row["task"], row["budget"], row["episodes"]) for row in rows} == {("qa1", 4, 2)}
    # The folder of a run keeps its own results.
    (run / "config.json").write_text((out / "config.json").read_text(encoding="utf-8"), encoding="utf-8")
    trained = [{name: value for name, value in row.items() if name != "method"} for row in rows]
    (run / "results.json").write_text(json.dumps({"schema": 1, "rows": trained}), encoding="utf-8")
    capsys.readouterr()
    assert main(["--preset", str(run), "--run-dir", str(run), "--methods", "random"]) == 64
    assert "holds a run; baselines would overwrite its results" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--preset", "huge"], "preset = 'huge': unknown; known: tiny"),
        (["--methods", "tfidf"], "must be one or more of bm25, single, multi, random"),
        (["--benchmark", "trivia"], "--benchmark = 'trivia': unknown"),
        (["--benchmark", "hotpotqa"], "--data-dir"),
        (["--budget", "0"], "--budget = 0"),
        (["--eval-episodes", "0"], "--eval-episodes = 0"),
        (["--eval-tokens", "1k", "--budget", "99"], "--budget = 99"),
    ],
)
def test_bad_words_are_refused_in_one_line(words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*words, "--run-dir", str(tmp_path / "run")]) == 64
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()
