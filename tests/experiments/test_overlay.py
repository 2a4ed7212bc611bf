"""Overlays: which runs are read, which differences are called real, and a picture."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from experiments.overlay.__main__ import main
from experiments.overlay.compare import Difference, differences
from experiments.overlay.runs import read_groups, short_names
from qrag_jax.evaluate.results import EpisodeRecord, write_episodes, write_results
from tests.support.pictures import check, figures  # noqa: F401
from tests.support.small import SMALL, changed, write_lines


def make_run(folder: Path, scores: Sequence[float], seed: int = 0, episodes: bool = True) -> Path:
    """A run whose test at 1K has these scores, question by question. The questions belong to the seed."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(changed(SMALL, train={"seed": seed}).to_json())
    lines: list[dict[str, Any]] = [{"kind": "validation", "step": 0, "fact_em": 0.0, "fact_f1_stopped": 0.1}]
    for step in (10, 20):
        lines += [{"kind": "train", "step": step, "seconds": 3.0 * step}]
        lines += [{"kind": "validation", "step": step, "fact_em": sum(scores) / len(scores) * step / 20, "fact_f1_stopped": 0.1}]
    write_lines(folder / "metrics.jsonl", *lines)
    row = {
        "benchmark": "babilong",
        "task": "qa1",
        "split": "test",
        "context_tokens": 1000,
        "chunks": 9,
        "episodes": len(scores),
        "budget": 4,
    }
    other = {"fact_f1_stopped": None, "fact_em_stopped": None, "stop_threshold": None, "answer_em": None, "answer_f1": None}
    more = {"fact_f1": 0.4, "ci95": [0.0, 1.0], "seconds_per_episode": 0.1, "checkpoint_step": 20}
    write_results(folder, [{**row, "fact_em": sum(scores) / len(scores), **other, **more}])
    records = [
        EpisodeRecord(f"q-{i}", f"Where is {seed}?", "here", 9, (i % 9,), (i % 9,), (0.5,), ("text",), score, score)
        for i, score in enumerate(scores)
    ]
    if episodes:
        write_episodes(folder / "episodes" / "babilong-qa1-1k.jsonl", records)
    return folder


def make_seeds(folder: Path, scores: dict[int, Sequence[float]]) -> Path:
    for seed, of_seed in scores.items():
        make_run(folder / f"seed-{seed}", of_seed, seed)
    (folder / "seeds.json").write_text(json.dumps({"schema": 1, "seeds": list(scores)}))
    return folder


def found(*folders: Path) -> Difference:
    (one,) = differences(read_groups(folders))
    return one


def test_the_same_questions_are_paired(tmp_path: Path) -> None:
    # Half of 40 questions are right in one; the other adds 10 to the same ones. Unpaired, the interval is wider.
    one = make_run(tmp_path / "one", [1.0, 0.0] * 20)
    two = make_run(tmp_path / "two", [1.0, 0.0, 1.0, 1.0] * 10)
    pair = found(one, two)
    assert (pair.value, pair.paired, pair.questions, pair.spread) == (0.25, True, 40, None)
    assert pair.interval is not None
    # By hand: 10 ones among 40 differences, standard error sqrt(.25 * .75 / 40) = .0685; 1.96 of them are .134.
    assert pair.interval == pytest.approx((0.25 - 0.134, 0.25 + 0.134), abs=0.03)
    assert pair.verdict == "beyond chance; one seed each, so the spread is unknown"


def test_other_questions_are_not_paired(tmp_path: Path) -> None:
    one = make_run(tmp_path / "one", [1.0, 0.0] * 20, seed=0)
    two = make_run(tmp_path / "two", [1.0, 0.0, 1.0, 1.0] * 10, seed=1)
    pair = found(one, two)
    assert (pair.value, pair.paired) == (0.25, False)
    assert pair.interval is not None
    # Standard errors sqrt(.5 * .5 / 40) = .079 and sqrt(.75 * .25 / 40) = .068, together .104; 1.96 of them are .205.
    assert pair.interval == pytest.approx((0.25 - 0.205, 0.25 + 0.205), abs=0.03)


