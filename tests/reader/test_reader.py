"""Answers: an experiment with a reader at an endpoint, in the way a user runs it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import jax
import pytest

from experiments import cli, evaluate
from qrag_jax.export.folder import Export, write_export
from qrag_jax.models.folder import ROUTER_FILES
from tests.support.chat import write_chat_model
from tests.support.http import completion, stub_server
from tests.support.runs import command
from tests.support.small import SMALL, last_place, options, small_learner, small_tokenizer


@pytest.fixture(scope="module")
def retriever(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained retriever: the reader's prompts and the use of its answers do not depend on training."""
    learner, state = small_learner()
    export = Export(SMALL, learner.embedder.config, state.params, small_tokenizer(), "mean")
    return write_export(tmp_path_factory.mktemp("reader") / "export", export)


def run(retriever: Path, run_dir: Path, reader: str, *options: str) -> tuple[int, list[dict[str, Any]]]:
    words = [str(retriever), "--run-dir", str(run_dir), "--eval-tokens", "1k", "--eval-episodes", "12", "--budget", "2"]
    code = evaluate.main([*words, "--reader", reader, *options])
    path = run_dir / "episodes" / "babilong-qa1-1k.jsonl"
    return code, [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_gold_chunks_are_answered_right(retriever: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    with stub_server(lambda user, n: completion(last_place(user))) as server:
        code, records = run(retriever, tmp_path / "gold", f"openai:{server.url},stub", "--reader-context", "gold")
        assert code == 0
        assert [record["answer_em"] for record in records] == [1.0] * 12
        assert all(record["prediction"] == record["answer"] for record in records)
        assert all("[user]\nText:\n" in record["prompt"] for record in records)
        row = json.loads((tmp_path / "gold" / "results.json").read_text())["rows"][0]
        assert (row["answer_em"], row["answer_f1"]) == (1.0, None)
        asked = len(server.requests)
        assert run(retriever, tmp_path / "gold", f"openai:{server.url},stub", "--reader-context", "gold") == (0, records)
        assert len(server.requests) == asked, "what is answered is not asked again"
        code, closed = run(retriever, tmp_path / "none", f"openai:{server.url},stub", "--reader-context", "none")
        assert code == 0
        assert {record["prediction"] for record in closed} == {"nowhere"}
        assert {record["answer_em"] for record in closed} == {0.0}


def test_the_reader_of_a_stopped_search_is_given_what_was_kept(
    retriever: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    with stub_server(lambda user, n: completion("nowhere")) as server:
        assert run(retriever, tmp_path / "never", f"openai:{server.url},stub", "--reader-context", "stopped")[0] == 64
        assert "has no stop threshold" in capsys.readouterr().err
        calibrated = tmp_path / "calibrated"
        shutil.copytree(retriever, calibrated)
        tree = json.loads((calibrated / "qrag.json").read_text())
        (calibrated / "qrag.json").write_text(json.dumps(tree | {"threshold": 1e9}))
        code, records = run(calibrated, tmp_path / "stopped", f"openai:{server.url},stub", "--reader-context", "stopped")
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
        code, records = run(retriever, tmp_path / "out", f"openai:{server.url},stub", "--reader-context", "retrieved")
    assert (code, records) == (75, [])
    assert not (tmp_path / "out" / "results.json").exists()
    assert "403" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.quick
def test_a_network_split_over_devices_answers_the_same(retriever: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if len(jax.devices()) != 4:
        pytest.skip("needs 4 devices; XLA_FLAGS was set before the tests' own --xla_force_host_platform_device_count=4")
    model = write_chat_model(tmp_path / "model", num_key_value_heads=4, max_position_embeddings=512, tie_word_embeddings=False)
    ask = lambda name, *options: run(retriever, tmp_path / name, f"flax:{model}", "--reader-tokens", "8", *options)
    code, one = ask("1")
    assert code == 0
    assert all(record["prediction"] for record in one)
    for devices in ("2", "0"):  # two, and all four
        code, split = ask(f"over {devices}", "--reader-devices", devices)
        assert code == 0
        assert [record["prediction"] for record in split] == [record["prediction"] for record in one]
    assert ask("3", "--reader-devices", "3")[0] == 64
    assert "num_key_value_heads = 4 does not divide over 3 devices" in (shown := capsys.readouterr().err)
    assert "(--reader-devices); use 1 or 2" in shown
    assert ask("5", "--reader-devices", "5")[0] == 64
    assert "--reader-devices = 5: only 4 cpu device(s) on this machine" in capsys.readouterr().err
    # The same folder goes on in another type; answers of the two are kept apart.
    assert ask("1", "--reader-dtype", "bfloat16")[0] == 0
    kept = [json.loads(line)["reader"] for line in (tmp_path / "1" / "answers" / "responses.jsonl").read_text().splitlines()]
    assert [sum(f"dtype={name}" in reader for reader in kept) for name in ("float32", "bfloat16")] == [12, 12]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--reader-devices", "-1"], "--reader-devices = -1: must be >= 0"),
        (["--reader-devices", "2"], "--reader-devices = 2: must be left at its default"),
        (["--reader-dtype", "bfloat16"], "--reader-dtype = 'bfloat16': must be left at its default"),
        (["--reader-dtype", "float16"], "float16"),
        (["--reader-timeout", "0"], "--reader-timeout = 0.0: must be a positive number of seconds"),
        (["--reader-concurrency", "0"], "--reader-concurrency = 0: must be >= 1"),
    ],
)
def test_bad_settings(retriever: Path, tmp_path: Path, options: list[str], named: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(retriever, tmp_path / "bad", "openai:http://localhost:1/v1,m", *options)[0] == 64
    assert named in capsys.readouterr().err
    assert not (tmp_path / "bad").exists()


def test_a_reader_that_cannot_be_had_is_found_before_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--run-dir", str(tmp_path / "run"), "--reader", f"flax:{tmp_path / 'nowhere'}"]
    assert cli.main("babilong", "", words) == 64
    assert "no such folder or file" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("reader", ["flax", "flax:", "openai:localhost,m", "openai:http://localhost/v1", "gpt"])
def test_bad_readers(retriever: Path, tmp_path: Path, reader: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate.main([str(retriever), "--run-dir", str(tmp_path / "bad"), "--reader", reader]) == 64
    assert "--reader = " in capsys.readouterr().err
    assert not (tmp_path / "bad").exists()


@pytest.mark.slow
@pytest.mark.quick
def test_a_reader_as_the_reward(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Training from answers alone finds the facts of qa1, although its support labels are never used."""
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    times = {"steps": 10, "eval_every": 5, "checkpoint_every": 5, "devices": 2}
    small = options(train=times, rl={"budget": 2, "reward": "answer_em"}, eval={"budget": 2, "episodes": 4})
    words = [*small, "--run-dir", str(tmp_path / "run")]
    assert command(*words) == 64
    assert "--reward = 'answer_em': must be support, or give a reader that answers" in capsys.readouterr().err
    with stub_server(lambda user, n: completion(last_place(user))) as server:
        words += ["--reader", f"openai:{server.url},stub"]
        assert command(*words) == 0
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    validation = [record for record in records if record["kind"] == "validation"]
    assert [record["step"] for record in validation] == [0, 5, 10]
    assert all(record["answer_em"] is not None for record in validation)
    checkpoint = tmp_path / "run" / "export"
    assert {path.name for path in checkpoint.iterdir()} == {
        *("qrag.json", "tokenizer.json", "tokenizer_config.json", "state_encoder", "action_encoder", "README.md", *ROUTER_FILES)
    }, "the reader is no part of what is saved"
