"""Several benchmarks in one run: mixtures to train on, others to be tested on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from qrag_jax import data
from qrag_jax.config import DataConfig, EvalConfig
from qrag_jax.config.benchmarks import weights
from qrag_jax.data.mixture import Mixture
from qrag_jax.evaluate import sets
from tests.support.small import SMALL, changed

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"


def config(benchmark: str) -> DataConfig:
    return DataConfig(benchmark=benchmark, task="all", data_dir=str(FIXTURES), chunks=20)


def test_a_mixture_keeps_its_proportions_in_every_round() -> None:
    mixed = data.load(config("hotpotqa:2+musique:1"), "train", seed=5, group=4)
    assert len(mixed) == 4
    names = [mixed[i].id.partition("/")[0] for i in range(60)]
    rounds = [tuple(names[k : k + 3]) for k in range(0, 60, 3)]
    assert {round_.count("hotpotqa") for round_ in rounds} == {2}
    assert len(set(rounds)) == 3  # the one of musique is in any place
    hotpot = data.load(config("hotpotqa"), "train", seed=5)
    assert [mixed[i] for i in range(60) if names[i] == "hotpotqa"] == [hotpot[i] for i in range(40)]
    assert [mixed[i] for i in (59, 7)] == [data.load(config("hotpotqa:2+musique"), "train", seed=5)[i] for i in (59, 7)]
    assert isinstance(mixed, Mixture)
    with pytest.raises(IndexError, match="must be >= 0, since the sequence has no end"):
        mixed[-1]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("hotpotqa+", "write names joined by"),
        ("hotpotqa:0+musique", "write names joined by"),
        ("hotpotqa+squid", "known: .*musique"),
        ("hotpotqa+hotpotqa", "names hotpotqa twice"),
    ],
)
def test_refuses_bad_mixtures(text: str, reason: str) -> None:
    assert weights("hotpotqa:2+musique") == {"hotpotqa": 2, "musique": 1}
    with pytest.raises(ValueError, match=rf"data.benchmark = '.*{reason}"):
        data.load(config(text), "train", seed=0)


def test_other_benchmarks_are_tested_after_the_runs_own() -> None:
    config = changed(SMALL, data={"benchmark": "hotpotqa:2+musique", "task": "all", "data_dir": str(FIXTURES)}, eval={"budget": 2})
    both = replace(config, eval=replace(config.eval, benchmarks=("ruler/niah_s1", "ruler/niah_mk2")))
    # The run's own test has the run's budget, another benchmark's the paper's.
    assert [(questions.name, questions.budget) for questions in sets.final_sets(both)] == [
        ("hotpotqa-all", 2),
        ("musique-all", 2),
        ("ruler-niah_s1-1k", 4),
        ("ruler-niah_mk2-1k", 4),
    ]
    for name, message in (
        ("wiki", "eval.benchmarks = 'wiki': unknown; known: babilong, "),
        ("musique", "musique/all is tested already"),
        ("babilong/qa9", "qa9"),
    ):
        with pytest.raises(ValueError, match=message):
            sets.final_sets(replace(config, eval=replace(config.eval, benchmarks=(name,))))
    with pytest.raises(ValueError, match=r"eval\.benchmarks = 'a b': must be BENCHMARK or BENCHMARK/TASK"):
        EvalConfig(benchmarks=("a b",))
