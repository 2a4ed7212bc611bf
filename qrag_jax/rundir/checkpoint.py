"""Train states on disk, by orbax: the last two, to resume from, and the parameters that are best on validation, to use.

A thread writes each checkpoint into a folder with a temporary name, which is renamed when it is complete. So the loop does not wait, and a
killed process leaves no incomplete checkpoint under a final name. Each checkpoint lists the digests of its files, so that a run never
resumes from one that a broken disk or an interrupted copy has damaged.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from qrag_jax.rundir.files import is_unfinished, read_json, whole_folder, write_json
from qrag_jax.rundir.log import say

FORMAT = {"format": "qrag-jax-checkpoint", "version": 2}
STATE, CONTENTS = "state", "contents.json"  # in a checkpoint's folder: what orbax writes; progress or threshold, and digests
PATIENCE = 10  # seconds to wait for a checkpoint whose folder is gone
KEEP = 2  # checkpoints to resume from: if the newest cannot be read, the one before it is used


@dataclass(frozen=True)
class SavedWindow:
    """The updates since the last record: their metrics by name, one value per update; texts embedded; seconds."""

    metrics: dict[str, list[float]] = field(default_factory=dict)
    texts: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class Progress:
    """The state of the training loop, apart from the train state. ``Progress()`` is that of a new run."""

    seconds: float = 0.0
    """Time spent in the loop."""
    best: float = -1.0
    """Highest validation score so far."""
    best_step: int = 0
    """The update with that score, which is the step of its checkpoint "best"."""
    reached: int = 0
    """How many validations in a row, up to the latest, have reached ``train.stop_at``."""
    threshold: float | None = None
    """Stop threshold of the latest validation; None with a budget of 1, where there is nothing to stop."""
    window: SavedWindow = field(default_factory=SavedWindow)

    def to_json(self) -> dict[str, Any]:
        """The tree that :meth:`from_json` takes."""
        return asdict(self)

    @classmethod
    def from_json(cls, tree: Any) -> Progress:
        """Raises ValueError when ``tree`` does not have exactly these fields."""
        names = [item.name for item in fields(cls)]
        if not isinstance(tree, dict) or set(tree) != set(names):
            found = sorted(tree) if isinstance(tree, dict) else tree
            raise ValueError(f"its progress is {found}, expected the fields {sorted(names)}; another version wrote it")
        try:
            return cls(**{**tree, "window": SavedWindow(**tree["window"])})
        except TypeError as error:
            raise ValueError(f"its window of metrics cannot be read ({error}); another version has written it") from error


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint to resume from: the train state (host arrays) and progress after ``step`` updates."""

    step: int
    state: Any
    progress: Progress


@dataclass(frozen=True)
class BestCheckpoint:
    """The parameters that are best on validation (host arrays), after ``step`` updates, and their stop threshold."""

    step: int
    params: Any
    threshold: float | None


