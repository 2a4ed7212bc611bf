"""Runs each trial of a sweep in its own process: a crash, a lack of memory or a signal ends the trial, but not the sweep."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from experiments.sweep.report import standing, write_summary
from experiments.sweep.spec import shown
from experiments.sweep.study import Claim, Row, Sweep
from experiments.sweep.trial import CORES
from qrag_jax.rundir.early import STOPPED
from qrag_jax.rundir.log import Preempted, RunLog, progress, say
from qrag_jax.rundir.stop import stop_requests

TRIAL = (sys.executable, "-m", "experiments.sweep.trial")
POLL_SECONDS = 0.5
REASON_LINES = 12
"""The number of last lines of a failed trial's log that are kept as the reason of the failure."""
HEADER = f"{'trial':<10}  {'status':<8}  {'Fact EM':>7}  {'updates':>7}  {'minutes':>7}  changed"


class Running:
    """A trial's process."""

    def __init__(self, claim: Claim, command: Sequence[str], environment: Mapping[str, str], slot: int) -> None:
        self.claim = claim
        self.pruned = False
        self._log = (claim.folder / "log.txt").open("a", encoding="utf-8")
        assert claim.lock.file is not None
        self._process = subprocess.Popen(
            [*command, str(claim.folder)],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C reaches only the sweep, which then asks its trials to save
            pass_fds=(claim.lock.file,),
        )
        # Bars of running trials are shown only on a terminal.
        self._bar = progress(total=claim.config.train.steps, position=1 + slot, leave=False, disable=None, desc=claim.name, unit="update")

    def watch(self, sweep: Sweep) -> int | None:
        """Reports new validations, stops the trial if it is to be pruned, and returns the exit code once the process has ended."""
        code = self._process.poll()
        records = RunLog(self.claim.folder).read()
        validations = [record for record in records if record["kind"] == "validation"]
        if not self.pruned and sweep.report(self.claim, validations):
            self.pruned = True
            self.stop()
        if validations:
            self._bar.set_postfix_str(f"validation Fact EM {validations[-1]['fact_em']:.3f}", refresh=False)
        self._bar.update((records[-1]["step"] if records else 0) - self._bar.n)
        return code

    def stop(self) -> None:
        """Asks the trial to save and end."""
        if self._process.poll() is None:
            self._process.terminate()

    def close(self) -> int:
        """Waits until the process ends; returns its exit code, which is negative after a signal."""
        code = self._process.wait()
        self._bar.close()
        self._log.close()
        if self._process.stdin is not None:
            self._process.stdin.close()
        return code


def run(sweep: Sweep, command: Sequence[str] = TRIAL) -> None:
    """Runs the trials that are left. Raises Preempted after Ctrl-C or SIGTERM, once every running trial has saved; ValueError if there are
    fewer devices than parallel trials."""
    environments = slots(sweep.spec.settings.parallel, sweep.run_dir)
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
        sweep.finish(one.claim, "failed", reason(code, one.claim.folder / "log.txt"))


def reason(code: int, log: Path) -> str:
    """Why a trial failed: how its process ended, and the last lines of its log."""
    if code < 0:
        name = signal.Signals(-code).name
        how = f"killed by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")
    elif code == STOPPED:
        how = "stopped early, after saving"
    else:
        how = f"exit code {code}"
    lines = [text.rstrip() for text in log.read_text(encoding="utf-8", errors="replace").replace("\r", "\n").splitlines() if text.strip()]
    return "\n".join([how, *lines[-REASON_LINES:]])


def slots(parallel: int, run_dir: Path) -> list[dict[str, str]]:
    """The environment of each parallel trial. A single trial has all devices; several have an accelerator each, or a part of the
    CPU's cores."""
    # Trials compile mostly the same programs.
    shared = {"JAX_COMPILATION_CACHE_DIR": str((run_dir / "compiled").resolve()), **os.environ}
    if parallel == 1:
        return [shared]
    code = "import jax; print(jax.default_backend(), jax.local_device_count())"
    found = subprocess.run([sys.executable, "-c", code], env=shared, capture_output=True, text=True)
    if found.returncode:
        raise ValueError(f"parallel = {parallel}: JAX finds no devices: {found.stderr.strip().splitlines()[-1]}")
    backend, count = found.stdout.split()[-2:]
    if backend == "cpu":
        return [{**shared, **own_cores(slot, parallel)} for slot in range(parallel)]
    if parallel > int(count):
        raise ValueError(f"parallel = {parallel}: must be <= {count}, the {backend} devices here")
    return [{**shared, **visible(backend, slot)} for slot in range(parallel)]


def own_cores(slot: int, parallel: int) -> dict[str, str]:
    """The environment variable with the cores of parallel trial ``slot``; none if there are fewer cores than trials."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    own = cores[slot::parallel]
    return {CORES: ",".join(map(str, own))} if len(cores) >= parallel else {}


def visible(backend: str, slot: int) -> dict[str, str]:
    """Environment variables with which a process sees only accelerator ``slot``."""
    if backend == "tpu":
        return {"TPU_CHIPS_PER_PROCESS_BOUNDS": "1,1,1", "TPU_PROCESS_BOUNDS": "1,1,1", **_one("TPU_VISIBLE_CHIPS", slot)}
    return _one("CUDA_VISIBLE_DEVICES", slot) | _one("ROCR_VISIBLE_DEVICES", slot)


def _one(name: str, slot: int) -> dict[str, str]:
    """The variable ``name`` with the device of a slot, out of the devices that this process may use."""
    allowed = os.environ.get(name)
    return {name: allowed.split(",")[slot] if allowed else str(slot)}


def line(row: Row) -> str:
    """A row of the live table."""
    changed = "  ".join(f"{name.rpartition('.')[2]}={shown(value)}" for name, value in row.values.items())
    score = "-" if row.value is None else f"{row.value:.3f}"
    return f"{row.name:<10}  {row.state:<8}  {score:>7}  {row.updates:>7}  {row.seconds / 60:>7.1f}  {changed}"


def _finished(rows: Sequence[Row]) -> int:
    return sum(row.state in ("complete", "pruned", "failed") for row in rows)


def _show(sweep: Sweep, name: str) -> None:
    say(next(line(row) for row in sweep.rows() if row.name == name))
