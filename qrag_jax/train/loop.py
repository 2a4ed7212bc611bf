"""The training loop: update, record, validate and save, until the last update or until the run is stopped."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from qrag_jax.config import Objective, RunConfig, Stage
from qrag_jax.config.watch import Watch
from qrag_jax.evaluate.sets import validation_set
from qrag_jax.models.lora import shared_base
from qrag_jax.rl.env import StateLayout
from qrag_jax.rl.learner import Learner, Metrics, Params, TrainState
from qrag_jax.rl.rewards import Reward
from qrag_jax.rl.supervised import make_learner
from qrag_jax.rundir.checkpoint import Checkpoint, Checkpoints
from qrag_jax.rundir.compilations import compilations
from qrag_jax.rundir.hosts import from_leader, is_leader, leader_only, on_any, run_on_all
from qrag_jax.rundir.log import NotFinite, Pruned, RunLog, say
from qrag_jax.rundir.log import progress as progress_bar
from qrag_jax.rundir.progress import Progress
from qrag_jax.rundir.stop import StopRequest
from qrag_jax.train import describe
from qrag_jax.train.answer_update import AnswerUpdate
from qrag_jax.train.batches import Batches
from qrag_jax.train.clock import Leg, TimeLeft
from qrag_jax.train.model import Model
from qrag_jax.train.parallel import Parallel, make_parallel, make_phases, on_host
from qrag_jax.train.plan import Plan, check_state, plan_update
from qrag_jax.train.profile import Profile
from qrag_jax.train.sharding import choose_shard_state
from qrag_jax.train.validation import Validation
from qrag_jax.train.window import Window, write_bad_update
from qrag_jax.types import QAExample, TaskBatch

Prune = Callable[[], bool] | None
HISTOGRAMS = ("q", "soft_gap")  # and the norms of gradients: metrics of updates whose distribution the sinks show
ENOUGH = 2  # a run ends after this many validations in a row that reach train.stop_at


def train(
    config: RunConfig,
    run_dir: Path,
    model: Model,
    stages: Sequence[tuple[Stage, Sequence[QAExample]]],
    devices: tuple[jax.Device, ...],
    checkpoints: Checkpoints,
    stop: StopRequest,
    log: RunLog,
    watch: Watch,
    prune: Prune = None,
    reward: Reward | None = None,
) -> int:
    """Trains, and returns the step of the checkpoint "best": the parameters that are best on validation, with their stop threshold."""
    settings, steps = config.train, config.train.steps
    updates = make_updates(config, run_dir, model, stages, devices, reward)
    if updates.parallel.parts > 1 and not checkpoints.together():
        say(f"{run_dir}: is not common to all processes, so process 0 collects the whole state for each checkpoint, and reads it alone")
    validate = make_validation(config, model, updates, log, checkpoints)
    for line in describe.questions_lines(config, stages, validate.questions):
        say(line)
    start, state, progress = begin(config, run_dir, updates, validate, checkpoints, log)
    began, window = time.perf_counter() - progress.seconds, Window(progress.window)
    pruned, ended = False, start >= steps or progress.reached >= ENOUGH
    with stop.later(), compilations() as compiled, profiling(watch.profiled, run_dir, start) as profile, make_bar(config, start) as bar:
        clock = TimeLeft(updates.legs(config.rl.budget), settings.eval_every, compiled)
        for step, batch in enumerate(updates.batches.ahead(start, start if ended else steps), start + 1):
            if step == start + 1 and (plan := updates.plan(config, batch, step)) is not None:
                say(str(plan))
            with clock.aside():
                profile.before(step)
            state, metrics = updates(state, batch, step)
            window.add(metrics, updates.texts(batch, config.rl.budget))
            with clock.aside():
                profile.after(step, metrics)
            bar.update()
            recorded = step % settings.log_every == 0 or step == steps
            if recorded:
                refuse_nan(window, step, state, updates, checkpoints, run_dir)
                run_on_all(checkpoints.check)
                record(window, step, time.perf_counter() - began, config.optim.batch * config.rl.budget, log, bar, clock.left(step))
                if step % settings.eval_every == 0 or step == steps:
                    with clock.validating():
                        progress = validate_on_leader(validate, updates, state, step, progress)
                    pruned = prune is not None and step < steps and from_leader(prune)
                window = Window()
                ended = step == steps or progress.reached >= ENOUGH
            asked = late = False
            if recorded or jax.process_count() == 1:  # several processes agree at records only, and do not wait for each other in between
                asked = on_any(stop.asked)
                late = from_leader(partial(checkpoints.save_is_due, settings.checkpoint_minutes))
            if ended or asked or late or pruned or step % settings.checkpoint_every == 0:
                refuse_nan(window, step, state, updates, checkpoints, run_dir)
                progress = replace(progress, seconds=time.perf_counter() - began, window=window.saved())
                save(checkpoints, updates.parallel, step, state, progress)
            if asked or pruned:
                run_on_all(checkpoints.wait)
                raise stop.kind(f"saved at update {step}; run the same command again to resume") if asked else Pruned(step)
            clock.updated(step)
            if ended:
                break
    return progress.best_step


def begin(
    config: RunConfig, run_dir: Path, updates: Updates, validate: Validation, checkpoints: Checkpoints, log: RunLog
) -> tuple[int, TrainState, Progress]:
    """Resumes from the newest checkpoint, or begins with a validation. Returns the number of updates made, the state and the progress."""
    start, state, progress = restore(checkpoints, updates)
    if start:
        say(f"resuming {run_dir} at update {start} of {config.train.steps}")
        log.rewind(start)
    else:
        log.rewind(-1)
        # How good the parameters are before training: zero-shot, if they are pretrained.
        progress = validate_on_leader(validate, updates, state, 0, progress)
    return start, state, progress


@dataclass(frozen=True)
class Updates:
    """The updates of a run on its devices. Update N, counted from 1, uses batch N - 1."""

    start: Callable[[], TrainState]
    """Makes the state before update 1, on the host."""
    shapes: TrainState
    """The shapes of a state."""
    merged: Callable[[Params, Params], Params]
    """(``params``, ``base``) of a state -> the parameters of its embedder."""
    base: Params
    """The weights, on the host, to which a state's ``params`` are adapters; None without adapters. Checkpoints to resume from lack them."""
    batches: Batches
    parallel: Parallel
    """The update of ``rl.objective``, and where states lie."""
    others: dict[Objective, Parallel]
    """The updates of the other objectives that stages have."""
    answers: AnswerUpdate | None
    """The update for rewards that come from a reader's answers; None for other rewards."""
    seen: set[Any] = field(default_factory=set)
    """Objectives and shapes of batches for which the update has been compiled."""

    def __call__(self, state: TrainState, batch: TaskBatch, step: int) -> tuple[TrainState, Metrics]:
        """The state and metrics after update ``step``; ``state`` is donated."""
        with self.announced(batch, step):
            if (own := self.of_stage(step)) is not None:
                return own.update(state, batch)
            assert self.answers is not None
            return self.answers(state, batch, self.batches.examples(step - 1), self.batches.stage(step - 1).task)

    @contextmanager
    def announced(self, batch: TaskBatch, step: int) -> Iterator[None]:
        """Says that update ``step`` is compiled, and how long it took, if it is the first one for a batch of these shapes."""
        stage = self.batches.stage(step - 1)
        key = (stage.objective, *(x.shape for x in jax.tree.leaves(batch)))
        if key in self.seen:
            yield
            return
        self.seen.add(key)
        chunks, texts = batch.chunk_mask.shape[1], len(batch.chunk_pool_ids)
        say(f"compiling the update for {stage.task}, {chunks} chunks a document, {texts} texts a batch")
        began = time.perf_counter()
        yield
        say(f"compiled in {describe.duration(time.perf_counter() - began)}")

    def params(self, state: TrainState) -> Params:
        """The parameters of a state's embedder, whole on process 0's first device, until the next update; None on other processes."""
        whole = self.parallel.whole((state.params, state.base))
        return self.merged(*whole) if is_leader() else None

    def of_stage(self, step: int) -> Parallel | None:
        """What makes update ``step``; None if it needs a reader's answers."""
        objective = self.batches.stage(step - 1).objective
        if objective in self.others:
            return self.others[objective]
        return self.parallel if self.answers is None else None

    def plan(self, config: RunConfig, batch: TaskBatch, step: int) -> Plan | None:
        """Compiles update ``step`` on a batch like this one, and returns how much memory it needs; None where that is not known.
        Raises ValueError when it does not fit.

        Not for rewards that come from answers: the two halves of such an update are compiled when they are used.
        """
        if (own := self.of_stage(step)) is None:
            return None
        with self.announced(batch, step):
            return run_on_all(lambda: plan_update(config, own, self.shapes, batch))

    def texts(self, batch: TaskBatch, budget: int) -> int:
        """How many texts an update embeds, in all processes: the pool with two sets of parameters, and a state before each pick."""
        return self.parallel.share.count * (2 * batch.chunk_pool_ids.shape[0] + batch.chunk_index.shape[0] * budget)

    def legs(self, budget: int) -> list[Leg]:
        """The stages of the run. The work of an update is the texts that it embeds; those with a gradient, the states and the picked
        chunks, count about three times."""
        with_gradient = 2 * self.batches.size * budget
        return [Leg(stage.until, 2 * rows + 3 * with_gradient) for stage, rows in self.batches.pools()]


