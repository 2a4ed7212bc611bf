"""Several seeds at a time on one machine (``--seeds 0 1 2 --parallel 3``), each in its own process on its own devices.

    RUN_DIR/seed-0.log, seed-1.log, ...     what each process printed

The files of the folder and of the runs are those of :mod:`experiments.seeds`. A seed that fails ends alone. This module, started by
``python -m``, is the process of one seed.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from experiments import seeds
from experiments.child import POLL_SECONDS, Child, follow, how, ordered, records_of, validations_of
from experiments.slots import slots
from qrag_jax.config import RunConfig
from qrag_jax.config.watch import Watch
from qrag_jax.rundir.compilations import prepare_compiling
from qrag_jax.rundir.early import STOPPED
from qrag_jax.rundir.ending import execute
from qrag_jax.rundir.log import Preempted, aside, say

SEED = (sys.executable, "-m", "experiments.parallel_seeds")


def check_parallel(parallel: int, of_run: Sequence[int]) -> None:
    """Raises ValueError unless ``parallel`` processes are of use for these seeds."""
    if parallel < 1:
        raise ValueError(f"parallel = {parallel}: must be >= 1")
    if parallel > 1 and not of_run:
        raise ValueError(f"parallel = {parallel}: is used with --seeds; add that")
    if parallel > max(len(of_run), 1):
        raise ValueError(f"parallel = {parallel}: must be <= {len(of_run)}, the number of seeds")


def run(config: RunConfig, run_dir: Path, of_run: Sequence[int], watch: Watch, parallel: int, command: Sequence[str] = SEED) -> int:
    """Trains, evaluates and exports with each seed, ``parallel`` of them at a time, and reports on all seeds of the folder.

    Returns 0, or the exit code of the first seed that failed; the others are not affected. Runs that have ended are only read. Raises
    ValueError on what :func:`experiments.seeds.check_folder` refuses, on too few devices and on several hosts; Preempted after SIGTERM or
    Ctrl-C, once all seeds have saved.
    """
    from qrag_jax.rundir import hosts

    if hosts.is_multiprocess():
        raise ValueError(f"parallel = {parallel}: must be 1 when several processes train a run together")
    seeds.check_folder(config, run_dir, of_run)
    environments = slots(parallel, os.environ)
    run_dir.mkdir(parents=True, exist_ok=True)
    running: dict[int, Seed] = {}
    codes: list[int] = []
    waiting = [seed for seed in of_run if not seeds.has_ended(seeds.with_seed(config, seed), run_dir / f"seed-{seed}")]
    if ended := [str(seed) for seed in of_run if seed not in waiting]:
        say(f"seeds that have already ended with these settings, and are not repeated: {' '.join(ended)}")
        seeds.write_seeds(config, run_dir)
    try:
        while waiting or running:
            for slot in sorted(set(range(parallel)) - set(running))[: len(waiting)]:
                running[slot] = Seed(seeds.with_seed(config, waiting.pop(0)), run_dir, watch, command, environments[slot], slot)
            time.sleep(POLL_SECONDS)
            for slot, one in list(running.items()):
                if (code := one.watch()) is None:
                    continue
                one.close()
                del running[slot]
                one.tell_end(code)
                codes.append(code if code >= 0 else STOPPED)  # killed: the same command resumes it
                if code == 0:
                    seeds.write_seeds(config, run_dir)
    except Preempted as stop:
        for one in running.values():
            one.stop()
        for one in running.values():
            one.close()
        raise type(stop)(f"{len(running)} seeds saved in {run_dir}; run the same command again to resume") from None
    if ended or 0 in codes:
        seeds.tell(config, run_dir)
    return next((code for code in codes if code), 0)


class Seed(Child):
    """The process of one seed."""

    def __init__(
        self, config: RunConfig, run_dir: Path, watch: Watch, command: Sequence[str], environment: Mapping[str, str], slot: int
    ) -> None:
        self.seed = config.train.seed
        folder, log = run_dir / f"seed-{self.seed}", run_dir / f"seed-{self.seed}.log"
        self._said = len(validations_of(records_of(folder)))
        say(f"seed {self.seed}: {folder}; what it says is in {log}")
        super().__init__(command, folder, log, environment, name=f"seed {self.seed}", steps=config.train.steps, slot=slot)
        self.order(json.dumps({"config": config.to_json(), "folder": str(folder), "watch": asdict(watch)}))

    def watch(self) -> int | None:
        """Says the new validations; returns the exit code once the process has ended."""
        code, records = self.look()
        found = validations_of(records)
        for record in found[self._said :]:
            say(f"seed {self.seed}: validation after update {record['step']}: Fact EM {record['fact_em']:.3f}")
        self._said = max(self._said, len(found))
        return code

    def tell_end(self, code: int) -> None:
        """Says, in one line, how the process ended."""
        if code == 0:
            say(f"seed {self.seed}: done")
            return
        said = self.last_lines(1) if code > 0 else []
        with aside():
            say(f"seed {self.seed} failed: {'; '.join([*([] if code == STOPPED else [how(code)]), *said])}; the rest is in {self.log}")


def main() -> int:
    """The process of one seed; returns its exit code."""
    text = ordered()
    follow()

    def one_seed() -> None:
        if not text:
            raise Preempted("the command that started this run has ended")
        told = json.loads(text)
        prepare_compiling()
        watch = Watch(tuple(told["watch"]["track"]), told["watch"]["profile"])
        seeds.train_seed(RunConfig.from_json(told["config"]), Path(told["folder"]), watch)

    return execute(one_seed)


if __name__ == "__main__":
    raise SystemExit(main())
