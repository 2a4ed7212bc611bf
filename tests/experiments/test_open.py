"""The open-corpus command, as a user would type it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from experiments.open.__main__ import main
from experiments.open.report import draw, read_open, summary, table
from qrag_jax.export.folder import Export, write_export
from tests.support.pictures import check, figures
from tests.support.small import SMALL, changed, small_learner, small_tokenizer, write_lines

__all__ = ["figures"]


@pytest.fixture(scope="module")
def retriever(tmp_path_factory: pytest.TempPathFactory) -> Path:
    learner, state = small_learner()
    folder = tmp_path_factory.mktemp("run")
    config = changed(SMALL, eval={"budget": 2})
    write_export(folder / "export", Export(config, learner.embedder.config, state.params, small_tokenizer(), "mean", threshold=0.1, step=7))
    return folder


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four questions in each split; every one needs two of its four chunks, and one chunk is in all documents."""
    folder = tmp_path_factory.mktemp("questions")
    for split in ("train", "validation", "test"):
        lines = []
        for i in range(4):
            name = f"{split}{i}"
            chunks = [f"Mary took the {name}.", f"The {name} is in the kitchen.", "John went home.", f"Sandra saw the {name} hall."]
            lines.append({"id": name, "question": f"Where is the {name}?", "chunks": chunks, "support": [0, 1], "answer": "kitchen"})
        write_lines(folder / f"{split}.jsonl", *lines)
    return folder


def words(questions: Path, out: Path, *more: str) -> list[str]:
    return ["--benchmark", "own", "--data-dir", str(questions), "--run-dir", str(out), "--picks", "2", "3", "--recall", "2", "5", *more]


def test_the_command(retriever: Path, questions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], figures: list[Figure]) -> None:
    passages = write_lines(tmp_path / "more.jsonl", {"title": "Rome", "text": "Rome is old."}, {"text": "John went home."})
    assert main([str(retriever), *words(questions, tmp_path / "out", "--beams", "1", "2", "--distractors", str(passages))]) == 0
    printed = capsys.readouterr().out
    found = read_open(tmp_path / "out" / "open.json")
    # Three chunks of each of four questions, the shared one, and one passage that is new.
    assert (found.questions, found.chunks, found.distractors, found.step, found.embedder) == (4, 14, 2, 7, "tiny")
    assert "4 test questions in one corpus of 14 chunks" in printed
    assert "choosing on 4 validation questions in one corpus of 14 chunks" in printed, "as large as the test's"
    assert "trained from scratch, so BM25 is the only baseline; name an encoder with --encoders" in printed
    assert (tmp_path / "out" / "open.md").read_text(encoding="utf-8").strip() in printed
    methods = list(dict.fromkeys(score.method for score in found.scores))
    assert methods == [
        *("BM25", "Q-RAG, greedy", "Q-RAG, beam 2", "Q-RAG, one look", "Q-RAG, until it stops", "Q-RAG, stop, then one look"),
        *("Q-RAG + its one look", "Q-RAG + BM25", "Q-RAG, chosen on validation"),
    ]
    assert sorted(found.chosen) == [2, 3, 5]
    at = {(score.method, score.metric, score.k): score for score in found.scores}
    episodes = [json.loads(line) for line in (tmp_path / "out" / "episodes" / "Q-RAG--greedy.jsonl").read_text().splitlines()]
    assert at["Q-RAG, greedy", "all_support", 3].value == sum(set(e["support"]) <= set(e["picked"][:3]) for e in episodes) / 4
    assert {len(e["picked"]) for e in episodes} == {5}, "three picks of the search, and two of its first look"
    for figure in figures:
        check(figure)
    # The same folder again; the baselines alone.
    assert main(words(questions, tmp_path / "out", "--preset", str(retriever / "export"), "--questions", "3")) == 0
    again = read_open(tmp_path / "out" / "open.json")
    assert (again.questions, again.step, again.chosen, {score.method for score in again.scores}) == (3, None, {}, {"BM25"})
    assert [path.name for path in (tmp_path / "out" / "episodes").iterdir()] == ["BM25.jsonl"], "those of the last command alone"


