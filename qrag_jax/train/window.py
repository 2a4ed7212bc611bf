"""The metrics of the updates since the last record (kept in checkpoints), and the files about an update that gave NaN."""

from __future__ import annotations

import dataclasses
import io
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from qrag_jax.rundir.files import write_bytes, write_json
from qrag_jax.rundir.progress import SavedWindow
from qrag_jax.types import QAExample, TaskBatch


class Window:
    """The updates since the last record: their metrics, texts embedded and seconds.

    Checkpoints hold it, so that a run resumed in the middle of a window records the same means as an uninterrupted one.
    """

    def __init__(self, saved: SavedWindow | None = None) -> None:
        saved = saved or SavedWindow()
        columns = {name: [np.float32(value) for value in values] for name, values in saved.metrics.items()}
        self._metrics: list[dict[str, Any]] = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        self.texts = saved.texts
        self._began = time.perf_counter() - saved.seconds

    def __len__(self) -> int:
        return len(self._metrics)

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self._began

    def add(self, metrics: Mapping[str, Any], texts: int) -> None:
        """Adds one update's scalars. Waits for the update before it, so that the loop stays close to the device and can stop soon."""
        if self._metrics:
            jax.block_until_ready(self._metrics[-1])
        self._metrics.append(dict(metrics))
        self.texts += texts

    def means(self) -> dict[str, float]:
        return {name: float(np.mean(values)) for name, values in self.columns().items()}

    def first_bad(self) -> int | None:
        """Index of the first update with a metric that is not finite."""
        finite = np.isfinite(list(self.columns().values())).all(axis=0)
        return None if finite.all() else int(np.argmin(finite))

    def values(self, index: int) -> dict[str, float]:
        """The metrics of one update."""
        return {name: float(values[index]) for name, values in self.columns().items()}

    def saved(self) -> SavedWindow:
        """The argument that the constructor takes; float32 values are kept exactly."""
        metrics = {name: [float(value) for value in values] for name, values in self.columns().items()}
        return SavedWindow(metrics, self.texts, self.seconds)

    def columns(self) -> dict[str, list[np.ndarray]]:
        """Name -> values of the metrics that every update has: a stage with another objective has others."""
        self._metrics = jax.device_get(self._metrics)
        names = [name for name in (self._metrics[0] if self._metrics else ()) if all(name in metrics for metrics in self._metrics)]
        return {name: [metrics[name] for metrics in self._metrics] for name in names}


def write_bad_update(
    run_dir: Path, step: int, metrics: Mapping[str, float], examples: Sequence[QAExample], batch: TaskBatch, state: Any
) -> Path:
    """Writes ``nan/step-N.npz`` (batch, metrics, and the state before update N) and ``nan/step-N.json`` (its questions).

    Returns the path of the first. ``state`` is the TrainState on the host. Nothing is pickled: ``numpy.load`` reads the file.
    """
    state = dataclasses.replace(state, key=jax.random.key_data(state.key))
    parts = {"batch": batch, "metrics": dict(metrics), "state": state}
    arrays = {
        f"{name}/{jax.tree_util.keystr(path, simple=True, separator='/')}": np.asarray(leaf)
        for name, part in parts.items()
        for path, leaf in jax.tree.leaves_with_path(part)
    }
    content = io.BytesIO()
    np.savez(content, **arrays)  # type: ignore[arg-type]
    write_json(run_dir / "nan" / f"step-{step}.json", [dataclasses.asdict(example) for example in examples])
    return write_bytes(run_dir / "nan" / f"step-{step}.npz", content.getvalue())
