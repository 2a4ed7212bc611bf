"""Answers: an experiment with a reader behind an endpoint, as a user runs it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from experiments import cli, evaluate
from qrag_jax.answers import BABILONG_LABELS
from qrag_jax.export import write_export
from tests.helpers import SMALL, small_learner, small_tokenizer
from tests.helpers_http import completion, stub_server


@pytest.fixture(scope="module")
def retriever(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained one: what the reader is given and what becomes of its answers does not depend on training."""
    learner, state = small_learner()
    return write_export(
        tmp_path_factory.mktemp("reader") / "export",
        config=SMALL,
        backbone=learner.embedder.config,
        params=state.params,
        tokenizer=small_tokenizer(),
        threshold=None,
        step=0,
        rows=[],
    )


def last_place(user: str) -> str:
    """What a reader that knows the task says: the last place the person is said to have gone to."""
    text, _, question = user.rpartition("Question: Where is ")
    name = question.split("?")[0]
    places = [word.rstrip(".") for line in text.splitlines() if line.startswith(f"{name} ") for word in line.split()]
    known = [place for place in places if place in BABILONG_LABELS["qa1"]]
    return known[-1] if known else "nowhere"


def run(retriever: Path, run_dir: Path, url: str, context: str) -> tuple[int, list[dict[str, Any]]]:
    words = [str(retriever), "--run-dir", str(run_dir), "--eval-tokens", "1k", "--eval-episodes", "12", "--budget", "2"]
    code = evaluate.main([*words, "--reader", f"openai:{url},stub", "--reader-context", context])
    path = run_dir / "episodes" / "babilong-qa1-1k.jsonl"
    return code, [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_gold_chunks_are_answered_right(retriever: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    with stub_server(lambda user, n: completion(last_place(user))) as server:
        code, records = run(retriever, tmp_path / "gold", server.url, "gold")
        assert code == 0
        assert [record["answer_em"] for record in records] == [1.0] * 12
        assert all(record["prediction"] == record["answer"] for record in records)
        assert all("[user]\nText:\n" in record["prompt"] for record in records)
        row = json.loads((tmp_path / "gold" / "results.json").read_text())["rows"][0]
        assert (row["answer_em"], row["answer_f1"]) == (1.0, None)
        asked = len(server.requests)
        assert run(retriever, tmp_path / "gold", server.url, "gold") == (0, records)
        assert len(server.requests) == asked, "what is answered is not asked again"
        code, closed = run(retriever, tmp_path / "none", server.url, "none")
        assert code == 0
        assert {record["prediction"] for record in closed} == {"nowhere"}
        assert {record["answer_em"] for record in closed} == {0.0}


def test_the_reader_of_a_stopped_search_is_given_what_was_kept(
    retriever: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    with stub_server(lambda user, n: completion("nowhere")) as server:
        assert run(retriever, tmp_path / "never", server.url, "stopped")[0] == 64
        assert "has no stop threshold" in capsys.readouterr().err
        calibrated = tmp_path / "calibrated"
        shutil.copytree(retriever, calibrated)
        tree = json.loads((calibrated / "qrag.json").read_text())
        (calibrated / "qrag.json").write_text(json.dumps(tree | {"threshold": 1e9}))
        code, records = run(calibrated, tmp_path / "stopped", server.url, "stopped")
    assert code == 0
    for record in records:
        kept, left_out = record["texts"]
        assert f"Text:\n{kept}\n\nQuestion" in record["prompt"], "above every Q, only the first pick is kept"
        assert left_out not in record["prompt"] or left_out == kept


def test_an_outage_is_no_answer(
    retriever: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    with stub_server(lambda user, n: 403) as server:
        code, records = run(retriever, tmp_path / "out", server.url, "retrieved")
    assert (code, records) == (75, [])
    assert not (tmp_path / "out" / "results.json").exists()
    assert "403" in capsys.readouterr().err


@pytest.mark.parametrize("reader", ["flax", "flax:", "openai:localhost,m", "openai:http://localhost/v1", "gpt"])
def test_bad_readers(retriever: Path, tmp_path: Path, reader: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate.main([str(retriever), "--run-dir", str(tmp_path / "bad"), "--reader", reader]) == 64
    assert "eval.reader = " in capsys.readouterr().err
    assert not (tmp_path / "bad").exists()


def test_a_reader_as_the_reward(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Training from answers alone: the support labels of qa1 are never looked at, yet its facts are found."""
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    words = ["--task", "qa1", "--run-dir", str(tmp_path / "run"), "--reward", "answer_em", "--steps", "20", "--train.devices", "1"]
    words += ["--data.chunks", "10", "--rl.budget", "2", "--eval.budget", "2", "--eval-tokens", "1k", "--eval-episodes", "4"]
    words += ["--optim.batch", "8", "--train.eval-every", "10", "--train.eval-episodes", "8", "--model.layers", "1", "--model.width", "32"]
    assert cli.main("babilong", ("qa1",), "qa1", "", words) == 64
    assert "rl.reward = 'answer_em': must be support, or give the reader" in capsys.readouterr().err
    with stub_server(lambda user, n: completion(last_place(user))) as server:
        words += ["--reader", f"openai:{server.url},stub"]
        assert cli.main("babilong", ("qa1",), "qa1", "", words) == 0
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    validation = [record for record in records if record["kind"] == "validation"]
    assert [record["step"] for record in validation] == [0, 10, 20]
    assert all(record["answer_em"] is not None for record in validation)
    checkpoint = tmp_path / "run" / "export"
    assert {path.name for path in checkpoint.iterdir()} == {
        *("qrag.json", "tokenizer.json", "tokenizer_config.json", "state_encoder", "action_encoder", "README.md")
    }, "the reader is no part of what is saved"
