"""The training run, top to bottom: folder, data, model, devices, loop, final evaluation, export.

The same call on the same folder resumes a run. The result is the same bit for bit, because batches and randomness depend only on the seed
and the update. Several processes make the same call; only process 0 uses the folder, validates and evaluates (qrag_jax/rundir/hosts.py).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from qrag_jax.config import RunConfig, Stage
from qrag_jax.config.watch import Watch
from qrag_jax.evaluate import plots
from qrag_jax.evaluate.episodes import evaluate
from qrag_jax.evaluate.refusal import find_refusal
from qrag_jax.evaluate.results import short_table, write_results
from qrag_jax.evaluate.sets import EvaluationSet, final_sets, validation_set
from qrag_jax.export.folder import Export, write_export
from qrag_jax.reader.make import check_reader
from qrag_jax.retrieve.retriever import Retriever
from qrag_jax.rl.rewards import Reward
from qrag_jax.rundir.bucket import is_url
from qrag_jax.rundir.checkpoint import Checkpoints, saved_steps
from qrag_jax.rundir.files import check_folder, disk_error, is_unfinished, write_text
from qrag_jax.rundir.hosts import agree, from_leader, have_in_common, is_leader, leader_only, peers, run_on_all
from qrag_jax.rundir.lock import only_writer
from qrag_jax.rundir.log import CannotWrite, RunLog, say, write_manifest
from qrag_jax.rundir.sinks import check_trackers
from qrag_jax.rundir.stop import StopRequest, stop_requests
from qrag_jax.train import describe
from qrag_jax.train.batches import stage_examples
from qrag_jax.train.loop import Prune, train
from qrag_jax.train.model import Model, build_model
from qrag_jax.train.objective import check_objectives
from qrag_jax.train.parallel import choose_devices
from qrag_jax.types import QAExample

SEEDS = "seeds.json"  # marks a folder that holds the runs of several seeds and is not a run itself (experiments/seeds.py)
WRITTEN = "written"  # questions over the user's documents, which are in the folder of a run before it begins (experiments/writing)
# Settings that may change between two calls on the same run directory: training does not depend on them.
MAY_CHANGE = (
    *("eval.tokens", "eval.benchmarks", "eval.episodes", "eval.split", "eval.haystacks"),
    *("eval.reader", "eval.reader_context", "eval.reader_tokens"),
    *("eval.reader_timeout", "eval.reader_concurrency", "eval.reader_devices", "eval.reader_dtype"),
    *("train.parallel", "train.devices", "train.shard_state", "train.checkpoint_every", "train.checkpoint_minutes"),
)


def run(
    config: RunConfig,
    run_dir: str | Path,
    *,
    test: bool = True,
    prune: Prune = None,
    watch: Watch = Watch(),  # noqa: B008  (frozen)
    reward: Reward | None = None,
) -> list[dict[str, Any]]:
    """Trains, evaluates and exports; returns the rows of results.json. May be called in a thread: signals are then left to the caller.

    If ``test`` is False, the test questions are not used and there are no rows: the trials of a sweep are compared on validation. The same
    call with True then evaluates the trained retriever. After each validation except the first and the last, process 0 calls ``prune`` to
    ask whether to stop. ``watch``: where figures go besides metrics.jsonl, and which updates are profiled.
    ``reward``: the function of ``rl.reward`` "own"; to resume, give the same one.

    Raises ValueError on a bad configuration, data or run directory, before anything is overwritten; Busy when another process trains in the
    folder; Preempted after SIGTERM; NotFinite when an update gave NaN; Pruned when ``prune`` says so; CannotWrite when the disk is full or
    broken.
    """
    if is_url(run_dir):
        raise ValueError(f"{run_dir}: is not a folder on this machine; see experiments.cli.working_folder")
    run_dir = Path(run_dir)
    try:
        with stop_requests() as stop, default_numbers():
            return _run(config, run_dir, stop, test, prune, watch, reward)
    except (OSError, ValueError) as error:
        if (told := disk_error(error)) is None:
            raise
        if saved := saved_steps(run_dir):
            rest = f"the checkpoint of update {saved[0]} is undamaged; make room, then run the same command again to resume from it"
        else:
            rest = "no checkpoint was saved yet; make room, then run the same command again"
        raise CannotWrite(f"{run_dir}: cannot be written to ({told}); {rest}") from error


@contextmanager
def default_numbers() -> Iterator[None]:
    """Draws and computes as JAX does by default, whatever the environment says: what a run draws depends on its seed alone
    (JAX_DEFAULT_PRNG_IMPL), and its numbers are of 32 bits (JAX_ENABLE_X64; one line says so)."""
    ours = {"jax_default_prng_impl": "threefry2x32", "jax_threefry_partitionable": True, "jax_enable_x64": False}
    before = {name: getattr(jax.config, name) for name in ours}
    if before["jax_enable_x64"]:
        say("JAX_ENABLE_X64 has no effect here: training computes with numbers of 32 bits")
    for name, value in ours.items():
        if before[name] != value:
            jax.config.update(name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            if value != ours[name]:
                jax.config.update(name, value)


def _run(
    config: RunConfig, run_dir: Path, stop: StopRequest, test: bool, prune: Prune, watch: Watch, reward: Reward | None
) -> list[dict[str, Any]]:
    check_watch(config, watch)
    check_reward(config, reward)
    devices = choose_devices(config.train, config.optim.batch)
    from_leader(lambda: check_run_dir(config, run_dir))
    if config.rl.asks_reader and jax.process_count() > 1:
        raise ValueError(
            f"rl.reward = {config.rl.reward!r}: this reward needs a single process, but there are {jax.process_count()}; start one"
        )
    tests, stages, model = run_on_all(lambda: prepare(config, run_dir, test))
    agree(
        configuration=config.to_json(),
        vocabulary=model.tokenizer.to_json(),
        training_data=repr([examples[0] for _, examples in stages]),
    )
    with leader_only(lambda: _lock(run_dir)):
        from_leader(lambda: check_run_dir(config, run_dir))  # again: another process may have written to it meanwhile
        from_leader(lambda: write_start(config, run_dir, model, devices))
        for line in (describe.devices_line(devices), describe.model_line(config, model)):
            say(line)
        with leader_only(lambda: RunLog(run_dir, watch.track)) as log:
            with open_checkpoints(run_dir) as checkpoints:
                best_step = train(config, run_dir, model, stages, devices, checkpoints, stop, log, watch, prune, reward)
            return from_leader(lambda: finish(config, run_dir, model, best_step, tests, log))


def open_checkpoints(run_dir: Path) -> Checkpoints:
    """The checkpoints of a run: on all processes if they have its folder in common; otherwise only process 0 writes and reads them."""
    if not have_in_common(run_dir):
        return leader_only(lambda: Checkpoints(run_dir))
    first = leader_only(lambda: Checkpoints(run_dir, peers()))
    return run_on_all(lambda: first if is_leader() else Checkpoints(run_dir, peers()))


def check_watch(config: RunConfig, watch: Watch) -> None:
    """Raises ValueError if a package is missing, or if the updates to profile are not made."""
    check_trackers(watch.track)
    if watch.profiled and watch.profiled[-1] > config.train.steps:
        raise ValueError(f"profile = {watch.profile!r}: must end at update {config.train.steps} or before, the last one (train.steps)")


def check_reward(config: RunConfig, reward: Reward | None = None) -> None:
    """Raises ValueError unless a function is given where ``rl.reward`` asks for one, and only there."""
    if (config.rl.reward == "own") != (reward is not None):
        raise ValueError(
            f"rl.reward = {config.rl.reward!r}: {'no' if reward is None else 'a'} function was given; 'own' and "
            "qrag_jax.train.run(..., reward=FUNCTION) belong together"
        )


def _lock(run_dir: Path) -> ExitStack:
    """The lock of the run directory, held until the stack is closed. Raises Busy."""
    with ExitStack() as stack:
        stack.enter_context(only_writer(run_dir))
        return stack.pop_all()


def prepare(config: RunConfig, run_dir: Path, test: bool) -> tuple[list[EvaluationSet], list[tuple[Stage, Sequence[QAExample]]], Model]:
    """Reads all inputs, before anything is written: test sets, training examples by stage, and the model to start from."""
    check_reader(config.eval)
    tests = final_sets(config) if test else []
    stages = [(stage, stage_examples(config, stage)) for stage in config.train.stages(config.data)]
    check_objectives(config, stages)
    return tests, stages, build_model(config, run_dir, [examples for _, examples in stages])


def write_start(config: RunConfig, run_dir: Path, model: Model, devices: tuple[jax.Device, ...]) -> None:
    """Makes the run directory and writes the files that describe the run: config.json, tokenizer.json, manifest.json."""
    run_dir.mkdir(parents=True, exist_ok=True)
    if (run_dir / "config.json").exists() and read_config(run_dir).train.steps < config.train.steps:
        for name in ("results.json", "results.md"):  # of the shorter run
            (run_dir / name).unlink(missing_ok=True)
    write_text(run_dir / "config.json", config.to_json())
    if not (run_dir / "tokenizer.json").exists():
        model.tokenizer.save(run_dir / "tokenizer.json")
    write_manifest(run_dir, config.train.seed, [str(device) for device in devices], jnp.asarray(0.0).dtype == jnp.float64)


def finish(
    config: RunConfig, run_dir: Path, model: Model, best_step: int, tests: Sequence[EvaluationSet], log: RunLog
) -> list[dict[str, Any]]:
    """Evaluates and exports the parameters that are best on validation; returns the rows of results.json, one for each of ``tests``."""
    with Checkpoints(run_dir) as checkpoints:
        best = checkpoints.best(best_step, model.params)
    params = jax.device_put(best.params)
    retriever = Retriever(config, model.embedder, params, model.tokenizer, best.threshold, best_step)
    title, sampled = f"{config.data.benchmark} {config.data.task}", config.rl.objective == "td"
    plots.curves(log.read(), run_dir / "curves.png", title, sampled)
    log.picture("curves", config.train.steps, run_dir / "curves.png")
    export = Export(config, model.backbone, params, model.tokenizer, model.embedder.pooling, best.threshold, best_step)
    write_export(run_dir / "export", export)  # before the evaluation, which may fail: the trained model is then safe
    if tests and (refusal := find_refusal(retriever, validation_set(config), beam=config.eval.beam)) is not None:
        say(f'"not in the documents" if no pick reaches {refusal}')
        export = dataclasses.replace(export, refusal=refusal)
    rows = evaluate(config.eval, run_dir, retriever, tests)
    if tests:
        write_export(run_dir / "export", dataclasses.replace(export, rows=rows))
        write_report(run_dir, rows)
        if (context := run_dir / "context.png").exists():
            log.picture("context", config.train.steps, context)
    return rows


def write_report(run_dir: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Writes results.json, results.md and, if there are context lengths, context.png; prints a short table."""
    write_results(run_dir, rows)
    if lengths := [row for row in rows if row["context_tokens"] is not None]:
        plots.context(lengths, run_dir / "context.png")
    say(f"\n{short_table(rows)}\n\nresults are in {run_dir}")


