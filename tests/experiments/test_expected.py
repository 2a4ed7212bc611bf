"""The paper's figures as data, and what an experiment's rows are held against."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from experiments.paper.anchors import FILE, anchors, load_anchors
from experiments.paper.compare import FOLDER, Comparison, compare, comparison_table, expected, load_expected, write_comparison
from qrag_jax.config import RunConfig
from qrag_jax.config.benchmarks import BENCHMARKS
from qrag_jax.config.presets import preset
from tests.support.small import changed

FIGURE = {
    **{"benchmark": "some", "task": "all", "context_tokens": None, "budget": 2, "method": "Q-RAG", "metric": "fact_em", "value": 0.5},
    **{"seeds": 3, "tolerance": 0.02, "place": "Table 9"},
}


def row(benchmark: str, task: str, tokens: int | None, **values: Any) -> dict[str, Any]:
    named = {"benchmark": benchmark, "task": task, "split": "test", "context_tokens": tokens, "budget": 4, "episodes": 10_000}
    measured = {"fact_em": 0.9, "fact_f1": 0.8, "fact_f1_stopped": 0.9, "answer_em": None, "answer_f1": None}
    return {**named, **measured, **values}


def paper_run(benchmark: str, task: str, name: str, **data: Any) -> RunConfig:
    """A run of the paper's size on its data."""
    return changed(preset(name, benchmark, task), data={"data_dir": "DIR", **data})


def one(rows: list[dict[str, Any]], tested: RunConfig, trained: RunConfig | None = None, **wanted: Any) -> Comparison:
    found = [c for c in compare(rows, tested, trained or tested) if all(getattr(c.figure, name) == value for name, value in wanted.items())]
    assert len(found) == 1, found
    return found[0]


def write(folder: Path, tree: Any) -> Path:
    path = folder / "some.json"
    path.write_text(json.dumps(tree), encoding="utf-8")
    return path


def test_every_file_is_read_and_is_of_a_benchmark() -> None:
    names = {path.stem for path in FOLDER.glob("*.json")}
    assert names == {"babilong", "ruler", "hotpotqa", "musique"} <= set(BENCHMARKS)
    for name in names:
        known = expected(name)
        assert known is not None
        assert known.source == "arXiv 2511.07328v2"
    assert expected("own") is None
    assert expected("ruler-official") == expected("ruler")


def test_figures_are_those_of_the_paper() -> None:
    def value(benchmark: str, **wanted: Any) -> float:
        known = expected(benchmark)
        assert known is not None
        (figure,) = [f for f in known.figures if all(getattr(f, name) == v for name, v in wanted.items())]
        return figure.value

    qa3 = {"task": "qa3", "metric": "fact_f1", "context_tokens": 1_000_000}
    assert value("babilong", method="Q-RAG", **qa3) == 0.965
    assert value("babilong", method="Q-RAG without target network", **qa3) == 0.759
    table2 = {"method": "Q-RAG", "place": "Table 2"}
    assert value("hotpotqa", metric="fact_em", **table2) == 0.89
    assert value("musique", metric="fact_em", trained_on="hotpotqa", **table2) == 0.55
    assert value("musique", metric="fact_em", trained_on="musique", **table2) == 0.72
    assert [value("hotpotqa", place="Table 4", metric="fact_em", budget=k) for k in (2, 3, 4, 5)] == [0.832, 0.935, 0.962, 0.978]
    ruler = expected("ruler")
    assert ruler is not None
    needles = [f.value for f in ruler.figures if f.context_tokens == 1_000_000 and f.task.startswith("niah")]
    # Six of 1, .985 and .99: the 99.7 that the paper gives as the average.
    assert sum(needles) / 8 == pytest.approx(0.996875)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"value": 97.8}, r"some.json: row 2: value = 97.8: must be in \[0, 1\]: percentages are divided by 100"),
        ({"metric": "recall"}, r"row 2: metric = 'recall'"),
        ({"budget": 0}, r"row 2: budget = 0: must be >= 1, or null"),
        ({"tolerance": 1.0}, r"row 2: tolerance = 1.0: must be in \[0, 1\)"),
        ({"seeds": "3"}, r"row 2: seeds = '3'"),
        ({"method": " "}, r"row 2: method = ' ': must be a name"),
        ({"benchmark": "other"}, r"row 2: benchmark = 'other': must be 'some', the name of the file"),
        ({"colour": "red"}, r"row 2: configuration: unknown field 'colour'"),
        ({}, r"row 2: repeats row 1"),
    ],
)
def test_a_bad_figure_is_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    tree = {"schema": 1, "source": "a paper", "rows": [FIGURE, {**FIGURE, **change}]}
    with pytest.raises(ValueError, match=message):
        load_expected(write(tmp_path, tree))


