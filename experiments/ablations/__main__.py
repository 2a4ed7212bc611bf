"""Ablations: what each part of the method is worth. Every variant is trained with every seed; a table like the paper's Table 3.

    python -m experiments.ablations                                                # BabiLong qa2, the tiny embedder, three seeds
    python -m experiments.ablations --task qa3 --variants full supervised --seeds 0 1
    python -m experiments.ablations --variants all --steps 600                     # positions, halves, alpha, lambda and gamma as well

Each variant and seed is an ordinary run, RUN_DIR/VARIANT-seedN. The same command resumes: finished runs are kept, and the run that was
interrupted continues. ablations.json, ablations.md and ablations.png are updated after each run.

Variants: full; no_soft; no_target; supervised (Beam Retriever's loss); no_finetuning (the multi-step search with the embedder before any
training; "tiny" has random weights); single_step (all picks at once with that embedder); bm25;
positions_integer and positions_continuous (relative), positions_absolute, positions_none; halves_1 (one value); alpha_X (a constant
temperature); lambda_X; gamma_X. A variant whose settings are those of full shares its runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import tyro

from experiments import baselines
from experiments.ablations.report import Found, write_report
from experiments.cli import execute, read, typed, working_folder
from experiments.options import OWN, Questions
from experiments.paper.compare import METHOD, SUPERVISED
from experiments.seeds import check_seeds, finished, forget, with_seed
from qrag_jax.config import RunConfig
from qrag_jax.config.presets import rewards_alone
from qrag_jax.config.retarget import retest


@dataclass(frozen=True)
class Variant:
    """The settings that a variant changes, or the baseline that it runs. ``in_paper``: it may have a row in Table 3."""

    label: str
    changes: dict[str, dict[str, Any]]
    baseline: str | None = None
    in_paper: bool = False


TABLE3 = {
    "full": Variant(METHOD, {}, in_paper=True),
    "no_soft": Variant("without soft Q", {"rl": {"soft": False}}, in_paper=True),
    "no_target": Variant("without target network", {"rl": {"target_network": False}}, in_paper=True),
    "supervised": Variant(SUPERVISED, {"rl": {"objective": "supervised"}}, in_paper=True),
    "no_finetuning": Variant("multi-step, no fine-tuning", {}, baseline="multi", in_paper=True),
    "single_step": Variant("single-step, no fine-tuning", {}, baseline="single"),
    "bm25": Variant("BM25", {}, baseline="bm25"),
}
"""In the order of the paper's table, which does not have the last two."""
POSITIONS = {
    "positions_integer": Variant("relative positions, integer", {"qhead": {"positions": "relative", "position_resolution": "integer"}}),
    "positions_continuous": Variant(
        "relative positions, continuous", {"qhead": {"positions": "relative", "position_resolution": "continuous"}}
    ),
    "positions_absolute": Variant("absolute positions", {"qhead": {"positions": "absolute"}}),
    "positions_none": Variant("no positions", {"qhead": {"positions": "none"}}),
    "halves_1": Variant("one value", {"qhead": {"halves": 1}}),
}
SENSITIVITY = {
    **{f"alpha_{x}": Variant(f"alpha {x}", {"rl": {"alpha": x, "alpha_end": x}}) for x in (0.005, 0.01, 0.05, 0.2)},
    **{f"lambda_{x}": Variant(f"lambda {x}", {"rl": {"lam": x}}) for x in (0.0, 0.25, 0.5, 0.75, 1.0)},
    **{f"gamma_{x}": Variant(f"gamma {x}", {"rl": {"gamma": x}}) for x in (0.25, 0.5, 0.75, 0.9, 0.99)},
}
VARIANTS = TABLE3 | POSITIONS | SENSITIVITY
ALL = "all"


@dataclass(frozen=True)
class Command:
    questions: Annotated[Questions, tyro.conf.arg(name="")] = Questions()  # noqa: RUF009  (frozen)
    preset: str = "tiny"
    """Settings of the full method: a preset, a .json or .yaml file of settings, or the folder of a run or of an export."""
    variants: tuple[str, ...] = tuple(TABLE3)
    """Which variants, or all."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of the runs. Each seed draws its own questions, parameters and episodes."""
    steps: Annotated[int | None, OWN] = None
    """Updates of each run."""
    run_dir: str | None = None
    """Folder for ablations.json, .md, .png and the runs, or gs://BUCKET/NAME. Default: runs/BENCHMARK-TASK-ablations."""
    eval_tokens: Annotated[tuple[str, ...] | None, OWN] = None
    """Context lengths."""
    eval_episodes: Annotated[int | None, OWN] = None
    """Test questions at each length."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code: 0 done, 64 bad input, 75 preempted and saved (run it again to resume)."""
    return execute(lambda: run(read(Command, argv, "experiments.ablations", __doc__ or "")), typed(Command, {"--seeds": "--train.seed"}))