class Checkpoints:
    """``checkpoints/last`` and ``checkpoints/best`` of a run directory; a context manager that ends when everything is written.

    Each last checkpoint names its best checkpoint, by ``progress.best_step``. A best checkpoint is kept as long as a last one names it.
    So if a run is killed after it saved a new best checkpoint, but before the next last one, the old best checkpoint is still there, and
    the resumed run writes the new one again.
    """

    def __init__(self, run_dir: Path) -> None:
        self._root = (run_dir / "checkpoints").resolve()
        self._marker = marker = self._root / "format.json"
        if marker.exists():
            if (found := read_json(marker)) != FORMAT:
                raise ValueError(
                    f"{marker}: {found} is not {FORMAT}; another program or another version wrote these checkpoints; use that one, or "
                    "choose another run directory"
                )
        elif self._root.exists() and any(path for path in self._root.iterdir() if not is_unfinished(path)):
            raise ValueError(f"{self._root}: holds files that are not checkpoints of qrag-jax; choose another run directory")
        else:
            write_json(marker, FORMAT)
        # One process saves alone, even if others train with it (by default, orbax would wait for all of them).
        alone = ocp.options.MultiprocessingOptions(primary_host=jax.process_index(), active_processes={jax.process_index()})
        self._orbax = ocp.Checkpointer(ocp.StandardCheckpointHandler(multiprocessing_options=alone), multiprocessing_options=alone)
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._writing: list[tuple[int, Future[None]]] = []
        self._best_of: dict[int, int] = {}  # step of each complete last checkpoint -> step of its best one
        self._saved_at = time.monotonic()

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        there = self._marker.exists()  # else the thread may never end
        self._thread.shutdown(wait=there, cancel_futures=not there)
        if kind is None:
            self.wait()

    def save(self, step: int, state: Any, progress: Progress) -> None:
        """Saves a checkpoint to resume from after ``step`` updates. Returns when ``state`` is copied, before it is on disk.

        Waits for checkpoints of earlier steps that are still being written, and raises their errors.
        """
        self._submit(step, state, partial(self._write_last, step, progress))
        self._saved_at = time.monotonic()

    def save_best(self, step: int, params: Any, threshold: float | None) -> None:
        """Saves the parameters that are best on validation and their stop threshold; otherwise like :meth:`save`."""
        self._submit(step, {"params": params}, partial(self._write, "best", step, {"threshold": threshold}))

    def save_is_due(self, minutes: float) -> bool:
        """Whether the last :meth:`save` (or the start, if there was none) is at least ``minutes`` ago."""
        return time.monotonic() - self._saved_at >= 60 * minutes

    def wait(self, before: int | None = None) -> None:
        """Waits until everything (of steps below ``before``) is on disk; raises the errors of writing it."""
        for step, future in self._writing:
            if before is None or step < before:
                self._result(future)
        self._writing = [item for item in self._writing if not item[1].done() or item[1].exception()]

    def check(self) -> None:
        """Raises the error of a checkpoint that failed in the background. Does not wait."""
        for _, future in self._writing:
            if future.done():
                future.result()

    def latest(self, template: Any, params: Any) -> Checkpoint | None:
        """The newest checkpoint to resume from, in the shapes of ``template``; None if none was ever finished.

        ``template`` and ``params`` are trees of arrays or of their shapes (``jax.ShapeDtypeStruct``). A checkpoint is skipped, with a
        message, if it or its best checkpoint (in the shapes of ``params``) cannot be read. Raises ValueError if there are checkpoints but
        none can be read.
        """
        steps = saved_steps(self._root.parent)
        for step in steps:
            try:
                found = self._read_last(step, template)
                self._read_best(found.progress.best_step, params)
            except ValueError as error:
                say(f"skipping checkpoint {step}: {error}")
                continue
            self._best_of = {step: found.progress.best_step}
            return found
        if steps:
            raise ValueError(
                f"{self._root}: none of its checkpoints {steps} can be read; restore a complete copy, use the version and settings "
                "that wrote them, or start over in another run directory"
            )
        return None

    def best(self, step: int, params: Any) -> BestCheckpoint:
        """The best checkpoint of ``step``, in the shapes of ``params``. Raises ValueError when it cannot be read."""
        self.wait()
        return self._read_best(step, params)

    def best_so_far(self, params: Any) -> BestCheckpoint:
        """The best checkpoint that the newest last checkpoint names, or, before there is one, the newest best checkpoint.

        Raises ValueError if there is none, or if it cannot be read.
        """
        for step in saved_steps(self._root.parent):
            info = read_json(self._root / "last" / str(step) / CONTENTS)["info"]
            return self._read_best(Progress.from_json(info).best_step, params)
        found = sorted(int(path.name) for path in (self._root / "best").glob("[0-9]*") if path.name.isdigit())
        if not found:
            raise ValueError(f"{self._root.parent}: has no checkpoint yet")
        return self._read_best(found[-1], params)

    def _submit(self, step: int, state: Any, write: Callable[[Any], None]) -> None:
        """Lets the thread ``write`` a copy of ``state``."""
        self.wait(before=step)
        # A host array may be a view of a device buffer that the next update overwrites.
        copy = jax.tree.map(np.array, _unkey(state))
        self._writing.append((step, self._thread.submit(write, copy)))

    def _write_last(self, step: int, progress: Progress, state: Any) -> None:
        self._write("last", step, progress.to_json(), state)
        self._best_of[step] = progress.best_step
        self._prune()

    def _result(self, future: Future[None]) -> None:
        """Waits for a checkpoint; raises the error of writing it, or FileNotFoundError if it does not end because its folder is gone."""
        while not future.done():
            _, waiting = wait([future], timeout=1)
            if waiting and not self._marker.exists():
                wait([future], timeout=PATIENCE)
                self._check_there()
        future.result()

    def _check_there(self, cause: BaseException | None = None) -> None:
        if not self._marker.exists():
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self._root)) from cause

    def _write(self, name: str, step: int, info: dict[str, Any], state: Any) -> None:
        """Raises FileNotFoundError if the folder is removed meanwhile: what would be left is no checkpoint of a run."""
        self._check_there()
        try:
            self._write_whole(name, step, info, state)
        except Exception as error:
            self._check_there(error)
            raise
        self._check_there()

    def _write_whole(self, name: str, step: int, info: dict[str, Any], state: Any) -> None:
        with whole_folder(self._root / name / str(step)) as new:
            if shutil.disk_usage(new).free < sum(leaf.nbytes for leaf in jax.tree.leaves(state)):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(new))
            with _quiet():
                self._orbax.save(new / STATE, args=ocp.args.StandardSave(state))
            self._check_there()  # what follows would make the folder again
            write_json(new / CONTENTS, {"info": info, "info_sha256": _digest_of(info), "sha256": _digests(new / STATE)})

    def _prune(self) -> None:
        """Keeps the newest complete checkpoints and the best ones that they name; removes all others, also broken and unfinished ones."""
        self._best_of = {step: self._best_of[step] for step in sorted(self._best_of)[-KEEP:]}
        for name, kept in (("last", self._best_of.keys()), ("best", self._best_of.values())):
            for path in (self._root / name).glob("*"):
                if is_unfinished(path) or (path.name.isdigit() and path.name not in map(str, kept)):
                    shutil.rmtree(path)

    def _read_last(self, step: int, template: Any) -> Checkpoint:
        state, info = self._read("last", step, template)
        try:
            return Checkpoint(step, state, Progress.from_json(info))
        except ValueError as error:
            raise ValueError(f"{self._root / 'last' / str(step)}: {error}") from error

    def _read_best(self, step: int, params: Any) -> BestCheckpoint:
        state, info = self._read("best", step, {"params": params})
        if not isinstance(info, dict) or set(info) != {"threshold"}:
            held = sorted(info) if isinstance(info, dict) else info
            raise ValueError(f"{self._root / 'best' / str(step)}: holds {held}, expected a threshold; another version wrote it")
        return BestCheckpoint(step, state["params"], info["threshold"])

    def _read(self, name: str, step: int, template: Any) -> tuple[Any, Any]:
        """State and JSON. Raises ValueError, naming the folder, on a checkpoint that is damaged or has other shapes."""
        folder = self._root / name / str(step)
        plain = jax.tree.map(_blank, template)
        contents = read_json(folder / CONTENTS)
        try:
            info, expected = contents["info"], contents["sha256"]
            if contents["info_sha256"] != _digest_of(info):
                raise ValueError(f"the content of {CONTENTS} has changed since it was written")
        except (TypeError, KeyError, ValueError) as error:
            raise ValueError(f"{folder}: not a checkpoint of qrag-jax, or damaged ({error!r})") from error
        found = _digests(folder / STATE)
        if damaged := sorted(file for file in found.keys() | expected.keys() if found.get(file) != expected.get(file)):
            raise ValueError(f"{folder}: {damaged[0]} is damaged or missing")
        try:
            state = self._orbax.restore(folder / STATE, args=ocp.args.StandardRestore(plain))
        except Exception as error:  # orbax raises many kinds; the files are undamaged, so each means that the model is another one
            raise ValueError(f"{folder}: cannot be restored ({type(error).__name__}: {error})") from error
        for (path, value), like in zip(jax.tree.leaves_with_path(state), jax.tree.leaves(plain), strict=True):
            if (value.shape, value.dtype) != (like.shape, like.dtype):
                raise ValueError(
                    f"{folder}: {jax.tree_util.keystr(path)} is {value.dtype}{list(value.shape)}, expected {like.dtype}{list(like.shape)}"
                )
        return _rekey(state, template), info