def make_updates(
    config: RunConfig,
    run_dir: Path,
    model: Model,
    stages: Sequence[tuple[Stage, Sequence[QAExample]]],
    devices: tuple[jax.Device, ...],
    reward: Reward | None = None,
) -> Updates:
    kind = config.train.parallel
    layout = StateLayout.make(config.data, config.rl.budget, model.tokenizer)
    make = partial(make_learner, model.embedder, config, layout, reward=reward)
    learner = make()
    # A closure: whether both encoders start from the same weights is seen from numbers, not from shapes.
    shapes = jax.eval_shape(lambda key: learner.init(key, model.params), jax.random.key(config.train.seed))
    shard_state, line = from_leader(lambda: choose_shard_state(config.train, shapes, devices))
    if line:
        say(line)
    parallel = make_parallel(learner.update, kind, devices, shard_state)
    run_on_all(lambda: check_state(config, parallel, shapes))
    objectives = {stage.objective for stage, _ in stages if stage.objective is not None} - {config.rl.objective}
    others = {one: make_parallel(make(objective=one).update, kind, devices, shard_state) for one in sorted(objectives)}
    answers = None
    if config.rl.asks_reader:
        answers = AnswerUpdate(learner, make_phases(learner.collect, learner.learn, kind, devices, shard_state), run_dir / "answers")
    batches = Batches(config.data, config.optim.batch, model.tokenizer, stages, parallel.share)
    base = shared_base(model.params) if config.model.lora_rank else None
    start = partial(first_state, learner, config.train.seed, model.params)
    return Updates(start, shapes, learner.merged, base, batches, parallel, others, answers)