def check_run_dir(config: RunConfig, run_dir: Path) -> None:
    """Raises ValueError when the folder holds anything but this run, and when it, or a folder above it, is a file."""
    check_folder(run_dir)
    if (run_dir / SEEDS).exists():
        raise ValueError(f"{run_dir}: holds runs of several seeds; add --seeds to resume them, or choose another --run-dir")
    path = run_dir / "config.json"
    if not path.exists():
        if run_dir.exists() and not all(is_unfinished(path) or path.name == WRITTEN for path in run_dir.iterdir()):
            raise ValueError(f"{run_dir}: not empty, but not a run (no config.json); choose another --run-dir")
        return
    before = read_config(run_dir)
    old, new = _flat(before), _flat(config)
    trained = saved_steps(run_dir)[:1] >= [before.train.steps]

    def allowed(name: str) -> bool:
        # More updates: the run is extended. Once all updates are made, no setting of the evaluation can change them.
        longer = name == "train.steps" and config.train.steps > before.train.steps
        return longer or name in MAY_CHANGE or (trained and name.startswith("eval.") and config.train.steps == before.train.steps)

    changed = [f"{name} was {old[name]!r}, now {new[name]!r}" for name in new if old[name] != new[name] and not allowed(name)]
    if changed:
        raise ValueError(f"{run_dir}: holds another run ({'; '.join(changed)}); use the same settings to resume, or another --run-dir")