def test_other_seeds_are_not_paired_although_some_questions_are_the_same(tmp_path: Path) -> None:
    several = make_seeds(tmp_path / "several", {0: [1.0] * 40, 1: [0.0] * 40})
    pair = found(several, make_run(tmp_path / "one", [1.0] * 40, seed=0))
    assert (pair.value, pair.paired) == (0.5, False)
    assert pair.interval is not None
    # Paired with seed 0 alone, it would be 0 to 0. Standard error sqrt(.5 * .5 / 80) = .056; 1.96 of them are .110.
    assert pair.interval == pytest.approx((0.5 - 0.110, 0.5 + 0.110), abs=0.03)


def test_a_difference_is_real_only_beyond_chance_and_the_spread_of_the_seeds(tmp_path: Path) -> None:
    ones, zeros = [1.0] * 40, [0.0] * 40
    steady = make_seeds(tmp_path / "steady", {0: zeros, 1: zeros})
    better = make_seeds(tmp_path / "better", {0: ones[:20] + zeros[:20], 1: ones[:20] + zeros[:20]})
    shaky = make_seeds(tmp_path / "shaky", {0: ones, 1: zeros})
    assert (found(steady, better).verdict, found(steady, better).spread, found(steady, better).questions) == ("real", 0.0, 80)
    # Means 0 and .5; the seeds of the second have 1 and 0, whose sample standard deviation is .707.
    pair = found(steady, shaky)
    assert (pair.value, pair.verdict) == (0.5, "within the spread of the seeds")
    assert pair.spread == pytest.approx(0.7071, abs=1e-4)
    same = found(steady, make_seeds(tmp_path / "same", {0: zeros, 1: zeros}))
    assert (same.value, same.verdict) == (0.0, "may be chance")
    assert found(steady, make_run(tmp_path / "bare", ones, episodes=False)).verdict == "unknown: a run has no episodes/"


def test_the_command_writes_a_page_and_a_picture(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    figures: list[Figure],  # noqa: F811
) -> None:
    one = make_run(tmp_path / "one", [1.0, 0.0] * 20)
    two = make_seeds(tmp_path / "two", {0: [1.0] * 40, 1: [1.0] * 40})
    out = tmp_path / "out"
    assert main([str(one), str(two), "--run-dir", str(out)]) == 0
    text = (out / "overlay.md").read_text()
    assert text.startswith("Validation Fact EM, mean ± spread over the seeds:\n\n| run | seeds | best | last |\n")
    assert "| --- | --- | --- | --- |\n| one | 1 | 0.500 | 0.500 |\n" in text
    assert "| first run | second run | first score | second score | difference |" in text
    assert "| two | 2 | 1.000 ± 0.000 | 1.000 ± 0.000 |" in text
    assert "| babilong qa1 | 1k | Fact EM | one | two | 0.500 | 1.000 | +0.500 | +0." in text
    assert capsys.readouterr().out.strip().endswith(f"overlay.md and overlay.png are in {out}")
    assert (out / "overlay.png").read_bytes()[:4] == b"\x89PNG"
    (figure,) = figures
    check(figure)


def test_bad_input_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, two = make_run(tmp_path / "a" / "run", [1.0]), make_run(tmp_path / "b" / "run", [1.0])
    for words, message in (
        ([str(one)], "error: runs: give two or more different run directories\n"),
        ([str(one), str(one)], "error: runs: give two or more different run directories\n"),
        ([str(one), str(tmp_path)], f"error: {tmp_path}: holds no training run (no config.json and metrics.jsonl)\n"),
        ([str(one), str(two), "--run-dir", str(one)], f"error: {one}: holds a run; choose another --run-dir\n"),
    ):
        assert main(words) == 64
        assert capsys.readouterr().err == message
    (two / "episodes" / "babilong-qa1-1k.jsonl").write_text('{"id": 3}\n')
    assert main([str(one), str(two), "--run-dir", str(tmp_path / "out")]) == 64
    assert "babilong-qa1-1k.jsonl:1: is not an episode of an evaluation" in capsys.readouterr().err
    assert short_names([one, two]) == ["a/run", "b/run"]
