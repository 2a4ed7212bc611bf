"""Overlays the curves of runs, and says which differences between them are larger than chance and than the spread over seeds.

    python -m experiments.overlay runs/babilong-qa2-tiny runs/babilong-qa2-tiny-other
    python -m experiments.overlay runs/a-seeds runs/b-seeds --run-dir runs/a-and-b     # folders of --seeds: mean and spread

Writes overlay.png (validation against updates and minutes, test against context length) and overlay.md (a table of the differences).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from experiments.cli import execute, read, typed
from experiments.overlay.compare import report
from experiments.overlay.plots import draw
from experiments.overlay.runs import read_groups
from qrag_jax.rundir.files import write_text
from qrag_jax.rundir.log import say


@dataclass(frozen=True)
class Command:
    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Two or more run directories. A folder of --seeds counts as one, with its mean and spread."""
    run_dir: Path = Path("runs/overlay")
    """Folder for overlay.png and overlay.md."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code: 0 done, 64 bad input."""
    return execute(lambda: run(read(Command, argv, "experiments.overlay", __doc__ or "")), typed(Command))


def run(command: Command) -> None:
    """Raises ValueError on a folder that holds no run, and if there are fewer than two."""
    groups = read_groups(command.runs)
    if (command.run_dir / "config.json").exists():
        raise ValueError(f"{command.run_dir}: holds a run; choose another --run-dir")
    text = report(groups)
    command.run_dir.mkdir(parents=True, exist_ok=True)
    draw(groups, command.run_dir / "overlay.png")
    write_text(command.run_dir / "overlay.md", text + "\n")
    say(f"{text}\n\noverlay.md and overlay.png are in {command.run_dir}")


if __name__ == "__main__":
    raise SystemExit(main())
