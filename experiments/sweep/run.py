"""Runs each trial of a sweep in its own process: a crash, a lack of memory or a signal ends the trial, but not the sweep."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping, Sequence

from experiments.child import POLL_SECONDS, Child, how, validations_of
from experiments.slots import slots
from experiments.sweep.report import standing, write_summary
from experiments.sweep.spec import shown
from experiments.sweep.study import Claim, Row, Sweep
from qrag_jax.rundir.log import Preempted, RunLog, progress, say
from qrag_jax.rundir.stop import stop_requests

TRIAL = (sys.executable, "-m", "experiments.sweep.trial")
REASON_LINES = 12
"""The number of last lines of a failed trial's log that are kept as the reason of the failure."""
HEADER = f"{'trial':<10}  {'status':<8}  {'Fact EM':>7}  {'updates':>7}  {'minutes':>7}  changed"


class Running(Child):
    """A trial's process."""

    def __init__(self, claim: Claim, command: Sequence[str], environment: Mapping[str, str], slot: int) -> None:
        self.claim = claim
        self.pruned = False
        assert claim.lock.file is not None
        super().__init__(
            [*command, str(claim.folder)],
            claim.folder,
            claim.folder / "log.txt",
            environment,
            name=claim.name,
            steps=claim.config.train.steps,
            slot=slot,
            keep=(claim.lock.file,),
        )

    def watch(self, sweep: Sweep) -> int | None:
        """Reports new validations, stops the trial if it is to be pruned, and returns the exit code once the process has ended."""
        code, records = self.look()
        if not self.pruned and sweep.report(self.claim, validations_of(records)):
            self.pruned = True
            self.stop()
        return code


def run(sweep: Sweep, command: Sequence[str] = TRIAL) -> None:
    """Runs the trials that are left. Raises Preempted after Ctrl-C or SIGTERM, once every running trial has saved; ValueError if there are
    fewer devices than parallel trials."""
    # Trials compile mostly the same programs.
    shared = {"JAX_COMPILATION_CACHE_DIR": str((sweep.run_dir / "compiled").resolve()), **os.environ}
    environments = slots(sweep.spec.settings.parallel, shared)
    running: dict[int, Running] = {}
    rows = sweep.rows()
    say(f"{sweep.run_dir}: {standing(sweep, rows)}\n{HEADER}")
    for row in rows:
        say(line(row))
    try:
        with stop_requests(), progress(total=sweep.spec.trials, unit="trial", desc="sweep", initial=_finished(rows)) as bar:
            while True:
                for slot in set(range(len(environments))) - set(running):
                    if (claim := sweep.next()) is None:
                        break
                    running[slot] = Running(claim, command, environments[slot], slot)
                    _show(sweep, claim.name)
                if not running:
                    break
                time.sleep(POLL_SECONDS)
                for slot, one in list(running.items()):
                    if (code := one.watch(sweep)) is None:
                        continue
                    one.close()
                    settle(sweep, one, code)
                    del running[slot]
                    _show(sweep, one.claim.name)
                    write_summary(sweep)
                    bar.update(_finished(sweep.rows()) - bar.n)
    except Preempted as stop:
        for one in running.values():
            one.stop()
        for one in running.values():
            one.close()
            one.claim.lock.release()
        raise type(stop)(f"{len(running)} trials saved in {sweep.run_dir}; run the same command again to resume") from None


def settle(sweep: Sweep, one: Running, code: int) -> None:
    """Records how a trial ended."""
    if one.pruned:
        sweep.finish(one.claim, "pruned")
    elif code == 0 and any(record["kind"] == "validation" for record in RunLog(one.claim.folder).read()):
        sweep.finish(one.claim, "complete")
    else:
        sweep.finish(one.claim, "failed", "\n".join([how(code), *one.last_lines(REASON_LINES)]))


def line(row: Row) -> str:
    """A row of the live table."""
    changed = "  ".join(f"{name.rpartition('.')[2]}={shown(value)}" for name, value in row.values.items())
    score = "-" if row.value is None else f"{row.value:.3f}"
    return f"{row.name:<10}  {row.state:<8}  {score:>7}  {row.updates:>7}  {row.seconds / 60:>7.1f}  {changed}"


def _finished(rows: Sequence[Row]) -> int:
    return sum(row.state in ("complete", "pruned", "failed") for row in rows)


def _show(sweep: Sweep, name: str) -> None:
    say(next(line(row) for row in sweep.rows() if row.name == name))
