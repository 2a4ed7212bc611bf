"""``experiments.evaluate --official``: HotpotQA's fullwiki questions, of which some lack their paragraphs, and BABILong's rows. (RULER's:
tests/data.)"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import pytest

from experiments import evaluate
from qrag_jax.config import DataConfig
from qrag_jax.data.multihop.hotpotqa import FULLWIKI_FILE, load_fullwiki, read_fullwiki
from qrag_jax.evaluate.episodes import read_answers, score_episodes
from qrag_jax.evaluate.metrics import fact_em, fact_f1
from qrag_jax.evaluate.sets import FULLWIKI, EvaluationSet
from qrag_jax.reader.prompts import closed_book
from qrag_jax.reader.protocol import Answer
from qrag_jax.retrieve.types import Trajectory

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"


def test_fullwiki_records_count_what_is_missing() -> None:
    records, _ = read_fullwiki(FIXTURES / "hotpotqa" / FULLWIKI_FILE)
    # Both titles are there, at 2 and 0; Holm Tower, named by two facts, is missing; both are missing.
    assert [(record.id, record.support, record.missing, record.hops) for record in records] == [
        ("fw0", (0, 2), 0, 2),
        ("fw1", (1,), 1, 2),
        ("fw2", (), 2, 2),
    ]
    questions = load_fullwiki(DataConfig(benchmark="hotpotqa", task="all", data_dir=str(FIXTURES)), seed=0)
    assert {example.id: (example.support, example.missing) for example in questions} == {
        "hotpotqa/fw0": ((0, 2), 0),
        "hotpotqa/fw1": ((1,), 1),
        "hotpotqa/fw2": ((), 2),
    }
    bridges = DataConfig(benchmark="hotpotqa", task="bridge", data_dir=str(FIXTURES), chunk_text="reference")
    assert sorted(example.chunks[-1] for example in load_fullwiki(bridges, seed=0)) == [
        "Ilm Ilm has a fair in June.",
        "Ostrel Bridge The Ostrel Bridge crosses the Ostrel.",
    ]


def test_scores_of_a_question_whose_paragraphs_are_missing() -> None:
    # One of two supporting chunks is missing. Both picks: 2 * 1 / (2 + 1 + 1). Nothing of the support is there: 0.
    assert (fact_em([1, 0], [1], 1), fact_f1([1, 0], [1], 1)) == (0.0, 0.5)
    assert (fact_em([1, 0], [], 2), fact_f1([1, 0], [], 2)) == (0.0, 0.0)
    with pytest.raises(ValueError, match="support is empty"):
        fact_em([1, 0], [])


def test_a_reader_with_gold_context_gets_what_there_is() -> None:
    class Echo:
        name = "echo"

        def answer(self, prompts):
            self.prompts = list(prompts)
            return [Answer("no", None, None, "stop") for _ in prompts]

    config = DataConfig(benchmark="hotpotqa", task="all", data_dir=str(FIXTURES))
    examples = sorted(load_fullwiki(config, seed=0), key=lambda example: example.id)
    records = score_episodes(examples, [Trajectory((0, 1), (0.5, 0.4), (0.0, 0.0))] * 3)
    assert [asdict(record)["missing"] for record in records] == [0, 1, 2]
    name = f"hotpotqa{FULLWIKI}"
    reader = Echo()
    read_answers(reader, records, EvaluationSet(name, name, "all", None, 2, examples, (range(3),)), "gold", examples)
    asked = [prompt.messages[-1]["content"] for prompt in reader.prompts]
    assert "Grenn Castle stands on a hill." in asked[1]
    assert "Ilm" not in asked[1]
    assert reader.prompts[2] == closed_book("hotpotqa", "all", examples[2].question)


def test_evaluate_on_the_fullwiki_file(whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "data"
    shutil.copytree(FIXTURES / "hotpotqa", data / "hotpotqa")
    path = data / "hotpotqa" / FULLWIKI_FILE
    path.write_text(path.read_text().replace('"fw1"', '"hp0"'))  # hp0 is in hotpot_fit.json
    words = [str(whole), "--benchmark", "hotpotqa", "--data-dir", str(data), "--official", "--budget", "2"]
    assert evaluate.main([*words, "--run-dir", str(tmp_path / "run")]) == 0
    said = capsys.readouterr().out
    assert "hotpotqa-fullwiki-all: 2 of these questions lack supporting chunks in their documents; their Fact EM is 0" in said
    assert "1 of its 3 questions are in hotpot_fit.json too" in said
    (row,) = json.loads((tmp_path / "run" / "results.json").read_text())["rows"]
    assert (row["benchmark"], row["task"], row["episodes"], row["context_tokens"]) == ("hotpotqa-fullwiki", "all", 3, None)
    assert row["fact_em"] in (0.0, 1 / 3)
    lines = (tmp_path / "run" / "episodes" / "hotpotqa-fullwiki-all.jsonl").read_text().splitlines()
    assert sorted(json.loads(line)["missing"] for line in lines) == [0, 1, 2]
    assert "no figure of the paper is on record for hotpotqa-fullwiki" in (tmp_path / "run" / "comparison.md").read_text()
    # The usual test does not read the file.
    usual = [str(whole), "--benchmark", "hotpotqa", "--data-dir", str(data), "--budget", "2", "--run-dir", str(tmp_path / "usual")]
    assert evaluate.main(usual) == 0
    (row,) = json.loads((tmp_path / "usual" / "results.json").read_text())["rows"]
    assert (row["benchmark"], row["episodes"]) == ("hotpotqa", 1)


def test_evaluate_on_published_rows_of_babilong(whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "data" / "babilong" / "data" / "qa1"
    folder.mkdir(parents=True)
    facts = "Mary went to the office.John moved to the garden."
    rows = [
        {"input": f"The rain fell on the roof.{facts}He was", "question": "Where is Mary? ", "target": "office"},
        {"input": facts, "question": "Where is John? ", "target": "garden"},
        {"input": facts, "question": "Where is Sandra? ", "target": "garden"},
    ]
    for length in ("0k", "1k"):
        (folder / f"{length}.json").write_text(json.dumps(rows))
    words = [str(whole), "--data-dir", str(tmp_path / "data"), "--official", "--budget", "2", "--run-dir", str(tmp_path / "run")]
    assert evaluate.main(words) == 64
    said = capsys.readouterr().err
    assert (
        "0k.json: record 3: facts without the target: the 2 facts of qa1 in its input do not answer 'Where is Sandra?' with 'garden'"
        in said
    )
    assert "leave out bad records with --skip-bad" in said
    assert evaluate.main([*words, "--skip-bad"]) == 0
    assert capsys.readouterr().out.count("2 questions; 1 left out (1 facts without the target)") == 2
    assert evaluate.main([*words, "--no-skip-bad"]) == 64, "there is nothing that it could mean"
    assert evaluate.main([*words[:-1], str(tmp_path / "one"), "--skip-bad", "--eval-episodes", "1"]) == 0
    assert "babilong-official-qa1-0k: the first 1 of 2 rows; eval.episodes 2 takes all" in capsys.readouterr().out
    found = json.loads((tmp_path / "run" / "results.json").read_text())["rows"]
    assert [(row["benchmark"], row["task"], row["episodes"], row["context_tokens"]) for row in found] == [
        ("babilong-official", "qa1", 2, 0),
        ("babilong-official", "qa1", 2, 1000),
    ]
    # Two chunks, two picks.
    assert found[0]["fact_em"] == 1.0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--benchmark", "musique", "--data-dir", "."), "only babilong (its rows), ruler (its records) and hotpotqa (the fullwiki file)"),
        (("--data-dir", "nowhere"), "nowhere/babilong: no qa1/LENGTH.json and no LENGTH/qa1-*.parquet"),
        ((), "give the folder that holds babilong/"),
        (("--benchmark", "hotpotqa", "--data-dir", "nowhere"), f"nowhere/hotpotqa/{FULLWIKI_FILE}: no such file"),
        (("--benchmark", "hotpotqa"), f"give the folder that holds hotpotqa/{FULLWIKI_FILE}, from https://hotpotqa.github.io"),
        (("--benchmark", "ruler", "--task", "qa_sh", "--data-dir", "nowhere"), "must hold ruler/LENGTH/qa_1/validation.jsonl"),
    ],
)
def test_missing_official_files_are_named(words: tuple[str, ...], message: str, whole: Path, tmp_path: Path, capsys) -> None:
    assert evaluate.main([str(whole), "--run-dir", str(tmp_path / "run"), "--official", *words]) == 64
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