def first_state(learner: Learner, seed: int, params: Params) -> TrainState:
    """The state before update 1, on the host: no device may have room for all of it."""
    key = jax.random.key(seed)
    with on_host():
        return replace(jax.device_get(learner.init(key, params)), key=key)


def placeholder(shapes: TrainState) -> TrainState:
    """A state that takes no memory, for processes that receive process 0's."""
    is_key = lambda x: jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)
    blank = lambda x: jax.random.key(0) if is_key(x) else np.broadcast_to(np.zeros((), x.dtype), x.shape)
    return jax.tree.map(blank, shapes)


def make_validation(config: RunConfig, model: Model, updates: Updates, log: RunLog, checkpoints: Checkpoints) -> Validation:
    questions = validation_set(config)
    examples = [example for group in questions for example in group]
    reader = None if updates.answers is None else updates.answers.reader
    return Validation(config, model, questions, examples, reader, log, checkpoints)


def restore(checkpoints: Checkpoints, updates: Updates) -> tuple[int, TrainState, Progress]:
    """The newest checkpoint's step, state (on the devices) and progress; without a checkpoint, those of a new run."""
    state, params = replace(updates.shapes, base=None), jax.eval_shape(updates.merged, updates.shapes.params, updates.shapes.base)
    if in_parts(checkpoints, updates.parallel):
        found = checkpoints.latest(*updates.parallel.shapes((state, params)))
    else:
        found = run_on_all(lambda: checkpoints.latest(state, params) if is_leader() else None)
    saved = found or Checkpoint(0, updates.start() if is_leader() else placeholder(updates.shapes), Progress())
    step, progress = from_leader(lambda: (saved.step, saved.progress.to_json()))
    return step, updates.parallel.place(replace(saved.state, base=updates.base)), Progress.from_json(progress)