def read_config(run_dir: Path) -> RunConfig:
    """The configuration of a run directory. Raises ValueError, naming the file, if it cannot be read."""
    path = run_dir / "config.json"
    try:
        return RunConfig.from_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error


def export_best(run_dir: Path) -> Path:
    """Writes the export of a run that has not ended: the checkpoint that is best on validation so far. Returns its folder.

    Raises ValueError if ``run_dir`` is not a run, or has no checkpoint yet.
    """
    config = read_config(run_dir)
    if not (run_dir / "tokenizer.json").exists() or not (run_dir / "checkpoints").is_dir():
        raise ValueError(f"{run_dir}: has no checkpoint yet")
    model = build_model(config, run_dir, [])  # the tokenizer is there, so no examples are read
    with Checkpoints(run_dir) as checkpoints:
        best = checkpoints.best_so_far(model.params)
    pooling = model.embedder.pooling
    return write_export(
        run_dir / "export", Export(config, model.backbone, best.params, model.tokenizer, pooling, best.threshold, best.step)
    )


def _flat(config: RunConfig) -> dict[str, Any]:
    """Dotted name -> value of every field."""
    sections = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    return {
        f"{name}.{field.name}": getattr(section, field.name) for name, section in sections.items() for field in dataclasses.fields(section)
    }
