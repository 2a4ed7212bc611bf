"""``--seeds``: one run for each seed, and what is said of them together."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from experiments import report
from experiments.cli import main
from experiments.pictures import drawings
from experiments.seeds import mean_rows, table
from qrag_jax.config import RunConfig
from qrag_jax.evaluate.results import write_results
from qrag_jax.rundir.files import write_text
from qrag_jax.rundir.log import Preempted, RunLog
from qrag_jax.train import training
from tests.support import runs


def row(tokens: int | None = 1_000, **values: Any) -> dict[str, Any]:
    named = {"benchmark": "babilong", "task": "qa1", "split": "test", "context_tokens": tokens, "chunks": 50, "episodes": 8, "budget": 4}
    measured = {"fact_em": 0.5, "fact_f1": 0.25, "fact_em_stopped": 0.5, "fact_f1_stopped": 0.75, "stop_threshold": 0.5}
    rest = {"answer_em": None, "answer_f1": None, "seconds_per_episode": 0.1, "checkpoint_step": 4}
    found = {**named, **measured, **rest, **values}
    return {**found, "ci95": [found["fact_em"] - 0.1, found["fact_em"] + 0.1]}


class Trained(list[tuple[RunConfig, Path]]):
    """Runs that end at once: what was asked for. ``stop``: the seed whose run is preempted."""

    stop: int | None = None

    def run(self, config: RunConfig, run_dir: Path, **_: Any) -> list[dict[str, Any]]:
        training.check_run_dir(config, run_dir)
        self.append((config, run_dir))
        write_text(run_dir / "config.json", config.to_json())
        for step in (10, 20):
            RunLog(run_dir).record("validation", step, fact_em=step / 20)
        if config.train.seed == self.stop:
            raise Preempted("saved")
        lengths = {"1k": 1_000, "4k": 4_000}
        score = min(1.0, 0.25 + 0.25 * config.train.seed)
        rows = [row(lengths[tokens], fact_em=score, checkpoint_step=10 * config.train.seed) for tokens in config.eval.tokens]
        write_results(run_dir, rows)
        return rows

    @property
    def seeds(self) -> list[int]:
        return [config.train.seed for config, _ in self]


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> Trained:
    found = Trained()
    monkeypatch.setattr(training, "run", found.run)
    return found


@pytest.fixture
def call(tmp_path: Path) -> Callable[..., int]:
    """The command, on the folder ``out``."""
    base = ("--task", "qa1", "--run-dir", str(tmp_path / "out"), "--eval-tokens", "1k")
    return lambda *words: main("babilong", "", runs.last_of_each([*base, *words]))


def results(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    return found


def test_each_seed_has_a_run_and_the_folder_their_mean(
    tmp_path: Path, trained: Trained, call: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert call("--seeds", "0", "2", "--lr", "1") == 64, "unknown options are refused as ever"
    assert call("--seeds", "0", "2") == 0
    assert [(config.train.seed, folder) for config, folder in trained] == [(0, out / "seed-0"), (2, out / "seed-2")]
    found = results(out)
    assert (found["schema"], found["seeds"]) == (1, [0, 2])
    (mean,) = found["rows"]
    # Scores 0.25 and 0.75: mean 0.5, sample standard deviation sqrt(2 * 0.25^2 / 1).
    assert (mean["fact_em"], mean["values"]["fact_em"], mean["seeds"]) == (0.5, [0.25, 0.75], [0, 2])
    assert mean["spread"]["fact_em"] == pytest.approx(0.35355, abs=1e-5)
    assert mean["answer_em"] is mean["spread"]["answer_em"] is mean["values"]["answer_em"] is None, "not measured is null, not 0"
    assert (mean["ci95"], mean["checkpoint_step"], mean["values"]["checkpoint_step"]) == (None, None, [0, 20])
    text = (out / "results.md").read_text(encoding="utf-8")
    assert "over 2 seeds" in text
    assert "| qa1 | test | 1,000 | 50 | 8 | 4 | 2 | 0.500 ± 0.354 | 0.250 ± 0.000 |" in text
    assert "| qa1 | test | 1,000 | 0.250 | 0.750 |" in text
    shown = capsys.readouterr().out
    assert "task  tokens  questions        Fact EM  Fact F1 stopped  Fact EM, seed 0  Fact EM, seed 2\n" in shown
    assert "qa1    1,000          8  0.500 ± 0.354    0.750 ± 0.000            0.250            0.750\n" in shown
    assert shown.strip().endswith(f"results are in {out}")
    assert (out / "comparison.md").exists()
    assert (out / "seed-2" / "comparison.md").exists()
    assert {(out / name).read_bytes()[:4] for name in ("curves.png", "context.png")} == {b"\x89PNG"}
    assert RunConfig.from_json((out / "config.json").read_text(encoding="utf-8")).train.seed == 0
    # A committed folder needs no folders of seeds for its picture.
    (tmp_path / "kept" / "out").mkdir(parents=True)
    (tmp_path / "kept" / "out" / "seeds.json").write_bytes((out / "seeds.json").read_bytes())
    ((path, draw),) = drawings(tmp_path / "kept").items()
    draw(path)
    assert path.read_bytes() == (out / "curves.png").read_bytes()
    (path.parent / "seeds.json").write_text('{"schema": 1, "trained_on": "babilong qa1", "validations": [[[0, "x"]]]}')
    with pytest.raises(ValueError, match=r"seeds\.json\.validations = .*: must be a list; each part must be .* an update and its score"):
        drawings(tmp_path / "kept")


def test_seeds_are_added_and_finished_ones_only_read(
    tmp_path: Path, trained: Trained, call: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert call("--seeds", "3") == 0
    assert results(out)["rows"][0]["spread"]["fact_em"] is None, "one seed has no spread"
    assert call("--seeds", "1", "3") == 0
    assert trained.seeds == [3, 1]
    assert results(out)["seeds"] == [1, 3]
    (out / "seed-1" / "comparison.md").unlink()  # killed before its last file
    assert call("--seeds", "0") == 0, "what is there stays in the mean"
    assert (trained.seeds, results(out)["seeds"]) == ([3, 1, 0], [0, 1, 3])
    assert call("--seeds", "1") == 0
    assert (out / "seed-1" / "comparison.md").exists()
    # Other questions: what was asked of the others before is no longer the same.
    capsys.readouterr()
    assert call("--seeds", "0", "1", "--eval-tokens", "4k") == 0
    assert (trained.seeds[3:], results(out)["seeds"]) == ([0, 1], [0, 1])
    assert "not included: seeds 3, which have not ended with these settings; add them with --seeds 3" in capsys.readouterr().out


def test_a_run_that_was_stopped_is_taken_up(tmp_path: Path, trained: Trained, call: Callable[..., int]) -> None:
    out, trained.stop = tmp_path / "out", 1
    assert call("--seeds", "0", "1", "2") == 75
    assert (trained.seeds, results(out)["seeds"]) == ([0, 1], [0])
    trained.stop = None
    assert call("--seeds", "0", "1", "2") == 0
    assert (trained.seeds, results(out)["seeds"]) == ([0, 1, 1, 2], [0, 1, 2])


def test_old_results_are_not_taken_for_those_of_a_test_that_was_stopped(tmp_path: Path, trained: Trained, call: Callable[..., int]) -> None:
    assert call("--seeds", "0", "1") == 0
    trained.stop = 1
    assert call("--seeds", "0", "1", "--eval-tokens", "4k") == 75
    assert call("--seeds", "0", "--eval-tokens", "4k") == 0
    assert results(tmp_path / "out")["seeds"] == [0]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--seeds", "1", "1"), "seeds = (1, 1): must be one or more different numbers"),
        (("--seeds",), "seeds = (): must be one or more different numbers"),
        (("--seeds", "0", "-1"), "--seed = -1"),
        (("--seeds", "0", "1", "--seed", "3"), "--seed and --seeds: give one of them"),
        (("--train.seed=3", "--seeds", "0"), "--seed and --seeds: give one of them"),
        (("--seed",), "seed"),
    ],
)
def test_bad_seeds_are_refused(
    tmp_path: Path, trained: Trained, call: Callable[..., int], capsys: pytest.CaptureFixture[str], words: tuple[str, ...], message: str
) -> None:
    assert call(*words) == 64
    assert message in capsys.readouterr().err
    assert not trained
    assert not (tmp_path / "out").exists()


def test_a_folder_that_holds_something_else_is_refused(
    tmp_path: Path, trained: Trained, call: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"

    def refused(*words: str) -> str:
        before = len(trained)
        assert call(*words) == 64
        assert len(trained) == before
        (line,) = capsys.readouterr().err.splitlines()
        return line

    assert call("--seeds", "0", "1") == 0
    assert "seed-0: holds another run (--steps was 1000, now 20)" in refused("--seeds", "0", "--steps", "20")
    assert "seed-0: holds another run (--steps was 1000, now 20)" in refused("--seeds", "7", "--steps", "20"), "of any seed"
    assert f"{out}: holds runs of several seeds; add --seeds" in refused()
    out.rename(tmp_path / "seeds")
    assert call() == 0
    assert f"{out}: holds a run of one seed" in refused("--seeds", "0")
    out.rename(tmp_path / "one")
    out.mkdir()
    (out / "notes").touch()
    assert "holds notes, which is not the run of a seed" in refused("--seeds", "0")
    (out / "notes").unlink()
    out.rmdir()
    out.touch()
    assert "is a file" in refused("--seeds", "0")


def test_without_a_run_dir_seeds_have_one_of_their_own(tmp_path: Path, trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for words in (["--seeds", "4", "5"], ["--seed", "4"]):
        assert main("babilong", "", ["--task", "qa1", "--eval-tokens", "1k", *words]) == 0
    folders = ["runs/babilong-qa1-tiny-seeds/seed-4", "runs/babilong-qa1-tiny-seeds/seed-5", "runs/babilong-qa1-tiny"]
    assert [str(folder) for _, folder in trained] == folders
    assert trained[0][0] == trained[2][0], "one seed is a plain run inside its folder"


def test_rows_are_averaged_with_their_like() -> None:
    first = [row(1_000, fact_em=1.0), row(None, benchmark="hotpotqa", task="all", answer_em=0.5)]
    second = [row(None, benchmark="hotpotqa", task="all", answer_em=None, chunks=60), row(1_000, fact_em=0.0)]
    babilong, hotpotqa = mean_rows({0: first, 1: second})
    assert (babilong["fact_em"], babilong["values"]["fact_em"]) == (0.5, [1.0, 0.0])
    assert (hotpotqa["answer_em"], hotpotqa["values"]["answer_em"], hotpotqa["chunks"]) == (None, None, 60)
    assert babilong["checkpoint_step"] == 4
    assert "| hotpotqa all | test | - | 0.500 | 0.500 |" in table([babilong, hotpotqa])


def test_the_results_page_shows_mean_and_spread(tmp_path: Path, trained: Trained, call: Callable[..., int]) -> None:
    assert call("--seeds", "0", "1", "--eval-tokens", "1k", "4k") == 0
    assert report.main(["--results", str(tmp_path)]) == 0
    text = (tmp_path / "runs.md").read_text(encoding="utf-8")
    assert "| [out](out) | qa1 | - | 1,000 | 50 | 8 | 4 | 0.375 ± 0.177 | - | 0.250 ± 0.000 | 0.750 ± 0.000 |" in text
    assert (tmp_path / "babilong.png").read_bytes()[:4] == b"\x89PNG"
