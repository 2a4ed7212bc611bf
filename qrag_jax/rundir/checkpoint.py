"""Train states on disk, by orbax: the last two, to resume from, and the parameters that are best on validation, to use.

A thread writes each checkpoint into a folder with a temporary name, which is renamed when it is complete. So the loop does not wait, and a
killed process leaves no incomplete checkpoint under a final name. Each checkpoint lists the digests of its files, so that a run never
resumes from one that a broken disk or an interrupted copy has damaged.

A state that is split over devices is written by all processes, each of which writes the parts of its own devices. Process 0 renames the
folder when all have written theirs.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax

from qrag_jax.rundir.arrays import ArrayFiles, digests, files_of, is_split, on_host, own_parts
from qrag_jax.rundir.files import is_unfinished, new_folder, read_json, whole_folder, write_json
from qrag_jax.rundir.log import CannotWrite, say
from qrag_jax.rundir.peers import ALONE, Peers
from qrag_jax.rundir.progress import Progress

FORMAT = {"format": "qrag-jax-checkpoint", "version": 2}
STATE, CONTENTS = "state", "contents.json"  # in a checkpoint's folder: what orbax writes; progress or threshold, and digests
PATIENCE = 10  # seconds to wait for a checkpoint whose folder is gone
KEEP = 2  # checkpoints to resume from: if the newest cannot be read, the one before it is used


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint to resume from: the train state (host arrays, or parts on devices) and progress after ``step`` updates."""

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

    ``peers``: the processes that have this folder in common, if they are to write and read split states together. Each then holds an object
    of this class, and all call :meth:`save` and :meth:`latest` together when the state is split; process 0 alone does everything else.
    """

    def __init__(self, run_dir: Path, peers: Peers = ALONE) -> None:
        self._peers = peers
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
        self._files = ArrayFiles()
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

    def together(self) -> bool:
        """Whether all processes of the run can write and read these checkpoints."""
        return self._peers.count == jax.process_count()

    def save(self, step: int, state: Any, progress: Progress) -> None:
        """Saves a checkpoint to resume from after ``step`` updates. Returns when ``state`` is copied, before it is on disk.

        Waits for checkpoints of earlier steps that are still being written, and raises their errors. All peers call this if ``state`` is
        split over devices; an error of one is raised on all.
        """
        if is_split(state):
            self._save_parts(step, state, progress)
        else:
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

        ``template`` and ``params`` are trees of arrays or of their shapes (``jax.ShapeDtypeStruct``). If these have shardings over several
        devices, so has the state; all peers then call this, and each reads the parts of its own devices. A checkpoint is skipped, with a
        message, if it or its best checkpoint (in the shapes of ``params``) cannot be read. Raises ValueError if there are checkpoints but
        none can be read.
        """
        peers = self._peers if is_split(template) else ALONE
        steps = peers.from_leader(lambda: saved_steps(self._root.parent))
        for step in steps:
            try:
                found = peers.on_all(partial(self._read_both, step, template, params))
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
        self._writing.append((step, self._thread.submit(write, on_host(state))))

    def _write_last(self, step: int, progress: Progress, state: Any) -> None:
        self._write("last", step, progress.to_json(), state)
        self._written(step, progress)

    def _written(self, step: int, progress: Progress) -> None:
        self._best_of[step] = progress.best_step
        self._prune()

    def _save_parts(self, step: int, state: Any, progress: Progress) -> None:
        """Copies this process's parts of ``state``; a thread writes them."""
        peers, folder = self._peers, self._root / "last" / str(step)
        peers.on_all(lambda: self.wait(before=step))
        with ExitStack() as leader:
            peers.on_all(lambda: self._make_room(folder, state, leader) if peers.index == 0 else None)
            finish = peers.on_all(lambda: self._files.begin_parts(new_folder(folder) / STATE, state))
            opened = leader.pop_all()
        write = partial(self._write_parts, step, progress, finish, opened, peers.barriers())
        self._writing.append((step, self._thread.submit(write)))

    def _make_room(self, folder: Path, state: Any, leader: ExitStack) -> None:
        self._check_there()
        new = leader.enter_context(whole_folder(folder))
        _check_room(new, state)
        (new / STATE).mkdir()

    def _write_parts(
        self, step: int, progress: Progress, finish: Callable[[], None], opened: ExitStack, barriers: tuple[Callable[[], None], ...]
    ) -> None:
        """Waits until this process's parts are on disk; process 0 waits for all and renames the folder, which ``opened`` holds open.

        Every process reaches both barriers, whatever fails. So a process whose disk fails does not leave the others waiting.
        """
        folder, (all_written, all_done) = self._root / "last" / str(step), barriers
        new = new_folder(folder)
        try:
            with opened:
                try:
                    finish()
                    self._check_there()  # what follows would make the folder again
                    write_json(new / f"{self._peers.index}.json", digests(files_of(own_parts(new / STATE)), new / STATE))
                finally:
                    all_written()
                if self._peers.index == 0:
                    self._complete(new, progress)
            self._check_there()
            if self._peers.index == 0:
                self._written(step, progress)
        except Exception as error:
            self._check_there(error)
            raise
        finally:
            all_done()
        if not (folder / CONTENTS).exists():
            raise CannotWrite(f"{folder}: process 0 could not complete this checkpoint; see what it says")

    def _complete(self, new: Path, progress: Progress) -> None:
        """Makes a checkpoint of the parts of all processes."""
        found: dict[str, str] = {}
        for process in range(self._peers.count):
            path = new / f"{process}.json"
            if not path.exists():
                raise CannotWrite(f"{new.parent}: process {process} could not write its part of a checkpoint; see what it says")
            found |= read_json(path)
            path.unlink()
        self._files.finish_parts(new / STATE)
        rest = [path for path in files_of(new / STATE) if path.relative_to(new / STATE).as_posix() not in found]
        self._check_there()  # what follows would make the folder again
        _write_contents(new, progress.to_json(), found | digests(rest, new / STATE))

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
            _check_room(new, state)
            self._files.write(new / STATE, state)
            self._check_there()  # what follows would make the folder again
            _write_contents(new, info, digests(files_of(new / STATE), new / STATE))

    def _prune(self) -> None:
        """Keeps the newest complete checkpoints and the best ones that they name; removes all others, also broken and unfinished ones."""
        self._best_of = {step: self._best_of[step] for step in sorted(self._best_of)[-KEEP:]}
        for name, kept in (("last", self._best_of.keys()), ("best", self._best_of.values())):
            for path in (self._root / name).glob("*"):
                if is_unfinished(path) or (path.name.isdigit() and path.name not in map(str, kept)):
                    shutil.rmtree(path)

    def _read_both(self, step: int, template: Any, params: Any) -> Checkpoint:
        """A last checkpoint; its best one is read, too, to see that it can be."""
        found = self._read_last(step, template)
        self._read_best(found.progress.best_step, params)
        return found

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
        contents = read_json(folder / CONTENTS)
        try:
            info, expected = contents["info"], contents["sha256"]
            if contents["info_sha256"] != _digest_of(info):
                raise ValueError(f"the content of {CONTENTS} has changed since it was written")
            names = sorted(expected)
        except (TypeError, KeyError, ValueError) as error:
            raise ValueError(f"{folder}: not a checkpoint of qrag-jax, or damaged ({error!r})") from error
        files = {path.relative_to(folder / STATE).as_posix(): path for path in files_of(folder / STATE)}
        # Processes that read the same checkpoint share this work.
        own = names[self._peers.index :: self._peers.count] if is_split(template) else names
        found = digests([files[name] for name in own if name in files], folder / STATE)
        changed = {name for name in own if found.get(name) != expected[name]}
        if damaged := sorted(changed | (files.keys() ^ expected.keys())):
            raise ValueError(f"{folder}: {damaged[0]} is damaged or missing")
        return self._files.read(folder / STATE, template), info


def saved_steps(run_dir: Path) -> list[int]:
    """The number of updates of each checkpoint to resume from, newest first; read from the names of their folders."""
    folder = run_dir / "checkpoints" / "last"
    return sorted((int(path.name) for path in folder.glob("[0-9]*") if path.name.isdigit()), reverse=True)


def _check_room(folder: Path, state: Any) -> None:
    """Raises OSError unless the disk has room for the arrays of ``state``."""
    if shutil.disk_usage(folder).free < sum(leaf.nbytes for leaf in jax.tree.leaves(state) if hasattr(leaf, "nbytes")):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))


def _write_contents(folder: Path, info: dict[str, Any], sha256: dict[str, str]) -> None:
    write_json(folder / CONTENTS, {"info": info, "info_sha256": _digest_of(info), "sha256": sha256})


def _digest_of(info: Any) -> str:
    return hashlib.sha256(json.dumps(info, sort_keys=True).encode()).hexdigest()