def test_a_bad_file_is_named(tmp_path: Path) -> None:
    good = {"schema": 1, "source": "a paper", "rows": [FIGURE]}
    assert load_expected(write(tmp_path, good)).figures[0].budget == 2
    with pytest.raises(ValueError, match=r"some.json: schema = 2: must be 1"):
        load_expected(write(tmp_path, {**good, "schema": 2}))
    with pytest.raises(ValueError, match=r"must be an object with schema, source and rows"):
        load_expected(write(tmp_path, {**good, "more": 1}))
    with pytest.raises(ValueError, match=r"source = '': must name the paper"):
        load_expected(write(tmp_path, {**good, "source": ""}))
    with pytest.raises(ValueError, match=r"rows must be a list of one or more"):
        load_expected(write(tmp_path, {**good, "rows": []}))
    with pytest.raises(ValueError, match=r"row 1: no field 'seeds'; needed: benchmark"):
        load_expected(write(tmp_path, {**good, "rows": [{k: v for k, v in FIGURE.items() if k != "seeds"}]}))
    with pytest.raises(ValueError, match=r"row 1: configuration: must be an object"):
        load_expected(write(tmp_path, {**good, "rows": ["0.5"]}))


def test_a_run_of_the_papers_kind_is_met_or_missed() -> None:
    config = paper_run("babilong", "qa3", "contriever")
    # Table 3 at 4K: 0.974, of which 0.02 may be missing.
    for score, verdict in ((0.974, "OK"), (0.955, "OK"), (0.953, "below")):
        found = one([row("babilong", "qa3", 4_000, fact_f1_stopped=score)], config, metric="fact_f1")
        assert (found.verdict, found.here, found.why) == (verdict, score, "")
    hotpot = paper_run("hotpotqa", "all", "e5")
    found = one([row("hotpotqa", "all", None, budget=2, fact_em=0.9)], hotpot, metric="fact_em", place="Table 2")
    assert found.verdict == "OK"
    answered = changed(hotpot, eval={"reader": "openai:http://host/v1,QwQ-32B"})
    found = one([row("hotpotqa", "all", None, budget=2, answer_em=0.3)], answered, metric="answer_em")
    assert found.verdict == "below"


def test_what_differs_is_said() -> None:
    tiny = preset("tiny", "babilong", "qa3")
    found = one([row("babilong", "qa3", 4_000)], tiny, metric="fact_f1")
    assert (found.verdict, found.here) == ("not comparable", 0.9)
    assert found.why == (
        "embedder tiny instead of contriever; 3,000 of the paper's 50,000 updates; labels in the loss beside the rewards; "
        "a beam of 4 instead of greedy search; generated stories in Python's documentation"
    )
    # What was not measured has no number, whatever else differs.
    found = one([row("babilong", "qa3", 4_000)], tiny, metric="answer_accuracy")
    assert (found.verdict, found.here, found.why) == ("not comparable", None, "answer_em was not measured")
    found = one([row("babilong", "qa3", 4_000, split="validation")], tiny, metric="fact_f1")
    assert found.why.endswith("; validation questions")
    hotpot = paper_run("hotpotqa", "all", "e5")
    found = one([row("hotpotqa", "all", None, budget=2, episodes=200)], hotpot, metric="fact_em", place="Table 2")
    assert found.why == "200 of 7,405 questions"
    gold = changed(hotpot, eval={"reader": "flax:some/model", "reader_context": "gold"})
    found = one([row("hotpotqa", "all", None, budget=2, answer_em=0.6)], gold, metric="answer_em")
    assert found.why == "the reader was given the gold context; reader flax:some/model instead of QwQ-32B"
    needles = changed(paper_run("ruler", "niah_mk1", "contriever"), data={"data_dir": None})
    found = one([row("ruler", "niah_mk1", 4_000, answer_em=1.0)], needles, metric="answer_accuracy")
    assert "Python's documentation instead of essays" in found.why
    uuids = replace(needles, data=replace(needles.data, task="niah_mk3"))
    assert "documentation" not in one([row("ruler", "niah_mk3", 4_000, answer_em=1.0)], uuids, metric="answer_accuracy").why


