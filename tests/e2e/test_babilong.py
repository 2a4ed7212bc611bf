"""The command a user types, on real (generated) input: to the end, killed and resumed, and with bad input."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments.cli import main
from qrag_jax import Retriever
from qrag_jax.checkpoint import Checkpoints
from qrag_jax.config import BABI_TASKS
from tests.conftest import ROOT
from tests.helpers import small_learner

SMALL = (
    *("--task", "qa1", "--steps", "40", "--data.chunks", "16", "--data.shared-noise", "8", "--model.layers", "1", "--model.width", "32"),
    *("--model.heads", "2", "--model.mlp-width", "64", "--model.vocab-size", "600", "--model.max-positions", "64", "--optim.batch", "8"),
    *("--train.log-every", "5", "--train.eval-every", "10", "--train.checkpoint-every", "10", "--train.eval-episodes", "8"),
    *("--train.devices", "1", "--eval-tokens", "1k", "--eval-episodes", "8"),
)
TIMES = ("seconds", "transitions_per_second", "chunks_per_second")
ROW = {
    *("benchmark", "task", "split", "context_tokens", "chunks", "episodes", "budget", "fact_em", "fact_f1", "fact_f1_stopped"),
    *("stop_threshold", "answer_em", "answer_f1", "ci95", "seconds_per_episode", "checkpoint_step"),
}


def start(run_dir: Path, *extra: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".jax_cache"), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    command = [sys.executable, "-m", "experiments.babilong", *SMALL, "--run-dir", str(run_dir), *extra]
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(process: subprocess.Popen[str], code: int = 0) -> str:
    output, _ = process.communicate(timeout=400)
    assert process.returncode == code, output
    return output


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    for _ in range(3000):
        if path.exists():
            return
        assert process.poll() is None, process.stdout.read() if process.stdout else ""
        time.sleep(0.1)
    raise AssertionError(f"{path} did not appear")


def records(run_dir: Path) -> list[dict[str, object]]:
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in TIMES} for line in lines]


def last_state(run_dir: Path) -> dict[str, np.ndarray]:
    folder = max((run_dir / "checkpoints" / "last").glob("[0-9]*"), key=lambda path: int(path.name))
    import orbax.checkpoint as ocp

    tree = ocp.StandardCheckpointer().restore(folder / "state")
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree.leaves_with_path(tree)}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("whole") / "run"
    finish(start(run_dir))
    return run_dir


def test_a_run_leaves_what_the_contract_says(whole):
    names = {str(path.relative_to(whole)) for path in whole.rglob("*")}
    expected = {
        "config.json",
        "manifest.json",
        "metrics.jsonl",
        "results.json",
        "results.md",
        "curves.png",
        "context.png",
        "tokenizer.json",
    }
    expected |= {"checkpoints", "episodes/babilong-qa1-1k.jsonl", "export/qrag.json", "export/state_encoder/model.safetensors"}
    assert expected <= names
    results = json.loads((whole / "results.json").read_text())
    assert results["schema"] == 1
    (row,) = results["rows"]
    assert set(row) == ROW
    assert row["answer_em"] is None
    episodes = [json.loads(line) for line in (whole / "episodes" / "babilong-qa1-1k.jsonl").read_text().splitlines()]
    assert row["fact_em"] == np.mean([set(e["support"]) <= set(e["picked"]) for e in episodes])
    train = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines() if '"train"' in line]
    assert all(r["transitions_per_second"] > 0 and r["chunks_per_second"] > 0 for r in train)


def test_the_trained_retriever_answers_over_a_text(whole):
    retriever = Retriever.from_pretrained(whole)
    text = "It was a dark night. Mary went to the kitchen. Nobody saw her leave the house. John stayed outside. The rain fell on the roof."
    picks = retriever.search("Where is Mary?", text, budget=2)
    assert len(picks) == 2
    assert all(text[pick.start : pick.end] == pick.text for pick in picks)
    assert all(pick.position >= 0 for pick in picks)
    again = Retriever.from_pretrained(whole / "export").search("Where is Mary?", [pick.text for pick in picks], budget=2)
    assert {pick.text for pick in again} == {pick.text for pick in picks}
    with pytest.raises(ValueError, match="budget = 99"):
        retriever.search("Where is Mary?", text, budget=99)
    with pytest.raises(ValueError, match="question is empty"):
        retriever.search(" ", text)


def test_killed_and_resumed_equals_uninterrupted(whole, tmp_path):
    run_dir = tmp_path / "run"
    process = start(run_dir)
    wait_for(run_dir / "checkpoints" / "last" / "20", process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    with (run_dir / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "tra')  # as if killed while writing a line
    assert "resuming" in finish(start(run_dir))
    assert records(run_dir) == records(whole)
    expected = last_state(whole)
    found = last_state(run_dir)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)
    assert (run_dir / "episodes/babilong-qa1-1k.jsonl").read_text() == (whole / "episodes/babilong-qa1-1k.jsonl").read_text()


def test_sigterm_saves_and_exits_75(whole, tmp_path):
    run_dir = tmp_path / "run"
    process = start(run_dir)
    wait_for(run_dir / "checkpoints" / "last" / "10", process)
    process.send_signal(signal.SIGTERM)
    assert "run the same command again" in finish(process, 75)
    finish(start(run_dir))
    assert records(run_dir) == records(whole)


def refuse(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """Runs the command in this process; it must refuse in one line with exit code 64."""
    assert main("babilong", BABI_TASKS, "qa2", "", [*SMALL, *words]) == 64
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ")
    assert "\n" not in error
    return error


def test_bad_values_are_refused_in_one_line(capsys, tmp_path):
    run_dir = ("--run-dir", str(tmp_path / "run"))
    assert "qa9" in refuse(capsys, "--task", "qa9", *run_dir)
    assert "known: tiny" in refuse(capsys, "--preset", "huge", *run_dir)
    assert "rl.budget = 20: must be <= data.chunks (16)" in refuse(capsys, "--rl.budget", "20", *run_dir)
    assert "optim.batch = 6: does not divide over 4 devices" in refuse(
        capsys, "--optim.batch", "6", "--train.parallel", "pmap", "--train.devices", "4", *run_dir
    )
    assert "context length '4q'" in refuse(capsys, "--eval-tokens", "4q", *run_dir)
    assert "train.curriculum" in refuse(capsys, "--curriculum", "qa1", *run_dir)
    assert "model.embedder = 'nonsense'" in refuse(capsys, "--embedder", "nonsense", *run_dir)
    assert not any((tmp_path / "run").rglob("*.json*"))


def test_unknown_options_exit_64(capsys):
    assert "--no-such-option" in refuse(capsys, "--no-such-option", "1")


def test_bad_data_is_refused_with_its_place(capsys, tmp_path):
    folder = tmp_path / "data"
    official = folder / "babi" / "en-10k"
    official.mkdir(parents=True)
    names = {split: official / f"qa1_single-supporting-fact_{split}.txt" for split in ("train", "test")}
    options = ("--data-dir", str(folder), "--run-dir", str(tmp_path / "run"))
    assert names["test"].name in refuse(capsys, *options)
    for path in names.values():
        path.write_text("1 Mary moved to the bathroom.\n3 Where is Mary? \tbathroom\t1\n")
    assert ".txt:2" in refuse(capsys, *options)
    for split, people in (("train", ("Mary", "John", "Sandra")), ("test", ("Daniel",))):
        places = [
            (who, verb, where) for who in people for verb in ("went", "moved") for where in ("garden", "office", "kitchen", "hallway")
        ]
        stories = (f"1 {who} {verb} to the {where}.\n2 Where is {who}? \t{where}\t1\n" for who, verb, where in places)
        names[split].write_text("".join(stories))
        (folder / "books" / split).mkdir(parents=True)
    assert "books" in refuse(capsys, *options)
    assert not (tmp_path / "run" / "config.json").exists()


def test_a_foreign_or_different_run_directory_is_left_alone(capsys, whole, tmp_path):
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("mine")
    assert "not empty and not a run" in refuse(capsys, "--run-dir", str(foreign))
    assert [path.name for path in foreign.iterdir()] == ["thesis.txt"]
    before = (whole / "config.json").read_text()
    assert "holds another run (optim.learning_rate was" in refuse(capsys, "--optim.learning-rate", "0.1", "--run-dir", str(whole))
    assert (whole / "config.json").read_text() == before


def test_foreign_checkpoints_are_refused(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "format.json").write_text('{"format": "something", "version": 9}')
    with pytest.raises(ValueError, match="come from another program"):
        Checkpoints(tmp_path)


def test_a_damaged_checkpoint_is_refused(tmp_path):
    _, state = small_learner()
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save("last", 7, jax.device_get(state), {"seconds": 1.0})
    restored, info = checkpoints.restore("last", state)
    jax.tree.map(np.testing.assert_array_equal, jax.random.key_data(restored.key), jax.random.key_data(state.key))
    assert info == {"seconds": 1.0}
    for path in (tmp_path / "checkpoints" / "last" / "7" / "state").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ValueError, match="cannot be restored"):
        checkpoints.restore("last", state)
    checkpoints.close()


def test_the_tiny_preset_learns(tmp_path):
    # Chance is 4 picks of 40, 0.1 (and 0 of the reward of a first pick); 120 updates of the tiny preset must find four facts of five.
    run_dir = tmp_path / "run"
    words = ["--task", "qa1", "--steps", "120", "--train.eval-every", "60", "--train.checkpoint-every", "60", "--eval-tokens", "4k"]
    words += ["--eval-episodes", "100", "--train.devices", "1", "--run-dir", str(run_dir)]
    assert main("babilong", BABI_TASKS, "qa2", "", words) == 0
    (row,) = json.loads((run_dir / "results.json").read_text())["rows"]
    assert row["fact_em"] >= 0.8
