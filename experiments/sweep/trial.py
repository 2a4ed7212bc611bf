"""One trial of a sweep in its own process: ``python -m experiments.sweep.trial FOLDER`` trains with FOLDER/config.json.

Only ``experiments.sweep`` starts it, and holds the other end of standard input: when that closes, the trial saves and ends.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path

from experiments.cli import execute
from qrag_jax.config import RunConfig

CORES = "QRAG_TRIAL_CORES"
"""The environment variable with the numbers of the cores that a trial uses, separated by commas; without it, all."""


def main(folder: Path) -> int:
    """Trains without using the test questions; returns the exit code of :func:`experiments.cli.execute`."""
    if cores := os.environ.get(CORES):
        os.sched_setaffinity(0, map(int, cores.split(",")))  # before JAX counts them
    threading.Thread(target=_end_with_sweep, daemon=True).start()

    def run() -> None:
        from qrag_jax.train import training

        training.run(RunConfig.from_json((folder / "config.json").read_text(encoding="utf-8")), folder, test=False)

    return execute(run)


def _end_with_sweep() -> None:
    # Not sys.stdin, whose lock a waiting daemon thread would hold when the interpreter ends.
    os.read(0, 1)
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    raise SystemExit(main(Path(sys.argv[1])))
