"""Chooses the next trial and records the results: an Optuna study in a journal file that several machines may share.

A trial is identified by the hash of its configuration. Its process holds an operating-system lock, which is released however the process
ends: a trial that is marked as running but not locked was abandoned, and is offered again. A finished Optuna trial never changes: a trial
that is resumed or tried again becomes a new Optuna trial, and the newest one with the same hash counts.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.exceptions import DuplicatedStudyError
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from experiments.sweep.journal import Lock, drop_half_line
from experiments.sweep.spec import MAY_GROW, Dimension, Spec
from qrag_jax.config import RunConfig
from qrag_jax.rundir.files import read_json, write_json, write_text
from qrag_jax.rundir.log import RunLog

JOURNAL, HASH = "journal.log", r"[0-9a-f]{10}"
KEPT = 3
"""ASHA and Hyperband keep one trial of so many at each rung."""
RESTART = "move it away to start again: finished trials will not be trained again"
optuna.logging.set_verbosity(logging.WARNING)

State = Literal["waiting", "running", "complete", "pruned", "failed"]
STATES: dict[TrialState, State] = {
    TrialState.WAITING: "waiting",
    TrialState.RUNNING: "running",
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
}


@dataclass(frozen=True)
class Claim:
    """A trial that only this process may run while it holds ``lock``."""

    name: str
    folder: Path
    values: dict[str, Any]
    config: RunConfig
    lock: Lock
    trial: optuna.Trial
    reported: set[int]


@dataclass(frozen=True)
class Row:
    """The state of a trial. ``value``: the best validation score so far; ``step``: its update; ``stopped``: its stopped Fact F1 (all None
    before the first validation); ``seconds``: training time; ``updates``: updates so far; ``reason``: of a failure."""

    name: str
    state: State
    values: dict[str, Any]
    value: float | None
    stopped: float | None
    step: int | None
    updates: int
    seconds: float
    reason: str | None
    validations: tuple[tuple[int, float], ...]


class Sweep:
    """A sweep in its folder: ``spec.json``, ``journal.log``, ``locks/``, and ``trials/HASH/``, a run directory with a ``log.txt``."""

    def __init__(self, spec: Spec, run_dir: Path) -> None:
        """Starts or resumes. Raises ValueError, before writing, if the folder holds anything else."""
        self.spec, self.run_dir = spec, run_dir
        self._check_folder()
        write_json(run_dir / "spec.json", spec.to_tree())
        self._deciding = Lock(run_dir / "locks" / "deciding")
        journal = run_dir.resolve() / JOURNAL
        drop_half_line(journal, Lock(run_dir / "locks" / "journal"))
        try:
            # Not Optuna's own locks: they are files, which a killed process would leave behind.
            backend = JournalFileBackend(str(journal), Lock(run_dir / "locks" / "journal"))  # type: ignore[arg-type]
            storage = JournalStorage(backend)
            self._study = optuna.create_study(
                study_name="sweep", storage=storage, direction="maximize", load_if_exists=True, pruner=self._pruner()
            )
        except (ValueError, KeyError, TypeError, AttributeError, AssertionError, RecursionError, DuplicatedStudyError) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise ValueError(f"{journal}: cannot be read ({reason}); {RESTART}") from error

    @classmethod
    def open(cls, run_dir: Path) -> Sweep:
        """The sweep of a folder. Raises ValueError if it holds none."""
        path = run_dir / "spec.json"
        tree = read_json(path)
        try:
            return cls(Spec.from_tree(tree), run_dir)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    def _check_folder(self) -> None:
        path = self.run_dir / "spec.json"
        if not path.exists():
            if self.run_dir.exists() and not (self.run_dir.is_dir() and not any(self.run_dir.iterdir())):
                raise ValueError(f"{self.run_dir}: not empty and not a sweep (no spec.json); choose another --run-dir")
            return
        old, new = (_without_growth(tree) for tree in (_completed(read_json(path)), self.spec.to_tree()))
        if changed := [name for name in new if old.get(name) != new[name]]:
            raise ValueError(
                f"{self.run_dir}: holds another sweep ({', '.join(changed)} differ); only {' and '.join(MAY_GROW)} may change; use "
                "the same specification to resume, or another --run-dir"
            )

    def _pruner(self) -> optuna.pruners.BasePruner:
        settings = self.spec.settings
        if not settings.prune:
            return optuna.pruners.NopPruner()
        train = self.spec.base.train
        warmup = train.steps // (4 if settings.pruner == "median" else 9) if settings.prune_warmup is None else settings.prune_warmup
        first = max(warmup, train.eval_every)
        if settings.pruner == "asha":
            return optuna.pruners.SuccessiveHalvingPruner(min_resource=first, reduction_factor=KEPT)
        if settings.pruner == "hyperband":
            return optuna.pruners.HyperbandPruner(min_resource=first, max_resource=max(train.steps, first), reduction_factor=KEPT)
        return optuna.pruners.MedianPruner(n_startup_trials=settings.prune_startup, n_warmup_steps=warmup)

    def next(self) -> Claim | None:
        """A trial to run: an abandoned one, one to try again, or a new one; None if there is none (other processes may still run some)."""
        with self._deciding:
            self._recover()
            while (trial := self._ask()) is not None:
                try:
                    return self._claim(trial, self.spec.config(trial.params))
                except ValueError as error:
                    self._fail(trial, str(error))
            return None

    def _claim(self, trial: optuna.Trial, config: RunConfig) -> Claim:
        name = trial.user_attrs["trial"]
        lock = self._lock(name)
        taken = lock.attempt()
        assert taken, f"{name}: offered while it is running"
        folder = self.run_dir / "trials" / name
        write_text(folder / "config.json", config.to_json())
        return Claim(name, folder, self.spec.values(trial.params), config, lock, trial, set())

    def report(self, claim: Claim, validations: Sequence[dict[str, Any]]) -> bool:
        """Records the validations of a trial so far; returns True if the trial should be stopped."""
        for record in validations:
            if record["step"] not in claim.reported:
                claim.reported.add(record["step"])
                claim.trial.report(record[self.spec.settings.objective], record["step"])
                if claim.trial.should_prune():
                    return True
        return False

    def finish(self, claim: Claim, state: Literal["complete", "pruned", "failed"], reason: str | None = None) -> None:
        """Records how a trial ended, and releases it."""
        if state == "complete":
            objective = self.spec.settings.objective
            value = best_validation(RunLog(claim.folder).validations(objective), objective)[objective]
            self._study.tell(claim.trial, value)
        elif state == "pruned":
            self._study.tell(claim.trial, state=TrialState.PRUNED)
        else:
            self._fail(claim.trial, reason or "")
        claim.lock.release()

    def retry_failed(self) -> int:
        """Offers failed trials again; returns their number."""
        with self._deciding:
            failed = [trial for trial in self._latest().values() if trial.state == TrialState.FAIL]
            for trial in failed:
                self._offer(trial.user_attrs["labels"], trial.user_attrs["trial"])
        return len(failed)

    def rows(self) -> list[Row]:
        """All trials, in the order of their first choice."""
        return [self._row(name, trial) for name, trial in self._latest().items()]

    def importances(self) -> dict[str, float] | None:
        """Importance of each field for reaching the best quarter of the finished trials (PED-ANOVA, Watanabe et al. 2023); None with fewer
        than 8 finished trials, or if all have the same score."""
        done = [trial for trial in self._latest().values() if trial.state == TrialState.COMPLETE]
        if len(done) < 8 or len({trial.value for trial in done}) == 1:
            return None
        only = optuna.create_study(direction="maximize")
        only.add_trials(done)
        found = optuna.importance.get_param_importances(only, evaluator=optuna.importance.PedAnovaImportanceEvaluator(target_quantile=0.25))
        return {name: float(found[name]) for name in self._distributions()}

    def _latest(self) -> dict[str, FrozenTrial]:
        """Hash -> its newest trial, in the order in which the hashes first occurred. Raises ValueError on a name that is no hash, which
        could lead out of the folder, and on values that are not of the space."""
        trials = [trial for trial in self._study.get_trials(deepcopy=False) if "trial" in trial.user_attrs]
        for trial in trials:
            name, labels = trial.user_attrs["trial"], trial.user_attrs.get("labels")
            if not isinstance(name, str) or not re.fullmatch(HASH, name):
                raise ValueError(
                    f"{self.run_dir / JOURNAL}: trial {trial.number} is called {str(name)[:60]!r}, which is no hash; {RESTART}"
                )
            if not isinstance(labels, dict) or set(labels) != {dimension.name for dimension in self.spec.space}:
                raise ValueError(f"{self.run_dir / JOURNAL}: trial {trial.number} has not the fields of spec.json; {RESTART}")
        return {trial.user_attrs["trial"]: trial for trial in trials}

    def _row(self, name: str, trial: FrozenTrial) -> Row:
        log, objective = RunLog(self.run_dir / "trials" / name), self.spec.settings.objective
        records, validations = log.read(), log.validations(objective)
        best = best_validation(validations, objective) if validations else {}
        trained = [record for record in records if record["kind"] == "train"]
        return Row(
            name=name,
            state=STATES[trial.state],
            values=self.spec.values(trial.user_attrs["labels"]),
            value=best.get(objective),
            stopped=best.get("fact_f1_stopped"),
            step=best.get("step"),
            updates=records[-1]["step"] if records else 0,
            seconds=(trained[-1].get("seconds") or 0.0) if trained else 0.0,
            reason=trial.user_attrs.get("reason"),
            validations=tuple((record["step"], record[objective]) for record in validations),
        )

    def _recover(self) -> None:
        """Offers abandoned trials again."""
        newest = {trial.number for trial in self._latest().values()}
        for trial in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            name = trial.user_attrs.get("trial")
            if name is not None:  # a hash: _latest has checked it
                lock = self._lock(name)
                if not lock.attempt():
                    continue
                lock.release()
                if trial.number in newest:
                    self._offer(trial.user_attrs["labels"], name)
            self._study.tell(trial.number, state=TrialState.FAIL)

    def _offer(self, labels: dict[str, Any], name: str) -> None:
        self._study.enqueue_trial(labels, user_attrs={"trial": name, "labels": labels})

    def _ask(self) -> optuna.Trial | None:
        """A trial with its hash: one that was offered, else the next one of the method."""
        latest = self._latest()
        if all(trial.state != TrialState.WAITING for trial in latest.values()):
            if len(latest) >= self.spec.trials:
                return None
            if self.spec.settings.method == "grid":
                self._offer(*next((labels, name) for labels in self.spec.grid() if (name := self.name(labels)) not in latest))
        for attempt in itertools.count():
            self._study.sampler = self._sampler(len(latest), attempt)
            trial = self._study.ask(self._distributions())
            if "trial" in trial.user_attrs:
                return trial
            name = self.name(trial.params)
            if name not in latest:
                trial.set_user_attr("labels", trial.params)
                trial.set_user_attr("trial", name)
                return trial
            self._study.tell(trial, state=TrialState.FAIL)
        raise AssertionError

    def _sampler(self, index: int, attempt: int) -> optuna.samplers.BaseSampler:
        """The sampler for trial ``index``. Its seed depends only on the sweep's seed and the arguments, so interruptions change nothing. If
        a combination was chosen before, the next ``attempt`` draws at random."""
        settings = self.spec.settings
        seed = random.Random(f"{settings.seed} {index} {attempt}").getrandbits(32)
        if settings.method == "tpe" and attempt == 0:
            return optuna.samplers.TPESampler(seed=seed, n_startup_trials=max(1, min(10, self.spec.trials // 3)))
        return optuna.samplers.RandomSampler(seed=seed)

    def name(self, labels: dict[str, Any]) -> str:
        """Hash of the configuration with these values."""
        try:
            text = self.spec.config(labels).to_json()
        except ValueError:  # it is recorded as failed when its turn comes
            text = json.dumps(labels)
        return hashlib.sha256(text.encode()).hexdigest()[:10]  # HASH

    def _fail(self, trial: optuna.Trial, reason: str) -> None:
        trial.set_user_attr("reason", reason)
        self._study.tell(trial, state=TrialState.FAIL)

    def _lock(self, name: str) -> Lock:
        return Lock(self.run_dir / "locks" / name)

    def _distributions(self) -> dict[str, BaseDistribution]:
        return {dimension.name: _distribution(dimension) for dimension in self.spec.space}


def _completed(tree: Any) -> Any:
    """A specification's tree with the defaults of fields that are newer than it; any other tree as it is."""
    try:
        return Spec.from_tree(tree).to_tree()
    except ValueError:
        return tree


def best_validation(records: Sequence[dict[str, Any]], objective: str) -> dict[str, Any]:
    """The validation of a run's best checkpoint: the highest objective; among equals, the highest stopped Fact F1, then the latest."""
    return max(records, key=lambda r: (r[objective], r.get("fact_f1_stopped") or 0.0, r["step"]))


def _distribution(dimension: Dimension) -> BaseDistribution:
    if dimension.values:
        return CategoricalDistribution(dimension.labels)
    if dimension.whole:
        return IntDistribution(int(dimension.low), int(dimension.high), log=dimension.log, step=int(dimension.step or 1))
    return FloatDistribution(dimension.low, dimension.high, log=dimension.log, step=dimension.step)


def _without_growth(tree: dict[str, Any]) -> dict[str, Any]:
    """A specification's tree without the settings that may change; the other settings become top-level keys."""
    flat = {name: value for name, value in tree.items() if name != "settings"}
    return flat | {name: value for name, value in tree.get("settings", {}).items() if name not in MAY_GROW}
