"""The training run, top to bottom: folder, data, model, devices, loop, final evaluation, export.

The same call on the same folder resumes and continues bit for bit: batches and randomness are functions of the seed and the update.
Several processes make the same call; process 0 alone has the folder, validates and evaluates (qrag_jax/hosts.py).
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from qrag_jax import plots
from qrag_jax.answer_update import AnswerUpdate
from qrag_jax.batches import Batches, stage_examples
from qrag_jax.bucket import is_url
from qrag_jax.checkpoint import Checkpoints, saved_steps
from qrag_jax.config import RunConfig, Stage
from qrag_jax.evaluate import evaluate, read_answers, results_table, run_episodes, summary, threshold_of, write_results
from qrag_jax.evaluation_sets import EvaluationSet, final_sets, validation_set
from qrag_jax.export import find_export, read_export, write_export
from qrag_jax.files import disk_error, is_unfinished, write_text
from qrag_jax.hosts import agree, from_leader, leader_only, on_any, together
from qrag_jax.models.embedder import Embedder, encoders, make_embedder, pair
from qrag_jax.models.pretrained import load_pretrained, scratch_backbone
from qrag_jax.models.registry import BackboneConfig, Pooling
from qrag_jax.parallel import choose_devices, make_parallel, make_phases
from qrag_jax.reader.readers import check_reader
from qrag_jax.retrieve.retriever import Retriever
from qrag_jax.rl.env import StateLayout
from qrag_jax.rl.learner import Metrics, Params, TrainState
from qrag_jax.rl.supervised import make_learner
from qrag_jax.runlog import CannotWrite, NotFinite, Preempted, Pruned, RunLog, progress, say, write_manifest
from qrag_jax.survival import StopRequest, Window, stop_requests, write_bad_update
from qrag_jax.tokens import TextTokenizer, train_wordpiece
from qrag_jax.types import QAExample, TaskBatch

Prune = Callable[[], bool] | None
VOCABULARY_EXAMPLES = 2000  # training documents whose text the vocabulary of a from-scratch run is counted on
# What the same run directory may change between two calls: nothing that training depends on.
MAY_CHANGE = (
    *("eval.tokens", "eval.benchmarks", "eval.episodes", "eval.reader", "eval.reader_context", "eval.reader_tokens"),
    *("eval.reader_timeout", "eval.reader_concurrency", "eval.reader_devices", "eval.reader_dtype"),
    *("train.parallel", "train.devices", "train.checkpoint_every", "train.checkpoint_minutes"),
)


@dataclass(frozen=True)
class Model:
    """What a run starts from."""

    backbone: BackboneConfig
    pooling: Pooling | None
    embedder: Embedder
    tokenizer: TextTokenizer
    params: Params


def run(config: RunConfig, run_dir: str | Path, *, test: bool = True, prune: Prune = None) -> list[dict[str, Any]]:
    """Trains, evaluates and exports; returns the rows of results.json. ``test`` False: the test questions are left alone (the trials of a
    sweep are compared on validation), and there are no rows; the same call with True evaluates what was trained. ``prune`` is asked by
    process 0, after each validation but the first and the last, whether to stop.

    Raises ValueError on a bad configuration, data or run directory, before anything is overwritten; Preempted after SIGTERM; NotFinite
    when an update gave NaN; Pruned when ``prune`` says so; CannotWrite when the disk is full or broken.
    """
    if is_url(run_dir):
        raise ValueError(f"{run_dir}: not a folder; see experiments.cli.working_folder")
    run_dir = Path(run_dir)
    try:
        with stop_requests() as stop:
            return _run(config, run_dir, stop, test, prune)
    except (OSError, ValueError) as error:
        if (told := disk_error(error)) is None:
            raise
        saved = saved_steps(run_dir)
        rest = f"the checkpoint of update {saved[0]} is whole and the same command goes on from it" if saved else "nothing was saved before"
        raise CannotWrite(f"{run_dir}: cannot be written to ({told}); {rest}; make room first") from error


def _run(config: RunConfig, run_dir: Path, stop: StopRequest, test: bool, prune: Prune) -> list[dict[str, Any]]:
    devices = choose_devices(config.train, config.optim.batch)
    from_leader(lambda: check_run_dir(config, run_dir))
    if config.rl.reward != "support" and jax.process_count() > 1:
        raise ValueError(f"rl.reward = {config.rl.reward!r}: trains in one process, here are {jax.process_count()}; start one")
    tests, stages, model = together(lambda: prepare(config, run_dir, test))
    agree(
        configuration=config.to_json(),
        vocabulary=model.tokenizer.to_json(),
        training_data=repr([examples[0] for _, examples in stages]),
    )
    from_leader(lambda: write_start(config, run_dir, model, devices))
    with leader_only(lambda: Checkpoints(run_dir)) as checkpoints:
        best_step = train(config, run_dir, model, stages, devices, checkpoints, stop, prune)
    return from_leader(lambda: finish(config, run_dir, model, best_step, tests, test))


def prepare(config: RunConfig, run_dir: Path, test: bool) -> tuple[list[EvaluationSet], list[tuple[Stage, Sequence[QAExample]]], Model]:
    """What is read before anything is written: test sets, training examples by stage, and the model to start from."""
    check_reader(config.eval)
    tests = final_sets(config) if test else []
    stages = [(stage, stage_examples(config, stage)) for stage in config.train.stages(config.data)]
    return tests, stages, build_model(config, run_dir, [examples for _, examples in stages])


def write_start(config: RunConfig, run_dir: Path, model: Model, devices: tuple[jax.Device, ...]) -> None:
    """The run directory, with what the run is."""
    run_dir.mkdir(parents=True, exist_ok=True)
    write_text(run_dir / "config.json", config.to_json())
    if not (run_dir / "tokenizer.json").exists():
        model.tokenizer.save(run_dir / "tokenizer.json")
    write_manifest(run_dir, config.train.seed, [str(device) for device in devices])


def finish(
    config: RunConfig, run_dir: Path, model: Model, best_step: int, tests: Sequence[EvaluationSet], test: bool
) -> list[dict[str, Any]]:
    """Final evaluation and export of the parameters best on validation; returns the rows of results.json."""
    with Checkpoints(run_dir) as checkpoints:
        best = checkpoints.best(best_step, {"params": model.params})
    params, threshold = jax.device_put(best.state["params"]), best.info["threshold"]
    retriever = Retriever(config, model.embedder, params, model.tokenizer, threshold, best_step)
    rows = evaluate(config, run_dir, retriever, tests)
    title, sampled = f"{config.data.benchmark} {config.data.task}", config.rl.objective == "td"
    plots.curves(RunLog(run_dir).read(), run_dir / "curves.png", title, sampled)
    write_export(
        run_dir / "export",
        config=config,
        backbone=model.backbone,
        pooling=model.pooling,
        params=params,
        tokenizer=model.tokenizer,
        threshold=threshold,
        step=best_step,
        rows=rows,
    )
    if test:
        write_report(run_dir, rows)
    return rows


def write_report(run_dir: Path, rows: Sequence[dict[str, Any]]) -> None:
    """What an evaluation leaves: results.json, results.md, context.png where there are lengths; and the table for whoever waits."""
    write_results(run_dir, rows)
    if lengths := [row for row in rows if row["context_tokens"] is not None]:
        plots.context(lengths, run_dir / "context.png")
    say(f"\n{results_table(rows)}\n\nresults are in {run_dir}")


def check_run_dir(config: RunConfig, run_dir: Path) -> None:
    """Raises ValueError when the folder holds something else than this very run."""
    path = run_dir / "config.json"
    if not path.exists():
        if run_dir.exists() and not all(is_unfinished(path) for path in run_dir.iterdir()):
            raise ValueError(f"{run_dir}: not empty and not a run (no config.json); choose another --run-dir")
        return
    old, new = (_flat(c) for c in (RunConfig.from_json(path.read_text(encoding="utf-8")), config))
    changed = [f"{name} was {old[name]!r}, now {new[name]!r}" for name in new if old[name] != new[name] and name not in MAY_CHANGE]
    if changed:
        raise ValueError(f"{run_dir}: holds another run ({'; '.join(changed)}); use the same settings to go on, or another --run-dir")


def _flat(config: RunConfig) -> dict[str, Any]:
    """Dotted name -> value of every field."""
    sections = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    return {
        f"{name}.{field.name}": getattr(section, field.name) for name, section in sections.items() for field in dataclasses.fields(section)
    }


def build_model(config: RunConfig, run_dir: Path, examples: Sequence[Sequence[QAExample]]) -> Model:
    """Encoders and tokenizer: from another run, from pretrained weights, or from scratch with a vocabulary of the training text."""
    pooling: Pooling | None = None
    if config.train.init_from is not None:
        export = read_export(find_export(config.train.init_from))
        backbone, pooling, tokenizer, start = export.backbone, export.pooling, export.tokenizer, export.params
        embedder = make_embedder(config, backbone, pooling)
    elif config.model.embedder != "tiny":
        folder = load_pretrained(config.model.embedder)
        backbone, pooling, tokenizer = folder.backbone, folder.pooling, folder.tokenizer
        embedder = make_embedder(config, backbone, pooling)
        names = ("encoder",) if config.model.tied else ("state_encoder", "action_encoder")
        start = {"params": dict.fromkeys(names, folder.params)}
    else:
        saved = run_dir / "tokenizer.json"
        tokenizer = TextTokenizer.load(saved) if saved.exists() else train_vocabulary(config, examples)
        return scratch_model(config, tokenizer, tokenizer.vocab_size)
    wanted = jax.eval_shape(embedder.init, jax.random.key(0), jnp.zeros((1, 4), jnp.int32), jnp.zeros((1, 4), jnp.int32))
    if _shapes(wanted) != _shapes(start):
        raise ValueError(f"train.init_from = {config.train.init_from!r}: model.tied = {config.model.tied} does not suit its parameters")
    return Model(backbone, pooling, embedder, tokenizer, jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), start))


def scratch_model(config: RunConfig, tokenizer: TextTokenizer, vocab_size: int) -> Model:
    """Random weights. Both encoders start from the same ones, as pretrained ones do: equal words are alike from the first update."""
    backbone = scratch_backbone(config.model, vocab_size)
    embedder = make_embedder(config, backbone)
    ids = jnp.zeros((1, 4), jnp.int32)
    start = jax.jit(embedder.init)(jax.random.key(config.train.seed), ids, ids)
    return Model(backbone, None, embedder, tokenizer, pair(encoders(start)[0], None, config.model.tied))


def _shapes(params: Params) -> list[tuple[Any, tuple[int, ...]]]:
    return [(path, tuple(x.shape)) for path, x in jax.tree.leaves_with_path(params)]


def train_vocabulary(config: RunConfig, examples: Sequence[Sequence[QAExample]]) -> TextTokenizer:
    share = range(VOCABULARY_EXAMPLES // len(examples))
    some = (stage[i] for stage in examples for i in share)
    return train_wordpiece((text for example in some for text in (example.question, *example.chunks)), config.model.vocab_size)


def train(
    config: RunConfig,
    run_dir: Path,
    model: Model,
    stages: Sequence[tuple[Stage, Sequence[QAExample]]],
    devices: tuple[jax.Device, ...],
    checkpoints: Checkpoints,
    stop: StopRequest,
    prune: Prune = None,
) -> int:
    """The loop. Returns the step of the checkpoint "best", which holds the parameters best on validation and their stop threshold."""
    rl, steps, every = config.rl, config.train.steps, config.train.log_every
    log = leader_only(lambda: RunLog(run_dir))
    layout = StateLayout.make(config.data, rl.budget, model.tokenizer.prefix, model.tokenizer.suffix)
    learner = make_learner(model.embedder, config, layout)
    parallel = make_parallel(learner.update, config.train.parallel, devices)
    answers = (
        None
        if rl.reward == "support"
        else AnswerUpdate(learner, make_phases(learner.collect, learner.learn, config.train.parallel, devices), run_dir / "answers")
    )
    questions = validation_set(config)
    validation = [example for group in questions for example in group]
    batches = Batches(config, model.tokenizer, stages, parallel.share)

    first = learner.init(jax.random.key(config.train.seed), model.params)
    progress_info: dict[str, Any] = {"seconds": 0.0, "best": -1.0, "best_step": 0, "reached": 0, "threshold": None, "window": None}

    def saved() -> tuple[int, TrainState, dict[str, Any]]:
        """The state to go on from, on the devices."""
        found = together(lambda: checkpoints.latest(first, {"params": model.params}))
        step, info = from_leader(lambda: (0, progress_info) if found is None else (found.step, found.info))
        return step, parallel.place(first if found is None else found.state), info

    start, state, progress_info = saved()
    if start:
        say(f"resuming {run_dir} at update {start} of {steps}")
    log.rewind(start if start else -1)

    def update(state: TrainState, batch: TaskBatch, step: int) -> tuple[TrainState, Metrics]:
        if answers is None:
            return parallel.update(state, batch)
        return answers(state, batch, batches.examples(step - 1), batches.stage(step - 1).task)

    def check(state: TrainState, step: int) -> dict[str, Any]:
        """Validation: the same search as the final evaluation, fewer questions; may set the best checkpoint. Returns progress."""
        params = parallel.fetch(state.params)
        records = run_episodes(
            Retriever(config, model.embedder, params, model.tokenizer), validation, config.eval.budget, beam=config.eval.beam
        )
        progress_info["threshold"] = threshold_of(records)
        if answers is not None:
            records = read_answers(answers.reader, records, questions, "retrieved", validation)
        found = summary(records, progress_info["threshold"])
        log.record("validation", step, **{name: found[name] for name in ("fact_em", "fact_f1", "fact_f1_stopped", "answer_em")})
        target = config.train.stop_at
        progress_info["reached"] = progress_info["reached"] + 1 if target is not None and found["fact_em"] >= target else 0
        # The stopped F1 breaks ties: it also wants the values of finished episodes to be low.
        score = found["fact_em" if answers is None else "answer_em"] + 1e-3 * (found["fact_f1_stopped"] or 0.0)
        if score >= progress_info["best"]:
            progress_info.update(best=score, best_step=step)
            checkpoints.save("best", step, {"params": params}, {"threshold": progress_info["threshold"]})
        return progress_info

    def save(state: TrainState, step: int) -> None:
        checkpoints.save("last", step, parallel.fetch(state), progress_info)

    def refuse_nan(step: int) -> None:
        """Raises NotFinite if one of the updates of the window that ends at ``step`` gave NaN, and leaves it to be looked at."""
        if (index := window.first_bad()) is None:
            return
        bad = step - len(window) + 1 + index
        checkpoints.wait()
        at, before, _ = saved()
        for i in range(at + 1, bad):
            before, _ = update(before, batches[i - 1], i)
        metrics = window.values(index)
        at_fault = batches.examples(bad - 1), batches[bad - 1], parallel.fetch(before)  # of several processes, the first one's rows
        path = from_leader(lambda: str(write_bad_update(run_dir, bad, metrics, *at_fault)))
        raise NotFinite(f"update {bad}: not a number in {metrics}; {path} holds it; lower optim.learning_rate, or look at the data")

    if start == 0:
        # What the parameters can do before training: zero-shot, where they are pretrained.
        progress_info.update(from_leader(partial(check, state, 0)))
    began = time.perf_counter() - progress_info["seconds"]
    window = Window(progress_info["window"])
    pruned = False
    ended = start >= steps or (config.train.stop_at is not None and progress_info["reached"] >= 2)
    with stop.later(), progress(total=steps, initial=start, unit="update", desc=f"train {config.data.task}") as bar:
        for step, batch in enumerate(batches.ahead(start, start if ended else steps), start + 1):
            state, metrics = update(state, batch, step)
            window.add(metrics, parallel.share.count * (2 * batch.chunk_pool_ids.shape[0] + batch.chunk_index.shape[0] * rl.budget))
            bar.update()
            recorded = step % every == 0 or step == steps
            if recorded:
                refuse_nan(step)
                checkpoints.check()
                means, spent = window.means(), window.seconds
                rate = len(window) * config.optim.batch * rl.budget / spent
                took = {"seconds": time.perf_counter() - began, "transitions_per_second": rate, "chunks_per_second": window.texts / spent}
                log.record("train", step, **means, **took)
                bar.set_postfix_str(
                    f"return {means['return']:.2f} Fact EM {means['fact_em']:.2f} loss {means['loss']:.4f} {rate:.0f} transitions/s",
                    refresh=False,
                )
                if step % config.train.eval_every == 0 or step == steps:
                    progress_info.update(from_leader(partial(check, state, step)))
                    pruned = prune is not None and step < steps and from_leader(prune)
                window = Window()
                ended = step == steps or progress_info["reached"] >= 2
            asked = late = False
            if recorded or jax.process_count() == 1:  # several processes agree at records, and do not wait for each other in between
                asked = on_any(stop.asked)
                late = from_leader(lambda: time.monotonic() - checkpoints.saved_at >= 60 * config.train.checkpoint_minutes)
            if ended or asked or late or pruned or step % config.train.checkpoint_every == 0:
                refuse_nan(step)
                progress_info.update(seconds=time.perf_counter() - began, window=window.to_json())
                from_leader(partial(save, state, step))
            if asked or pruned:
                from_leader(checkpoints.wait)
                raise Preempted(f"saved at update {step}; run the same command again to go on") if asked else Pruned(step)
            if ended:
                break
    return int(progress_info["best_step"])
