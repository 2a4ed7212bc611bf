"""The table of benchmarks agrees with the modules that it names, and is all that a new benchmark needs."""

from __future__ import annotations

import sys

import pytest

from experiments import baselines, evaluate
from experiments.cli import parse, read
from experiments.options import Questions
from experiments.paper.compare import compare, expected
from experiments.report import title
from qrag_jax import data
from qrag_jax.config import RunConfig, benchmarks
from qrag_jax.config.benchmarks import ALL, BENCHMARKS, Benchmark, Task
from qrag_jax.config.presets import PRESETS, preset
from qrag_jax.data.ruler.needles import NIAH
from qrag_jax.data.ruler.qa import QA_TASKS
from qrag_jax.evaluate.answers import BABILONG_LABELS, SCORERS, score_answer
from qrag_jax.evaluate.sets import final_sets, validation_set
from qrag_jax.reader.prompts import TEMPLATES, closed_book, make_prompt
from qrag_jax.train.batches import Batches, stage_examples
from tests.support import throwaway
from tests.support.small import changed, small_tokenizer


@pytest.mark.parametrize("name", BENCHMARKS)
def test_an_entry_names_what_there_is(name: str) -> None:
    known = BENCHMARKS[name]
    module = data.reader(name)
    assert callable(module.load)
    assert hasattr(module, "context_chunks") == known.made_to_length
    assert known.default_task in known.names
    assert len(set(known.names)) == len(known.names)
    assert set(known.aliases.values()) <= set(known.tasks)
    for task in known.tasks.values():
        assert task.prompt in TEMPLATES
        assert task.scorer in SCORERS
        assert set(task.parts) <= set(known.names)
    assert len({one.title for one in BENCHMARKS.values()}) == len(BENCHMARKS)


def test_tasks_are_those_that_are_read() -> None:
    assert set(BENCHMARKS["babilong"].tasks) == set(BABILONG_LABELS)
    ruler = BENCHMARKS["ruler"]
    assert set(ruler.tasks) == {*NIAH, *QA_TASKS, "niah"}
    for name, task in NIAH.items():
        assert ("essays" in ruler.tasks[name].generated) == (task.haystack == "essays"), name
    assert {ruler.aliases[name] for name in ruler.tasks["niah"].parts} == set(NIAH)


@pytest.mark.parametrize(
    ("benchmark", "task", "ordered", "chunk_by", "positions", "picks", "scorer"),
    [
        ("babilong", "qa3", True, "sentence", "relative", 4, "babilong"),
        ("ruler", "niah_mk3", True, "sentence", "none", 4, "all_values"),
        ("ruler", "niah_multikey_3", True, "sentence", "none", 4, "all_values"),
        ("ruler", "qa_mh", False, "tokens", "none", 4, "any_value"),
        ("hotpotqa", "bridge", False, "tokens", "none", 2, "squad"),
        ("own", "all", True, "tokens", "relative", 4, "squad"),
        ("qmsum", "all", True, "tokens", "relative", 6, "squad"),
        ("hotpotqa+hotpotqa_evidence", "all", False, "tokens", "none", 4, "squad"),
        ("hotpotqa:2+musique:1", "all", False, "tokens", "none", 4, "squad"),
        ("own+hotpotqa", "all", False, "tokens", "none", 4, "squad"),
    ],
)
def test_facts(benchmark: str, task: str, ordered: bool, chunk_by: str, positions: str, picks: int, scorer: str) -> None:
    found = benchmarks.task(benchmark, task)
    assert (found.ordered, found.chunk_by, found.positions, found.scorer) == (ordered, chunk_by, positions, scorer)
    assert benchmarks.picks(benchmark) == picks


def test_names_of_a_benchmark_and_task() -> None:
    assert benchmarks.named("babilong/qa3") == ("babilong", "qa3")
    usual = {name: benchmarks.named(name)[1] for name in BENCHMARKS}
    assert {name: task for name, task in usual.items() if task != ALL} == {"babilong": "qa2", "ruler": "niah_mk3"}


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (
            lambda: benchmarks.find("hotpot"),
            r"data\.benchmark = 'hotpot': unknown; known: babilong, .*twowiki.*; did you mean 'hotpotqa'\?",
        ),
        (lambda: benchmarks.weights("hotpotqa+musiqe"), r"'musiqe': unknown; .*did you mean 'musique'\?"),
        (lambda: benchmarks.weights("hotpotqa:0"), r"data\.benchmark = 'hotpotqa:0': write names joined by \+"),
        (
            lambda: benchmarks.task("ruler", "niah_mk9"),
            r"data\.task = 'niah_mk9': unknown task of ruler; known: niah_s1, .*did you mean 'niah_mk",
        ),
        (lambda: benchmarks.task("hotpotqa+musique", "bridge"), r"data\.task = 'bridge': unknown task of musique"),
        (lambda: benchmarks.named("ruler/qa_sx"), r"eval\.benchmarks = 'ruler/qa_sx': unknown; .*did you mean 'ruler/qa_sh'\?"),
    ],
)
def test_unknown_names_list_the_known_ones_and_guess(ask, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ask()


def test_a_mixture_of_different_prompts_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BENCHMARKS, "other", Benchmark("Other", "other", {ALL: Task(prompt="needles")}))
    with pytest.raises(ValueError, match=r"'musique\+other': its parts have different prompts or scores; name the part"):
        make_prompt("musique+other", ALL, "?", ["text"])


