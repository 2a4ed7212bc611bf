"""Train states on disk, by orbax: the last two, to go on from, and the best on validation, to use.

A checkpoint is written on a thread, aside, and renamed when whole, so that the loop does not wait and whoever is killed leaves nothing
half. It lists the digest of each of its files: what a broken disk or a copy cut short left is never gone on from.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from qrag_jax.rundir.files import is_unfinished, read_json, whole_folder, write_json
from qrag_jax.rundir.log import say

FORMAT = {"format": "qrag-jax-checkpoint", "version": 2}
STATE, CONTENTS = "state", "contents.json"  # of a checkpoint's folder: what orbax writes; info and digests
KEEP = 2  # checkpoints to go on from: should one be unreadable, there is the one before


@dataclass(frozen=True)
class Checkpoint:
    """``state`` (host arrays) and ``info`` (JSON) after ``step`` updates."""

    step: int
    state: Any
    info: dict[str, Any]


class Checkpoints:
    """``checkpoints/last`` and ``checkpoints/best`` of a run directory; a context manager that ends when everything is written.

    ``info["best_step"]`` of a last one names the best one that belongs to it. A best one is kept for as long as a last one names it: one
    that a killed run saved ahead of its last checkpoint is written anew, and the one before it is still there.
    """

    def __init__(self, run_dir: Path) -> None:
        self._root = (run_dir / "checkpoints").resolve()
        marker = self._root / "format.json"
        if marker.exists():
            if (found := read_json(marker)) != FORMAT:
                raise ValueError(f"{marker}: {found} is not {FORMAT}; these checkpoints come from another program or another version")
        elif self._root.exists() and any(path for path in self._root.iterdir() if not is_unfinished(path)):
            raise ValueError(f"{self._root}: holds files that are not checkpoints of qrag-jax; choose another run directory")
        else:
            write_json(marker, FORMAT)
        # One process saves alone, whatever others train beside it (orbax would have all of them come).
        alone = ocp.options.MultiprocessingOptions(primary_host=jax.process_index(), active_processes={jax.process_index()})
        self._orbax = ocp.Checkpointer(ocp.StandardCheckpointHandler(multiprocessing_options=alone), multiprocessing_options=alone)
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._writing: list[tuple[int, Future[None]]] = []
        self._best_of: dict[int, int] = {}  # of each whole last checkpoint
        self.saved_at = time.monotonic()

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        self._thread.shutdown(wait=True)
        if kind is None:
            self.wait()

    def save(self, name: str, step: int, state: Any, info: dict[str, Any]) -> None:
        """Keeps ``state`` and ``info`` as ``name``, 'last' or 'best', at ``step`` updates. Returns when the state is copied.

        Waits for checkpoints of earlier steps that are still being written, and raises what went wrong with them.
        """
        self.wait(before=step)
        # A host array may be a view of a device buffer that the next update takes over.
        copy = jax.tree.map(np.array, _unkey(state))
        self._writing.append((step, self._thread.submit(self._write, name, step, copy, json.loads(json.dumps(info)))))
        if name == "last":
            self.saved_at = time.monotonic()

    def wait(self, before: int | None = None) -> None:
        """Until everything (of steps below ``before``) is on disk; raises what kept it from getting there."""
        for step, future in self._writing:
            if before is None or step < before:
                future.result()
        self._writing = [item for item in self._writing if not item[1].done() or item[1].exception()]

    def check(self) -> None:
        """Raises what went wrong with a checkpoint in the background, without waiting for one."""
        for _, future in self._writing:
            if future.done():
                future.result()

    def latest(self, template: Any, best: Any) -> Checkpoint | None:
        """The newest state to go on from, in the shapes of ``template``; None when none was ever finished.

        One that cannot be read, or whose best one (in the shapes of ``best``) cannot, is skipped with a message. Raises ValueError when
        there are some and none can be read.
        """
        steps = saved_steps(self._root.parent)
        for step in steps:
            try:
                found = self._read("last", step, template)
                self._read("best", found.info["best_step"], best)
            except ValueError as error:
                say(f"skipping checkpoint {step}: {error}")
                continue
            self._best_of = {step: found.info["best_step"]}
            return found
        if steps:
            raise ValueError(
                f"{self._root}: none of its checkpoints {steps} can be read; bring back a whole copy, or remove {self._root.parent} to "
                "start over"
            )
        return None

    def best(self, step: int, template: Any) -> Checkpoint:
        """The best state, which :attr:`Checkpoint.info` of the last one names. Raises ValueError when it cannot be read."""
        self.wait()
        return self._read("best", step, template)

    def _write(self, name: str, step: int, state: Any, info: dict[str, Any]) -> None:
        with whole_folder(self._root / name / str(step)) as new:
            if shutil.disk_usage(new).free < sum(leaf.nbytes for leaf in jax.tree.leaves(state)):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(new))
            with _quiet():
                self._orbax.save(new / STATE, args=ocp.args.StandardSave(state))
            write_json(new / CONTENTS, {"info": info, "info_sha256": _digest_of(info), "sha256": _digests(new / STATE)})
        if name == "last":
            self._best_of[step] = info["best_step"]
            self._prune()

    def _prune(self) -> None:
        """Leaves the newest whole checkpoints and the best ones that they name; broken and unfinished ones go, too."""
        self._best_of = {step: self._best_of[step] for step in sorted(self._best_of)[-KEEP:]}
        for name, kept in (("last", self._best_of.keys()), ("best", self._best_of.values())):
            for path in (self._root / name).glob("*"):
                if is_unfinished(path) or (path.name.isdigit() and path.name not in map(str, kept)):
                    shutil.rmtree(path)

    def _read(self, name: str, step: int, template: Any) -> Checkpoint:
        """Raises ValueError, naming the folder, on a checkpoint that is not whole or not of these shapes."""
        folder = self._root / name / str(step)
        plain = jax.tree.map(np.asarray, _unkey(template))
        contents = read_json(folder / CONTENTS)
        try:
            info, expected = contents["info"], contents["sha256"]
            if contents["info_sha256"] != _digest_of(info):
                raise ValueError(f"{CONTENTS} is not what was written")
        except (TypeError, KeyError, ValueError) as error:
            raise ValueError(f"{folder}: not a checkpoint of qrag-jax, or damaged ({error!r})") from error
        found = _digests(folder / STATE)
        if damaged := sorted(file for file in found.keys() | expected.keys() if found.get(file) != expected.get(file)):
            raise ValueError(f"{folder}: {damaged[0]} is damaged or missing")
        try:
            state = self._orbax.restore(folder / STATE, args=ocp.args.StandardRestore(plain))
        except Exception as error:  # orbax raises many kinds; the files being whole, all mean that they hold another model
            raise ValueError(f"{folder}: cannot be restored ({type(error).__name__}: {error})") from error
        for (path, value), like in zip(jax.tree.leaves_with_path(state), jax.tree.leaves(plain), strict=True):
            if (value.shape, value.dtype) != (like.shape, like.dtype):
                raise ValueError(
                    f"{folder}: {jax.tree_util.keystr(path)} is {value.dtype}{list(value.shape)}, expected {like.dtype}{list(like.shape)}"
                )
        return Checkpoint(step, _rekey(state, template), info)


def saved_steps(run_dir: Path) -> list[int]:
    """Updates behind each checkpoint to go on from, newest first, by the names of their folders."""
    folder = run_dir / "checkpoints" / "last"
    return sorted((int(path.name) for path in folder.glob("[0-9]*") if path.name.isdigit()), reverse=True)


@contextmanager
def _quiet() -> Iterator[None]:
    """Orbax logs the traces of its own threads for an error that it also raises."""
    loggers = [logging.getLogger(name) for name in ("absl", "concurrent.futures")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
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


def _digest_of(info: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(info, sort_keys=True).encode()).hexdigest()


def _is_key(x: Any) -> bool:
    return isinstance(x, jax.Array) and jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)


def _unkey(tree: Any) -> Any:
    """Random keys as plain integers, which is what files hold."""
    return jax.tree.map(lambda x: np.asarray(jax.random.key_data(x)) if _is_key(x) else x, tree)


def _rekey(tree: Any, template: Any) -> Any:
    return jax.tree.map(lambda x, like: jax.random.wrap_key_data(x) if _is_key(like) else x, tree, template)