def save(checkpoints: Checkpoints, parallel: Parallel, step: int, state: TrainState, progress: Progress) -> None:
    own = replace(state, base=None)
    if in_parts(checkpoints, parallel):
        checkpoints.save(step, own, progress)
    else:
        held = parallel.fetch(own)
        from_leader(lambda: checkpoints.save(step, held, progress))


def in_parts(checkpoints: Checkpoints, parallel: Parallel) -> bool:
    """Whether each process writes and reads the parts of its own devices in checkpoints; otherwise process 0 does so with whole arrays."""
    return parallel.parts > 1 and checkpoints.together()


def refuse_nan(window: Window, step: int, state: TrainState, updates: Updates, checkpoints: Checkpoints, run_dir: Path) -> None:
    """Raises NotFinite if an update of ``window``, the last of which is ``step``, gave NaN or infinity.

    First it repeats the updates between the newest checkpoint and the bad update, and writes the state in which that update began. Frees
    ``state``: the devices may have no room for another one.
    """
    if (index := window.first_bad()) is None:
        return
    bad = step - len(window) + 1 + index
    for leaf in jax.tree.leaves((state.params, state.target_params, state.opt_state, state.base)):
        leaf.delete()
    run_on_all(checkpoints.wait)
    at, before, _ = restore(checkpoints, updates)
    for i in range(at + 1, bad):
        before, _ = updates(before, updates.batches[i - 1], i)
    metrics = window.values(index)
    # With several processes, these are the rows of process 0.
    examples, batch, good = updates.batches.examples(bad - 1), updates.batches[bad - 1], updates.parallel.fetch(before)
    path = from_leader(lambda: str(write_bad_update(run_dir, bad, metrics, examples, batch, good)))
    raise NotFinite(
        f"update {bad} gave a number that is not finite: {metrics}; its batch and state are in {path}; lower optim.learning_rate, or look "
        "at the data"
    )


@contextmanager
def profiling(updates: range, run_dir: Path, start: int) -> Iterator[Profile]:
    """The recording of ``updates`` by process 0, in a run that goes on after update ``start``; see :mod:`qrag_jax.train.profile`."""
    if updates and updates[-1] <= start:
        say(f"updates {updates[0]} to {updates[-1]} were made before, so they cannot be profiled")
    profile = leader_only(lambda: Profile(updates, run_dir / "profile"))
    try:
        yield profile
    finally:
        profile.close()


def make_bar(config: RunConfig, start: int) -> tqdm:
    """The progress bar of a training. Its time left is not that of tqdm, which knows nothing of stages and validations."""
    shown = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}, {rate_fmt}{postfix}]"
    return progress_bar(total=config.train.steps, initial=start, unit="update", desc=f"train {config.data.task}", bar_format=shown)


def record(window: Window, step: int, seconds: float, transitions: int, log: RunLog, bar: tqdm, left: float | None) -> None:
    """Writes the means of ``window`` and shows them. ``transitions``: of one update. ``seconds``: of training so far, ``left``: to come."""
    means, spent = window.means(), window.seconds
    rate = len(window) * transitions / spent
    log.record("train", step, **means, seconds=seconds, transitions_per_second=rate, chunks_per_second=window.texts / spent)
    for name, values in window.columns().items():
        if name.startswith("grad_norm") or name in HISTOGRAMS:
            log.histogram(f"train/{name}", step, [float(value) for value in values])
    time_left = "" if left is None else f"{describe.duration(left)} left, "
    bar.set_postfix_str(
        f"{time_left}return {means['return']:.2f} Fact EM {means['fact_em']:.2f} loss {means['loss']:.4f} {rate:.0f} transitions/s",
        refresh=False,
    )


def validate_on_leader(validate: Validation, updates: Updates, state: TrainState, step: int, progress: Progress) -> Progress:
    """Process 0 validates the parameters of ``state``, after ``step`` updates; all processes get its result."""
    params = updates.params(state)
    return Progress.from_json(from_leader(lambda: validate(params, step, progress).to_json()))