def saved_steps(run_dir: Path) -> list[int]:
    """The number of updates of each checkpoint to resume from, newest first; read from the names of their folders."""
    folder = run_dir / "checkpoints" / "last"
    return sorted((int(path.name) for path in folder.glob("[0-9]*") if path.name.isdigit()), reverse=True)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences orbax, which logs the tracebacks of its own threads for an error that it also raises.

    After an error it stays silent, because its threads go on for a while.
    """
    loggers = [logging.getLogger(name) for name in ("absl", "concurrent.futures")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    yield
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)


def _digests(folder: Path) -> dict[str, str]:
    """Path below ``folder`` -> sha256, of every file."""
    digests = {}
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                digests[str(path.relative_to(folder))] = hashlib.file_digest(file, "sha256").hexdigest()
    return digests


def _digest_of(info: Any) -> str:
    return hashlib.sha256(json.dumps(info, sort_keys=True).encode()).hexdigest()


def _is_key(x: Any) -> bool:
    return hasattr(x, "dtype") and jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)


def _unkey(tree: Any) -> Any:
    """Random keys as plain integers, the form in which files hold them."""
    return jax.tree.map(lambda x: np.asarray(jax.random.key_data(x)) if _is_key(x) else x, tree)


def _blank(x: Any) -> np.ndarray:
    """A host array of the shape and type in which files hold ``x``, an array or a shape; it takes no memory."""
    like = jax.eval_shape(jax.random.key_data, x) if _is_key(x) else x if hasattr(x, "dtype") else np.asarray(x)
    return np.broadcast_to(np.zeros((), like.dtype), like.shape)


def _rekey(tree: Any, template: Any) -> Any:
    return jax.tree.map(lambda x, like: jax.random.wrap_key_data(x) if _is_key(like) else x, tree, template)