@pytest.fixture
def boxes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A new benchmark: an entry in the table, and the module that it names."""
    monkeypatch.setitem(sys.modules, "qrag_jax.data.throwaway", throwaway)
    tasks = {"colour": Task(ordered=True), "size": Task("stories", scorer="any_value")}
    monkeypatch.setitem(BENCHMARKS, "boxes", Benchmark("Boxes", "throwaway", tasks, "colour", made_to_length=True, picks=3))


@pytest.mark.usefixtures("boxes")
def test_a_new_benchmark_touches_the_table_alone() -> None:
    for name in PRESETS:
        for task in ("colour", "size"):
            config = preset(name, "boxes", task)
            assert RunConfig.from_json(config.to_json()) == config
    config = preset("tiny", "boxes")
    assert (config.data.task, config.data.chunk_by, config.qhead.positions, config.eval.budget) == ("colour", "tokens", "relative", 3)
    config = changed(config, optim={"batch": 4}, train={"eval_episodes": 6}, eval={"tokens": ("1k", "2k"), "episodes": 4})
    # Training batches.
    stages = [(stage, stage_examples(config, stage)) for stage in config.train.stages(config.data)]
    batch = Batches(config.data, config.optim.batch, small_tokenizer(), stages)[0]
    assert batch.support.shape[0] == 4
    # Test and validation, alone and after another benchmark.
    assert [(one.name, len(one.examples[0].chunks), one.budget) for one in final_sets(config)] == [
        ("boxes-colour-1k", 20, 3),
        ("boxes-colour-2k", 40, 3),
    ]
    assert len(validation_set(config).examples[0].chunks) == config.data.chunks
    elsewhere = changed(preset("tiny", "babilong", "qa1"), eval={"tokens": ("1k",), "episodes": 2, "benchmarks": ("boxes/size",)})
    assert [(one.name, one.budget) for one in final_sets(elsewhere)] == [("babilong-qa1-1k", 4), ("boxes-size-1k", 3)]
    # A reader's prompt and score.
    example = validation_set(config).examples[2]
    assert make_prompt("boxes", "colour", example.question, example.chunks).system == TEMPLATES["texts"].instruction
    assert "box 2" in closed_book("boxes", "size", example.question).user
    assert score_answer("boxes", "colour", example.answer, example) == (1.0, 1.0)
    assert score_answer("boxes", "size", f"It is {example.answer}.", example) == (1.0, None)


@pytest.mark.usefixtures("boxes")
def test_commands_know_a_new_benchmark() -> None:
    command = parse("boxes", "", ["--task", "size", "--steps", "20"])
    assert (command.config.data.benchmark, command.config.data.task, command.run_dir) == ("boxes", "size", "runs/boxes-size-tiny")
    with pytest.raises(ValueError, match=r"data\.task = 'colur': unknown task of boxes; known: colour, size; did you mean 'colour'\?"):
        parse("boxes", "", ["--task", "colur"])
    asked = read(baselines.Command, ["--benchmark", "boxes", "--preset", "tiny"], "experiments.baselines", "")
    assert baselines.configuration(asked).data.task == "colour"
    asked = read(evaluate.Command, ["runs/x", "--run-dir", "out", "--benchmark", "boxes"], "experiments.evaluate", "")
    assert asked.questions.of(preset("tiny", "babilong")).data.task == "colour"
    assert Questions(benchmark="boxes").of_preset("minilm").data.task == "colour"
    # Reports: its title, and that the paper has no figures for it.
    assert title("boxes") == "Boxes"
    assert expected("boxes") is None
    row = {"benchmark": "boxes", "task": "size", "split": "test", "context_tokens": 1_000, "budget": 3, "episodes": 4}
    (found,) = compare([row], command.config, command.config)
    assert found.verdict == "no figure"
