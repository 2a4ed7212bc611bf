"""A sweep on several hosts: one process per host, all started with the same command, train each trial together.

Process 0 has the study and the folder. It chooses a trial, sends its configuration to the others, and decides when to prune it; all
processes train it as one run (qrag_jax/rundir/hosts.py). A trial has no process of its own: if one process crashes, all end, and the same
command resumes the trial.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from experiments.sweep.report import standing, write_summary
from experiments.sweep.run import HEADER, line
from experiments.sweep.spec import Spec
from experiments.sweep.study import Claim, Sweep
from qrag_jax.config import RunConfig
from qrag_jax.rundir.compilations import prepare_compiling
from qrag_jax.rundir.hosts import from_leader, leader_only
from qrag_jax.rundir.log import NotFinite, Pruned, RunLog, say
from qrag_jax.train import training


def run(spec: Spec, run_dir: Path, retry_failed: bool) -> None:
    """Trains the trials that are left; called by all processes. Raises ValueError, in all processes, on a bad folder or setting; Preempted
    after SIGTERM, once the trial has saved."""
    if spec.settings.parallel > 1:
        raise ValueError(f"parallel = {spec.settings.parallel}: must be 1 when several processes train a trial together")
    prepare_compiling()
    sweep = leader_only(lambda: Sweep(spec, run_dir))
    claims: list[Claim] = []

    def begin() -> list[str] | None:
        """Folder and configuration of the next trial."""
        if (claim := sweep.next()) is None:
            return None
        claims.append(claim)
        _show(sweep, claim.name)
        return [str(claim.folder), claim.config.to_json()]

    def behind() -> bool:
        return sweep.report(claims[-1], RunLog(claims[-1].folder).validations(sweep.spec.settings.objective))

    def settle(state: Literal["complete", "pruned", "failed"], reason: str | None) -> None:
        sweep.finish(claims[-1], state, reason)
        _show(sweep, claims[-1].name)
        write_summary(sweep)

    from_leader(lambda: _begin(sweep, retry_failed))
    while (trial := from_leader(begin)) is not None:
        state: Literal["complete", "pruned", "failed"] = "complete"
        reason = None
        try:
            training.run(RunConfig.from_json(trial[1]), trial[0], test=False, prune=behind)
        except Pruned:
            state = "pruned"
        except (ValueError, NotFinite) as error:  # all processes raise these; any other exception ends them
            state, reason = "failed", str(error)
        from_leader(lambda state=state, reason=reason: settle(state, reason))  # type: ignore[misc]


def _begin(sweep: Sweep, retry_failed: bool) -> None:
    if retry_failed:
        say(f"failed trials that will be tried again: {sweep.retry_failed()}")
    rows = sweep.rows()
    say(f"{sweep.run_dir}: {standing(sweep, rows)}\n{HEADER}")
    for row in rows:
        say(line(row))


def _show(sweep: Sweep, name: str) -> None:
    say(next(line(row) for row in sweep.rows() if row.name == name))
