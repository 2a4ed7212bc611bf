"""The ablation table: which runs it is made of, that finished ones are kept, and what it says of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from experiments.ablations import __main__ as ablations
from experiments.ablations.__main__ import VARIANTS, main, variant_config
from experiments.ablations.report import Found, aggregate, table
from qrag_jax.config import RunConfig
from qrag_jax.config.presets import preset
from qrag_jax.rundir.files import write_json, write_text
from qrag_jax.train import training
from tests.support.small import SMALL


def row(tokens: int = 1_000, **values: Any) -> dict[str, Any]:
    named = {"benchmark": "babilong", "task": "qa3", "split": "test", "context_tokens": tokens, "chunks": 50, "episodes": 8, "budget": 4}
    measured = {"fact_em": 0.5, "fact_f1": 0.25, "fact_f1_stopped": 0.75, "stop_threshold": 0.5, "answer_em": None, "answer_f1": None}
    row = {**named, **measured, "seconds_per_episode": 0.1, "checkpoint_step": 4, **values}
    return {**row, "ci95": [row["fact_em"] - 0.1, row["fact_em"] + 0.1]}


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[tuple[RunConfig, Path]]:
    """Runs that end at once, with a score that tells the variant: what was asked for is in the list."""
    asked: list[tuple[RunConfig, Path]] = []

    def run(config: RunConfig, run_dir: Path) -> list[dict[str, Any]]:
        asked.append((config, run_dir))
        rows = [row(task=config.data.task, fact_em=min(1.0, 0.25 + 0.5 * config.train.seed * config.rl.soft))]
        write_text(run_dir / "config.json", config.to_json())
        write_json(run_dir / "results.json", {"schema": 1, "rows": rows})
        return rows

    monkeypatch.setattr(training, "run", run)
    return asked


def settings(folder: Path) -> str:
    folder.mkdir()
    (folder / "config.json").write_text(SMALL.to_json(), encoding="utf-8")
    return str(folder)


def test_every_variant_changes_what_it_says() -> None:
    base = preset("tiny", "babilong", "qa2")
    configs = {name: variant_config(base, name, 3) for name in VARIANTS}
    assert {config.train.seed for config in configs.values()} == {3}
    same = [name for name, config in configs.items() if config == configs["full"] and not VARIANTS[name].baseline]
    assert same == ["full", "positions_integer", "lambda_0.5", "gamma_0.99"], "those share the runs of full"
    assert configs["no_soft"].rl.soft is False
    assert configs["no_target"].rl.target_network is False
    assert configs["supervised"].rl.objective == "supervised"
    assert configs["positions_none"].qhead.positions == "none"
    assert configs["alpha_0.2"].rl.alpha == configs["alpha_0.2"].rl.alpha_end == 0.2


@pytest.mark.parametrize(("benchmark", "task"), [("babilong", "qa3"), ("ruler", "niah_mk2")])
def test_the_full_method_is_the_paper_s_where_a_preset_adds_labels(benchmark: str, task: str) -> None:
    base = preset("tiny", benchmark, task)
    assert base.rl.supervised_weight == 0.1
    full = variant_config(base, "full", 0).rl
    assert (full.supervised_weight, full.supervised_loss, full.gold_order, full.objective) == (0.0, "binary", "document", "td")
    assert variant_config(base, "supervised", 0).rl.objective == "supervised"


def test_runs_are_made_once_and_told_in_the_papers_order(tmp_path: Path, trained: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    words = ["--preset", settings(tmp_path / "run"), "--run-dir", str(out), "--variants", "positions_integer", "no_soft", "full"]
    words += ["--seeds", "0", "1", "--steps", "20"]
    assert main(words) == 0
    assert [path.name for _, path in trained] == ["full-seed0", "no_soft-seed0", "full-seed1", "no_soft-seed1"]
    assert {config.train.steps for config, _ in trained} == {20}
    found = json.loads((out / "ablations.json").read_text(encoding="utf-8"))
    assert found["schema"] == 1
    full, no_soft, integer = found["rows"]
    assert [r["variant"] for r in found["rows"]] == ["full", "no_soft", "positions_integer"]
    # Scores 0.25 and 0.75: mean 0.5, standard deviation of the sample sqrt(2 * 0.25^2 / 1).
    assert (full["fact_em"], full["mean"]["fact_em"], full["updates"], full["seeds"]) == ([0.25, 0.75], 0.5, 20, [0, 1])
    assert full["spread"]["fact_em"] == pytest.approx(0.35355, abs=1e-5)
    assert (no_soft["fact_em"], no_soft["spread"]["fact_em"]) == ([0.25, 0.25], 0.0)
    assert (integer["runs"], integer["fact_em"]) == (full["runs"], full["fact_em"])
    text = (out / "ablations.md").read_text(encoding="utf-8")
    assert "| Q-RAG | 1,000 | 20 | 2 | 0.500 ± 0.354 | 0.250 ± 0.000 | 0.750 ± 0.000 | - |" in text
    assert text.strip() in capsys.readouterr().out
    assert (out / "ablations.png").stat().st_size > 10_000
    # Again, with one seed more and other questions: what is finished with the same settings is kept.
    assert main([*words, "2"]) == 64, "a seed belongs behind --seeds"
    assert main([*words[:-5], "--seeds", "0", "1", "2", "--steps", "20"]) == 0
    assert [path.name for _, path in trained[4:]] == ["full-seed2", "no_soft-seed2"]
    assert main([*words, "--eval-episodes", "4"]) == 0
    assert [path.name for _, path in trained[6:]] == ["full-seed0", "no_soft-seed0", "full-seed1", "no_soft-seed1"]
    capsys.readouterr()
    assert main([*words[:-1], "10"]) == 64
    assert "--steps was 20, now 10" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.quick
def test_baselines_are_measured_on_the_same_questions(tmp_path: Path, trained: list[Any]) -> None:
    out = tmp_path / "out"
    words = ["--preset", settings(tmp_path / "run"), "--run-dir", str(out), "--seeds", "0", "--variants", "no_finetuning", "bm25"]
    assert main([*words, "--eval-episodes", "2"]) == 0
    assert not trained
    rows = json.loads((out / "ablations.json").read_text(encoding="utf-8"))["rows"]
    assert [(r["variant"], r["updates"], r["episodes"], r["fact_f1_stopped"]) for r in rows] == [
        ("no_finetuning", None, 2, None),
        ("bm25", None, 2, None),
    ]
    assert rows[0]["spread"]["fact_em"] is None, "one seed has no spread"
    before = (out / "bm25-seed0" / "results.json").stat().st_mtime_ns
    assert main([*words, "--eval-episodes", "2"]) == 0
    assert (out / "bm25-seed0" / "results.json").stat().st_mtime_ns == before


def test_the_papers_rows_stand_beside_their_variants() -> None:
    base = preset("tiny", "babilong", "qa3")
    found = [
        Found(
            name, VARIANTS[name].label, VARIANTS[name].in_paper, 0, f"{name}-seed0", variant_config(base, name, 0), (row(4_000, **extra),)
        )
        for name, extra in {
            "full": {},
            "no_soft": {},
            "supervised": {},
            "no_finetuning": {"method": "multi-step, no fine-tuning"},
            "positions_absolute": {},
        }.items()
    ]
    rows, reasons = aggregate(found)
    paper = {r["variant"]: r["paper"] and r["paper"]["fact_f1"] for r in rows}
    assert paper == {"full": 0.974, "no_soft": 0.955, "supervised": 0.209, "no_finetuning": 0.164, "positions_absolute": None}
    assert "3,000 of the paper's 50,000 updates" in " ".join(reasons)
    text = table({"benchmark": "babilong", "task": "qa3", "embedder": "tiny", "beside_paper": reasons, "rows": rows})
    assert "| supervised fine-tuning | 4,000 | 3,000 | 1 | 0.500 | 0.250 | 0.750 | 0.209 (Table 3) |" in text
    assert "Not directly comparable with the paper: embedder tiny" in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--variants", "no_reward"], "'no_reward' is unknown; known: full, no_soft"),
        (["--seeds", "1", "1"], "seeds = (1, 1): must be one or more different numbers"),
        (["--preset", "huge"], "preset = 'huge': unknown; known: tiny"),
        (["--task", "qa3", "--steps", "600"], "train.curriculum"),
        (["--seeds", "-1"], "--seeds = -1"),
        (["--eval-episodes", "0"], "--eval-episodes = 0"),
    ],
)
def test_bad_input_is_refused_before_anything_is_trained(
    tmp_path: Path, trained: list[Any], words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*words, "--run-dir", str(tmp_path / "out")]) == 64
    assert message in capsys.readouterr().err
    assert not trained
    assert not (tmp_path / "out").exists()


def test_all_are_chosen_in_the_order_of_the_table() -> None:
    assert ablations.chosen(["all"]) == list(VARIANTS)
    assert ablations.chosen(["bm25", "full"]) == ["full", "bm25"]
