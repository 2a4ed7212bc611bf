"""Where a run's figures also go, besides metrics.jsonl: TensorBoard and Weights & Biases.

A sink is given what the host has anyway; nothing is computed for it on a device. Figures of updates that a resumed run makes again replace
the earlier ones.
"""

from __future__ import annotations

import importlib.util
import os
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from qrag_jax.rundir.files import markdown_text, read_json, write_text

PACKAGES: dict[str, str] = {"tensorboard": "tensorboardX", "wandb": "wandb"}
PROJECT = "qrag-jax"
HISTOGRAM = "_histogram"
"""The end of a histogram's name. TensorBoard draws nothing for a number that has the name of a histogram."""


@runtime_checkable
class Sink(Protocol):
    """A place for figures. ``name`` is "train/loss"; ``step`` counts updates."""

    empty: bool
    """Whether it had nothing of this run when it was opened."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None: ...

    def histogram(self, name: str, step: int, values: Sequence[float]) -> None: ...

    def table(self, name: str, step: int, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None: ...

    def picture(self, name: str, step: int, path: Path) -> None:
        """A PNG."""

    def close(self) -> None:
        """Everything is written."""


def check_trackers(track: Sequence[str]) -> None:
    """Raises ValueError if a package is missing."""
    for name in track:
        if importlib.util.find_spec(PACKAGES[name]) is None:
            raise ValueError(f"track = {name!r}: needs the package {PACKAGES[name]}: pip install 'qrag-jax[log]'")


def open_sink(name: str, run_dir: Path, step: int) -> Sink:
    """The sink ``name`` of a run that goes on after update ``step``; -1: that begins."""
    return TensorBoard(run_dir, step) if name == "tensorboard" else WeightsAndBiases(run_dir)


class TensorBoard:
    """Event files in ``RUN_DIR/tensorboard``, so that ``tensorboard --logdir runs`` shows every run of a folder under its own name."""

    def __init__(self, run_dir: Path, step: int) -> None:
        from tensorboardX import SummaryWriter

        self.folder = run_dir / "tensorboard"
        files = len(list(self.folder.glob("events.*")))
        self.empty = not files
        # What a run that died has written after its checkpoint is hidden. The name of a file has only the second in which it was made.
        purge = None if self.empty else step + 1
        self._writer = SummaryWriter(str(self.folder), purge_step=purge, filename_suffix=f".{files:04}")

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()  # as metrics.jsonl, so that a kill loses nothing

    def histogram(self, name: str, step: int, values: Sequence[float]) -> None:
        self._writer.add_histogram(name + HISTOGRAM, list(values), step)

    def table(self, name: str, step: int, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        lines = [heads, ["---"] * len(heads), *([markdown_text(cell) for cell in row] for row in rows)]
        self._writer.add_text(name, "\n".join("| " + " | ".join(line) + " |" for line in lines), step)

    def picture(self, name: str, step: int, path: Path) -> None:
        from matplotlib.image import imread

        self._writer.add_image(name, imread(path)[..., :3], step, dataformats="HWC")

    def close(self) -> None:
        self._writer.close()


class WeightsAndBiases:
    """A run of Weights & Biases in ``RUN_DIR/wandb``. A run directory is one run there, however often it resumes."""

    def __init__(self, run_dir: Path) -> None:
        import wandb

        self._wandb = wandb
        folder = run_dir / "wandb"
        identity = folder / "run-id.txt"
        self.empty = not identity.exists()
        if self.empty:
            write_text(identity, secrets.token_hex(4))
        # Nothing about the command line, the source and the load of the machine.
        quiet = wandb.Settings(console="off", disable_git=True, disable_code=True, x_disable_meta=True, x_disable_stats=True, silent=True)
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=run_dir.resolve().name,
            id=identity.read_text(encoding="utf-8").strip(),
            resume="allow",
            reinit="create_new",  # a run of the caller's own stays what it is
            dir=run_dir,
            config=read_json(run_dir / "config.json"),
            mode="online" if os.environ.get("WANDB_MODE") == "online" else "offline",
            settings=quiet,
        )
        self._run.define_metric("update")
        self._run.define_metric("*", step_metric="update")

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._log(step, dict(values))

    def histogram(self, name: str, step: int, values: Sequence[float]) -> None:
        self._log(step, {name + HISTOGRAM: self._wandb.Histogram(list(values))})

    def table(self, name: str, step: int, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        self._log(step, {name: self._wandb.Table(columns=list(heads), data=[list(row) for row in rows])})

    def picture(self, name: str, step: int, path: Path) -> None:
        self._log(step, {name: self._wandb.Image(str(path))})

    def close(self) -> None:
        self._run.finish()
        if self._wandb.run is None:  # the caller has none: its service may end, which then has written everything
            self._wandb.teardown()

    def _log(self, step: int, values: dict[str, Any]) -> None:
        self._run.log({**values, "update": step})