def test_figures_of_the_nearest_budget_and_training_set_are_taken() -> None:
    hotpot = paper_run("hotpotqa", "all", "gte")

    def at(budget: int) -> set[tuple[str, int | None]]:
        figures = [c.figure for c in compare([row("hotpotqa", "all", None, budget=budget)], hotpot, hotpot)]
        return {(figure.place, figure.budget) for figure in figures if figure and figure.metric == "fact_em"}

    assert at(2) == {("Table 2", 2), ("Table 4", 2)}
    assert at(4) == {("Table 4", 4)}
    assert at(9) == {("Table 4", 5)}
    found = one([row("hotpotqa", "all", None, budget=9)], hotpot, metric="fact_em")
    assert found.why == "9 picks instead of 5"
    # A retriever of HotpotQA on MuSiQue is out of distribution; one of 2Wiki is like neither figure.
    there, here = paper_run("musique", "all", "e5"), paper_run("hotpotqa", "all", "e5")
    assert one([row("musique", "all", None, fact_em=0.6)], there, here, metric="fact_em").verdict == "OK"
    assert one([row("musique", "all", None, fact_em=0.6)], there, metric="fact_em").verdict == "below"
    other = paper_run("twowiki", "all", "e5")
    both = [c for c in compare([row("musique", "all", None)], there, other) if c.figure and c.figure.metric == "fact_em"]
    assert [c.verdict for c in both] == ["not comparable"] * 2
    assert "trained on twowiki instead of musique" in both[0].why


def test_training_elsewhere_is_said() -> None:
    here = paper_run("babilong", "qa3", "contriever")
    why = lambda trained: one([row("babilong", "qa3", 4_000)], here, trained, metric="fact_f1").why
    assert why(here) == ""
    assert why(changed(here, data={"data_dir": None})) == "trained on generated stories"
    assert why(changed(here, data={"task": "qa2"})) == "trained on babilong qa2"
    assert why(paper_run("ruler", "niah_s1", "contriever")) == "trained on ruler niah_s1"
    # Rows of other benchmarks in the same run: told by the row, not by the run.
    found = one([row("babilong", "qa2", 4_000), row("babilong", "qa3", 4_000)], here, here, metric="fact_f1")
    assert found.why == ""
    there = changed(here, data={"task": "qa2"})
    assert one([row("babilong", "qa3", 4_000)], there, there, metric="fact_f1").why == "trained on babilong qa2"
    hotpot = paper_run("hotpotqa", "all", "e5")
    far = one([row("musique", "all", None, fact_em=0.6)], hotpot, metric="fact_em")
    assert (far.figure.trained_on, far.figure.value, far.verdict) == ("hotpotqa", 0.55, "OK")
    # Nothing was trained for the paper's row without fine-tuning.
    plain = row("hotpotqa", "all", None, budget=2, method="multi-step, no fine-tuning", fact_em=0.6)
    tested, other = paper_run("hotpotqa", "all", "e5"), paper_run("babilong", "qa2", "tiny")
    assert one([plain], tested, other, metric="fact_em").verdict == "OK"


def test_methods_have_their_own_figures() -> None:
    config = paper_run("hotpotqa", "all", "e5")
    beam = changed(config, eval={"beam": 4})
    assert one([row("hotpotqa", "all", None, budget=2, fact_em=0.92)], beam, metric="fact_em").figure.value == 0.91
    plain = row("hotpotqa", "all", None, budget=2, method="multi-step, no fine-tuning")
    assert one([plain], config, metric="fact_em").figure.value == 0.54
    (found,) = compare([row("hotpotqa", "all", None, budget=2, method="BM25")], config, config)
    assert (found.verdict, found.here, found.why) == (
        "no figure",
        None,
        "no figure of the paper is on record for BM25 on hotpotqa all",
    )
    ablation = changed(paper_run("babilong", "qa3", "contriever"), rl={"soft": False})
    assert one([row("babilong", "qa3", 32_000)], ablation, metric="fact_f1").figure.value == 0.945
    supervised = changed(paper_run("babilong", "qa3", "contriever"), rl={"objective": "supervised"})
    assert one([row("babilong", "qa3", 32_000)], supervised, metric="fact_f1").figure.value == 0.201
    softmax = changed(supervised, rl={"supervised_loss": "softmax"})
    (found,) = compare([row("babilong", "qa3", 32_000)], softmax, softmax)
    why = "no figure of the paper is on record for supervised fine-tuning by softmax on babilong qa3 at 32k"
    assert (found.verdict, found.why) == ("no figure", why)