def run(command: Command) -> None:
    base, names = configuration(command), chosen(command.variants)
    with working_folder(command.run_dir or f"runs/{base.data.benchmark}-{base.data.task}-ablations") as run_dir:
        train(base, names, command.seeds, run_dir)


def train(base: RunConfig, names: Sequence[str], seeds: Sequence[int], run_dir: Path) -> None:
    """Trains every variant with every seed. Runs that have ended are only read."""
    import jax

    from qrag_jax.rundir.log import say
    from qrag_jax.train.training import check_run_dir

    # Check everything before training anything.
    plan = [(name, seed, variant_config(base, name, seed)) for seed in seeds for name in names]
    for name, seed, config in plan:
        check_run_dir(config, run_dir / folder_name(base, name, seed))
    found: list[Found] = []
    for number, (name, seed, config) in enumerate(plan, 1):
        folder = folder_name(base, name, seed)
        say(f"\n[{number}/{len(plan)}] {name}, seed {seed}: {run_dir / folder}")
        rows = finished(config, run_dir / folder) or train_or_measure(name, config, run_dir / folder, run_dir / f"full-seed{seed}")
        found.append(Found(name, VARIANTS[name].label, VARIANTS[name].in_paper, seed, folder, config, tuple(rows)))
        write_report(run_dir, sorted(found, key=lambda one: (list(VARIANTS).index(one.variant), one.seed)))
        jax.clear_caches()  # dozens of runs in one process
    say(f"\n{(run_dir / 'ablations.md').read_text(encoding='utf-8')}\nablations are in {run_dir}")


def configuration(command: Command) -> RunConfig:
    """The settings of the full method. Raises ValueError on bad values."""
    base = command.questions.of_preset(command.preset)
    check_seeds(base, command.seeds)
    return replace(
        base,
        train=replace(base.train, steps=base.train.steps if command.steps is None else command.steps),
        eval=retest(base.eval, tokens=command.eval_tokens, episodes=command.eval_episodes),
    )


def chosen(names: Sequence[str]) -> list[str]:
    """The variants in the order of the table. Raises ValueError, naming the known ones, on an unknown name."""
    if unknown := [name for name in names if name not in (*VARIANTS, ALL)]:
        raise ValueError(f"variants: {unknown[0]!r} is unknown; known: {', '.join(VARIANTS)}, {ALL}")
    if not names:
        raise ValueError("variants: must be one or more")
    return [name for name in VARIANTS if name in names or ALL in names]


def variant_config(base: RunConfig, name: str, seed: int) -> RunConfig:
    """The settings of one run. The full method is the paper's: without labels in the loss of the values, also where a preset has them."""
    variant = VARIANTS[name]
    seeded = with_seed(rewards_alone(base), seed)
    if variant.baseline:
        return baselines.untuned(seeded)
    return replace(seeded, **{section: replace(getattr(seeded, section), **values) for section, values in variant.changes.items()})


def folder_name(base: RunConfig, name: str, seed: int) -> str:
    """The name of the run's folder. It is that of full if the settings are the same."""
    same = not VARIANTS[name].baseline and variant_config(base, name, seed) == variant_config(base, "full", seed)
    return f"{'full' if same else name}-seed{seed}"


def train_or_measure(name: str, config: RunConfig, run_dir: Path, full: Path) -> list[dict[str, Any]]:
    from experiments.paper.compare import write_comparison
    from experiments.paper.plots import draw_context
    from qrag_jax.train import training

    forget(run_dir)
    if method := VARIANTS[name].baseline:
        return baselines.measure(config, (method,), run_dir, vocabulary=full)
    rows = training.run(config, run_dir)
    write_comparison(run_dir, rows, config, config)
    draw_context(rows, run_dir / "context.png")
    return rows


if __name__ == "__main__":
    raise SystemExit(main())
