"""One trial of a sweep in its own process: ``python -m experiments.sweep.trial FOLDER`` trains with FOLDER/config.json.

Only ``experiments.sweep`` starts it (:mod:`experiments.child`).
"""

from __future__ import annotations

import sys
from pathlib import Path

from experiments.child import follow
from experiments.cli import execute
from qrag_jax.config import RunConfig
from qrag_jax.rundir.compilations import prepare_compiling


def main(folder: Path) -> int:
    """Trains without using the test questions; returns the exit code of :func:`experiments.cli.execute`."""
    follow()

    def run() -> None:
        prepare_compiling()
        from qrag_jax.train import training

        training.run(RunConfig.from_json((folder / "config.json").read_text(encoding="utf-8")), folder, test=False)

    return execute(run)


if __name__ == "__main__":
    raise SystemExit(main(Path(sys.argv[1])))