def test_lengths() -> None:
    config = paper_run("babilong", "qa3", "contriever")
    (found,) = compare([row("babilong", "qa3", 16_000)], config, config)
    assert found.figure is None
    assert found.why == "no figure of the paper is on record for Q-RAG on babilong qa3 at 16k (but at 1k, 4k, 32k, 128k, 1m, 10m)"
    # RULER's own records: 4096 and 131072 are the paper's 4K and 128K, under their long names.
    ruler = paper_run("ruler", "niah_multikey_2", "contriever")
    for tokens, nominal in ((4096, 4_000), (131_072, 128_000), (1_048_576, 1_000_000)):
        (found,) = compare([row("ruler-official", "niah_multikey_2", tokens, answer_em=1.0)], ruler, ruler)
        assert found.figure is not None
        assert (found.figure.task, found.figure.context_tokens) == ("niah_mk2", nominal)
    (found,) = compare([row("own", "all", None)], config, config)
    assert found.why == "no figure of the paper is on record for own"


def test_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = paper_run("babilong", "qa3", "contriever")
    rows = [row("babilong", "qa3", 4_000, fact_f1_stopped=0.96), row("babilong", "qa1", 4_000)]
    write_comparison(tmp_path, rows, config, config)
    text = (tmp_path / "comparison.md").read_text(encoding="utf-8")
    assert text.startswith("Compared with the paper (arXiv 2511.07328v2):\n\n| task | method |")
    assert "| qa3 | Q-RAG | 4,000 | 4 | fact_f1_stopped | 0.960 | 0.974 | -0.014 | OK | - | Table 3 |" in text
    assert "| qa1 | Q-RAG | 4,000 | 4 | - | - | - | - | no figure | no figure of the paper is on record for Q-RAG on babilong qa1" in text
    assert capsys.readouterr().out == f"compared with the paper: {tmp_path / 'comparison.md'} (1 OK, 1 not comparable, 1 no figure)\n"
    assert comparison_table(compare([row("own", "all", None)], config, config)).startswith("Compared with the paper:\n")


def test_every_experiment_ends_with_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from experiments.cli import main
    from experiments.paper.compare import by_length
    from qrag_jax.evaluate import plots
    from qrag_jax.train import training

    drawn: list[Any] = []
    monkeypatch.setattr(training, "run", lambda config, run_dir, **_: [row("babilong", config.data.task, 4_000)])
    monkeypatch.setattr(plots, "context", lambda rows, path, paper: drawn.append((path, paper)))
    assert main("babilong", "", ["--task", "qa3", "--run-dir", str(tmp_path)]) == 0
    text = (tmp_path / "comparison.md").read_text(encoding="utf-8")
    assert "| fact_f1_stopped | 0.900 | 0.974 | -0.074 | not comparable | embedder tiny instead of contriever;" in text
    # The picture is drawn again with the paper's curve.
    ((path, paper),) = drawn
    assert path == tmp_path / "context.png"
    assert paper["babilong", "qa3", "fact_f1"] == by_length("babilong")["qa3", "fact_f1"]
    assert paper["babilong", "qa3", "fact_f1"] == {1_000: 0.978, 4_000: 0.974, 32_000: 0.971, 128_000: 0.968, 1_000_000: 0.965}


def test_anchors(tmp_path: Path) -> None:
    assert {anchor.method for anchor in anchors("musique")} >= {"HippoRAG 2", "PropRAG", "GRITHopper-7B"}
    assert anchors("babilong") == ()
    rows = json.loads(FILE.read_text(encoding="utf-8"))["rows"]
    path = tmp_path / "anchors.json"
    for change, message in [({"value": 74.7}, "value = 74.7: must be in"), ({"source": ""}, "source = '': must be"), ({"x": 1}, "'x'")]:
        path.write_text(json.dumps({"schema": 1, "rows": [rows[0], {**rows[1], **change}]}), encoding="utf-8")
        with pytest.raises(ValueError, match=rf"anchors\.json: row 2: .*{message}"):
            load_anchors(path)
