"""The training loop."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax

from qrag_jax.config import RunConfig, Stage
from qrag_jax.evaluate.episodes import read_answers, run_episodes, summary, threshold_of
from qrag_jax.evaluate.sets import validation_set
from qrag_jax.retrieve.retriever import Retriever
from qrag_jax.rl.env import StateLayout
from qrag_jax.rl.learner import Metrics, TrainState
from qrag_jax.rl.supervised import make_learner
from qrag_jax.rundir.checkpoint import Checkpoints
from qrag_jax.rundir.log import NotFinite, Preempted, Pruned, RunLog, progress, say
from qrag_jax.train.answer_update import AnswerUpdate
from qrag_jax.train.batches import Batches
from qrag_jax.train.hosts import from_leader, leader_only, on_any, run_on_all
from qrag_jax.train.model import Model
from qrag_jax.train.parallel import make_parallel, make_phases
from qrag_jax.train.stop import StopRequest
from qrag_jax.train.window import Window, write_bad_update
from qrag_jax.types import QAExample, TaskBatch

Prune = Callable[[], bool] | None


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
    layout = StateLayout.make(config.data, rl.budget, model.tokenizer)
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
        found = run_on_all(lambda: checkpoints.latest(first, {"params": model.params}))
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