def test_the_title_says_which_questions(retriever: Path, questions: Path, tmp_path: Path) -> None:
    assert main([str(retriever), *words(questions, tmp_path / "out", "--baselines-only", "--split", "validation")]) == 0
    found = read_open(tmp_path / "out" / "open.json")
    assert found.title == "your own questions (all): 4 validation questions; one corpus of 13 chunks"
    part = replace(found, benchmark="musique", published=2417)
    assert part.title.startswith("MuSiQue (all): 4 validation questions, a subset of the 2,417 published ones; one")
    assert summary(part) in table(part)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--picks", "0"], "picks = (0,): must be one or more different numbers >= 1"),
        (["--recall", "5", "5"], "recall = (5, 5): must be one or more different numbers"),
        (["--picks", "101"], "picks and recall: must be <= 100"),
        (["--beams", "0"], "beams = (0,): must be"),
        (["--questions", "0"], "questions = 0: must be >= 1; omit it to ask all of them"),
        (["--validation-questions", "-1"], "--validation-questions = -1: must be >= 0"),
        (["--preset", "minilm"], "preset = 'minilm': the retriever has its own settings; give one of the two"),
        (["--baselines-only", "--beams", "2"], "beams = (2,): only for the search of a retriever; omit it for the baselines"),
        (["--baselines-only", "--validation-questions", "9"], "--validation-questions = 9: only for the search of a retriever"),
        (["--encoders", "minilm", "minilm"], "name each encoder once"),
        (["--encoders", "no such encoder"], "model.embedder = 'no such encoder': no such folder"),
        (["--distractors", "gone.jsonl"], "gone.jsonl: no such file"),
        (
            ["--benchmark", "babilong"],
            "'babilong': its documents are made for each question, so they are no corpus; choose with --benchmark:",
        ),
        (["--benchmark", "hotpotqa+musique"], "is a mixture; name one of its parts with --benchmark"),
        (["--benchmark", "musiqe"], "did you mean 'musique'?"),
    ],
)
def test_bad_input(retriever: Path, questions: Path, tmp_path: Path, more: list[str], message: str, capsys: Any) -> None:
    given = words(questions, tmp_path / "out")
    if more[0] == "--benchmark":
        given = given[2:]
    if more[0] in ("--picks", "--recall"):
        at = given.index(more[0])
        given = given[:at] + given[at + 3 :]
    assert main([str(retriever), *given, *more]) == 64
    assert message in " ".join(capsys.readouterr().err.split())
    assert not list((tmp_path / "out").glob("*"))


def test_a_folder_of_something_else_is_left_alone(retriever: Path, questions: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(retriever), *words(questions, retriever)]) == 64
    assert "not empty and holds no open.json" in capsys.readouterr().err


def test_hostile_files(retriever: Path, questions: Path, tmp_path: Path, figures: list[Figure]) -> None:
    assert main(words(questions, tmp_path / "out", "--preset", str(retriever / "export"))) == 0
    path = tmp_path / "out" / "open.json"
    good = json.loads(path.read_text(encoding="utf-8"))

    def refused(message: str, **changes: Any) -> None:
        path.write_text(json.dumps({**good, **changes}), encoding="utf-8")
        with pytest.raises(ValueError, match=rf"open\.json: .*{message}"):
            read_open(path)

    refused("schema = 1", schema=2)
    refused("scores", scores=[])
    refused("unknown field 'x'", x=1)
    refused("benchmark = '../x': must be a name", benchmark="../x")
    refused(r"scores\[0\]\.value", scores=[{**good["scores"][0], "value": "high"}])
    refused(r"scores\[0\]\.value = 1e\+30: must be", scores=[{**good["scores"][0], "value": 1e30}])
    refused("chosen", chosen={"two": "BM25"})
    refused("questions", questions=-1)
    path.write_text(json.dumps({name: value for name, value in good.items() if name != "seed"}), encoding="utf-8")
    with pytest.raises(ValueError, match="no field 'seed'"):
        read_open(path)
    path.write_text(json.dumps(good), encoding="utf-8")
    draw(read_open(path), tmp_path / "again.png")
