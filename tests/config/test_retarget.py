"""One configuration, other questions."""

from __future__ import annotations

from dataclasses import replace

import pytest

from qrag_jax.config import EvalConfig, RunConfig
from qrag_jax.config.presets import preset
from qrag_jax.config.retarget import only_tested, others, parts, retarget, retest
from tests.support.small import changed

QA2 = changed(preset("tiny", "babilong", "qa2"), data={"data_dir": "DIR"}, train={"seed": 3})


def test_what_is_omitted_stays() -> None:
    assert retarget(QA2) == QA2
    assert retarget(QA2, benchmark="babilong") == QA2
    assert retarget(QA2, task="qa3", chunks=160, seed=5) == changed(QA2, data={"task": "qa3", "chunks": 160}, train={"seed": 5})


def test_another_benchmark_has_its_usual_task() -> None:
    assert retarget(QA2, benchmark="ruler") == changed(QA2, data={"benchmark": "ruler", "task": "niah_mk3"})
    assert retarget(QA2, benchmark="musique", task="2hop", data_dir="M") == changed(
        QA2, data={"benchmark": "musique", "task": "2hop", "data_dir": "M"}
    )
    both = retarget(QA2, benchmark="hotpotqa:2+musique", task="all")
    assert (both.data.benchmark, both.data.task) == ("hotpotqa:2+musique", "all")


def test_other_benchmarks_are_tested_with_the_old_questions_alone() -> None:
    both = changed(QA2, eval={"benchmarks": ("musique",)})
    assert retarget(both, data_dir="OTHER").eval == both.eval
    assert retarget(both, task="qa1").eval.benchmarks == retarget(both, benchmark="musique").eval.benchmarks == ()


@pytest.mark.parametrize("word", ["none", "None"])
def test_none_asks_for_generated_questions(word: str) -> None:
    assert retarget(QA2, data_dir=word).data.data_dir is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"benchmark": "babylong"}, r"data\.benchmark = 'babylong': unknown; .*did you mean 'babilong'\?"),
        ({"task": "qa22"}, r"data\.task = 'qa22': unknown task of babilong; known: qa1"),
        ({"benchmark": "hotpotqa", "task": "qa2"}, r"data\.task = 'qa2': unknown task of hotpotqa; known: all, bridge, comparison"),
        ({"chunks": 0}, r"data\.chunks = 0: must be >= 1"),
        ({"seed": -1}, r"train\.seed = -1"),
    ],
)
def test_bad_values_are_named(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        retarget(QA2, **change)


def test_a_configuration_of_an_unknown_benchmark_can_be_asked_something_else() -> None:
    foreign = changed(QA2, data={"benchmark": "reference", "task": ""})
    assert retarget(foreign) == foreign
    assert retarget(foreign, benchmark="ruler").data.task == "niah_mk3"


def test_a_test_is_changed_where_something_is_given() -> None:
    test = EvalConfig(episodes=50, haystacks=4, reader="flax:m", reader_devices=2, reader_dtype="bfloat16")
    assert retest(test, budget=None, beam=None) == test
    assert retest(test, episodes=2) == replace(test, episodes=2, haystacks=2)
    assert retest(test, reader="none") == replace(test, reader="none", reader_devices=1, reader_dtype="auto")
    with pytest.raises(ValueError, match=r"eval\.haystacks = 4: must be in 1\.\.eval\.episodes \(2\)"):
        retest(test, episodes=2, haystacks=4)
    with pytest.raises(ValueError, match=r"eval\.reader_devices = 2: must be left at its default"):
        retest(EvalConfig(), reader_devices=2)


def test_a_retriever_trained_on_answers_can_be_tested_without_a_reader() -> None:
    trained = RunConfig(rl=replace(QA2.rl, reward="answer_em"), eval=EvalConfig(reader="flax:m"))
    assert only_tested(trained, trained.eval).rl.reward == "answer_em"
    assert only_tested(trained, retest(trained.eval, reader="none")).rl.reward == "support"
    assert only_tested(preset("tiny", "babilong", "qa3"), EvalConfig()).train.curriculum == ()


def test_parts_and_others() -> None:
    names = lambda found: [(one.benchmark, one.task) for one in found]
    assert names(parts(QA2.data)) == [("babilong", "qa2")]
    assert names(parts(replace(QA2.data, benchmark="hotpotqa:2+musique", task="all"))) == [("hotpotqa", "all"), ("musique", "all")]
    needles = names(parts(replace(QA2.data, benchmark="ruler", task="niah")))
    assert needles[0] == ("ruler", "niah_s1")
    assert len(needles) == 8
    assert names(others(QA2.data, ["musique"])) == [("musique", "all")]
    assert names(others(QA2.data, ["babilong/qa1", "ruler"])) == [("babilong", "qa1"), ("ruler", "niah_mk3")]
    for repeated in (["babilong"], ["musique", "musique/all"]):
        with pytest.raises(ValueError, match="is tested already"):
            others(QA2.data, repeated)
