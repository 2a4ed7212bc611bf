"""The command a user types, on real (generated) input: to the end, and with bad input."""

from __future__ import annotations

import json

import numpy as np
import pytest

from experiments import evaluate
from experiments.cli import main
from qrag_jax import Retriever, data
from qrag_jax.config import RunConfig
from qrag_jax.data.splits import SPLITS
from tests.support.runs import SMALL, last_of_each

ROW = {
    *("benchmark", "task", "split", "context_tokens", "chunks", "episodes", "budget", "fact_em", "fact_f1"),
    *("fact_em_stopped", "fact_f1_stopped", "stop_threshold", "answer_em", "answer_f1", "ci95", "seconds_per_episode", "checkpoint_step"),
}


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


def test_evaluation_on_validation_questions_leaves_the_test_alone(whole, tmp_path, capsys):
    words = [str(whole), "--run-dir", str(tmp_path / "run"), "--eval-tokens", "1k", "--eval-episodes", "8"]
    assert evaluate.main([*words, "--split", "validation"]) == 0
    (row,) = json.loads((tmp_path / "run" / "results.json").read_text())["rows"]
    assert (row["split"], row["chunks"]) == ("validation", 50)
    asked = [json.loads(line)["question"] for line in (tmp_path / "run" / "episodes" / "babilong-qa1-1k.jsonl").read_text().splitlines()]
    config = RunConfig.from_json((whole / "config.json").read_text())
    questions = {split: [data.load(config.data, split, seed=0, chunks=50, haystacks=2)[i].question for i in range(8)] for split in SPLITS}
    assert sorted(asked) == sorted(questions["validation"]) != sorted(questions["test"])
    assert evaluate.main([*words, "--split", "train"]) == 64
    official = ["--benchmark", "ruler", "--task", "niah_s1", "--official", "--split", "validation", "--data-dir", str(tmp_path)]
    assert evaluate.main([*words[:1], "--run-dir", str(tmp_path / "official"), *official]) == 64
    assert "--split = 'validation': official records are for the test alone" in capsys.readouterr().err


def test_the_trained_retriever_answers_over_a_text(whole):
    retriever = Retriever.from_pretrained(whole)
    text = "It was a dark night. Mary went to the kitchen. Nobody saw her leave the house. John stayed outside. The rain fell on the roof."
    picks = retriever.search("Where is Mary?", text, budget=2)
    assert len(picks) == 2
    assert all(text[pick.start : pick.end] == pick.text for pick in picks)
    assert all(pick.position >= 0 for pick in picks)
    again = Retriever.from_pretrained(whole / "export").search("Where is Mary?", [pick.text for pick in picks], budget=2)
    assert {pick.text for pick in again} == {pick.text for pick in picks}
    everything = retriever.search("Where is Mary?", text, budget=99)  # all that there is, each chunk once
    assert sorted(pick.chunk for pick in everything) == list(range(len(everything)))
    with pytest.raises(ValueError, match="question is empty"):
        retriever.search(" ", text)


def refuse(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """Runs the command in this process; it must refuse in one line with exit code 64."""
    assert main("babilong", "", last_of_each([*SMALL, *words])) == 64
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ")
    assert "\n" not in error
    return error


def test_bad_values_are_refused_in_one_line(capsys, tmp_path):
    run_dir = ("--run-dir", str(tmp_path / "run"))
    assert "qa9" in refuse(capsys, "--task", "qa9", *run_dir)
    assert "known: tiny" in refuse(capsys, "--preset", "huge", *run_dir)
    assert "--rl.budget = 20: must be <= --data.chunks (16)" in refuse(capsys, "--rl.budget", "20", *run_dir)
    assert "optim.batch = 6: does not divide over 4 devices" in refuse(
        capsys, "--optim.batch", "6", "--train.parallel", "pmap", "--train.devices", "4", *run_dir
    )
    assert "context length '4q'" in refuse(capsys, "--eval-tokens", "4q", *run_dir)
    assert "--curriculum" in refuse(capsys, "--curriculum", "qa1", *run_dir)
    assert "--embedder = 'nonsense'" in refuse(capsys, "--embedder", "nonsense", *run_dir)
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
    assert "not empty, but not a run" in refuse(capsys, "--run-dir", str(foreign))
    assert [path.name for path in foreign.iterdir()] == ["thesis.txt"]
    before = (whole / "config.json").read_text()
    assert "holds another run (--optim.learning-rate was" in refuse(capsys, "--optim.learning-rate", "0.1", "--run-dir", str(whole))
    assert (whole / "config.json").read_text() == before


@pytest.mark.slow
def test_the_tiny_preset_learns(tmp_path):
    # An untrained retriever finds the fact of one question in seven; 60 updates of the tiny preset must find three of five.
    words = ("--task", "qa1", "--steps", "60", "--train.eval-every", "60", "--train.checkpoint-every", "60", "--train.devices", "1")
    words += ("--eval-tokens", "4k", "--eval-episodes", "50", "--run-dir", str(tmp_path / "run"))
    assert main("babilong", "", words) == 0
    (row,) = json.loads((tmp_path / "run" / "results.json").read_text())["rows"]
    assert row["fact_em"] >= 0.6
