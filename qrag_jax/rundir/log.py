"""What a run prints and records (lines, a progress bar, metrics.jsonl, manifest.json), and how it may end. Only this file prints."""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar
from weakref import WeakSet

from tqdm import tqdm

from qrag_jax.config.secrets import redact, redact_words
from qrag_jax.config.trees import parse_json
from qrag_jax.rundir.files import disk_error, write_json, write_text
from qrag_jax.rundir.printable import printable
from qrag_jax.rundir.sinks import Sink, open_sink

T = TypeVar("T")
_silent = False
_aside = False
_bars: WeakSet[tqdm] = WeakSet()


class Preempted(BaseException):
    """The run was asked to stop. Its state is saved; run the same command again to resume.

    Not an Exception, so that code which catches every error, such as JAX's search for devices, does not take it for one.
    """


class Interrupted(Preempted):
    """The same, by Ctrl-C."""


class Unreachable(RuntimeError):
    """Something outside this machine that the command needs, such as a reader, cannot be reached or refuses to work."""


class Pruned(Exception):
    """The run was stopped because other runs are better. Its state is saved; the argument is the number of updates it has made."""


class NotFinite(Exception):
    """An update gave NaN or infinity. The update is written to files, and no checkpoint holds its result."""


class CannotWrite(Exception):
    """The disk is full or broken, or a bucket refuses files. The previous checkpoint is undamaged."""


def silence() -> None:
    """From now on this process prints nothing, because another process of the same run prints."""
    global _silent
    _silent = True


def _has_colours(stream: Any) -> bool:
    return bool(stream.isatty()) and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


@contextmanager
def aside() -> Iterator[None]:
    """In this block, what is said goes to stderr: stdout is for a program that reads it."""
    global _aside
    before, _aside = _aside, True
    try:
        yield
    finally:
        _aside = before


def progress(items: Iterable[T] | None = None, **options: Any) -> tqdm:
    """A progress bar with rate and time left, on stderr. If stderr is not a terminal, it is written less often."""
    options.setdefault("mininterval", 0.5 if sys.stderr.isatty() else 20)
    if _silent:
        options["disable"] = True
    bar = tqdm(items, dynamic_ncols=True, **options)
    _bars.add(bar)
    return bar


def close_bars() -> None:
    """Ends the lines of progress bars that an error has left open, so that what follows has a line of its own."""
    for bar in list(_bars):
        bar.leave = True
        bar.close()


def say(text: str, *, dim: bool = False) -> None:
    """One line for the person at the terminal, above any progress bar: without secrets, and with control characters as escapes.

    ``dim``: less bright, on a terminal that has colours and unless NO_COLOR is set.
    """
    if _silent:
        return
    stream = sys.stderr if _aside else sys.stdout
    line = printable(redact(text))
    tqdm.write(f"\x1b[2m{line}\x1b[0m" if dim and _has_colours(stream) else line, file=stream)
    stream.flush()


class RunLog:
    """``metrics.jsonl`` of a run directory: one object per line, ``{"kind", "step", ...}``, written at once.

    What is recorded after :meth:`rewind` also goes to the sinks ``track``; they are closed at the end of a ``with`` block.
    """

    def __init__(self, run_dir: Path, track: Sequence[str] = ()) -> None:
        self.path = run_dir / "metrics.jsonl"
        self._track, self._sinks = track, list[Sink]()

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, *error: object) -> None:
        self._send(lambda sink: sink.close())
        self._sinks = []

    def record(self, kind: str, step: int, **values: Any) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"kind": kind, "step": step, **values}, allow_nan=False) + "\n")
        self._send(lambda sink: sink.scalars(step, _figures(kind, values)))

    def histogram(self, name: str, step: int, values: Sequence[float]) -> None:
        """For the sinks alone, as are tables and pictures."""
        self._send(lambda sink: sink.histogram(name, step, values))

    def table(self, name: str, step: int, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        self._send(lambda sink: sink.table(name, step, heads, rows))

    def picture(self, name: str, step: int, path: Path) -> None:
        self._send(lambda sink: sink.picture(name, step, path))

    @property
    def tracked(self) -> bool:
        """Whether there is a sink."""
        return bool(self._sinks)

    def _send(self, give: Callable[[Sink], None]) -> None:
        """Gives something to every sink. One that fails, perhaps for lack of a network, gets nothing more; the run goes on."""
        for sink in list(self._sinks):
            try:
                give(sink)
            except Exception as error:
                if disk_error(error) is not None:
                    raise
                self._sinks.remove(sink)
                why = " ".join(str(error).split())[:200]
                say(f"{type(sink).__name__} gets no more figures of this run, since it failed ({why}); metrics.jsonl has all of them")

    def read(self) -> list[dict[str, Any]]:
        if not self.path.exists():
            return []
        records = []
        lines = self.path.read_bytes().split(b"\n")[:-1]  # what follows the last line end was being written when the process died
        for number, line in enumerate(lines, start=1):
            try:
                record = parse_json(line)
                if not isinstance(record, dict) or not isinstance(record.get("kind"), str) or type(record.get("step")) is not int:
                    raise ValueError("is not a record with a kind and a step")
                if bad := [name for name, value in record.items() if name != "kind" and not _is_measured(value)]:
                    raise ValueError(f"{bad[0]} = {ascii(record[bad[0]])[:60]}: must be a finite number or null")
            except ValueError as error:
                if number < len(lines):  # the last line may be damaged: the machine died while it was written
                    raise ValueError(f"{self.path}:{number}: {error}; the file is damaged: restore a copy of it") from error
                continue
            records.append(record)
        return records

    def validations(self, *needed: str) -> list[dict[str, Any]]:
        """The records of validations. Raises ValueError, naming the file, unless each has the ``needed`` figures as numbers."""
        found = [record for record in self.read() if record["kind"] == "validation"]
        for record in found:
            if missing := [name for name in needed if record.get(name) is None]:
                raise ValueError(
                    f"{self.path}: the validation after update {record['step']} has no {missing[0]}; restore a copy of the file"
                )
        return found

    def rewind(self, step: int) -> None:
        """Removes the records made after ``step`` updates: a resumed run makes them again."""
        kept = [record for record in self.read() if record["step"] <= step]
        write_text(self.path, "".join(json.dumps(record) + "\n" for record in kept))
        for name in self._track:
            sink = open_sink(name, self.path.parent, step)
            self._sinks.append(sink)
            for record in kept if sink.empty else ():  # of a run that had no such sink before
                sink.scalars(record["step"], _figures(record["kind"], record))


def _figures(kind: str, values: Mapping[str, Any]) -> dict[str, float]:
    """The measured numbers of a record, by the names that sinks show: "train/loss"."""
    return {f"{kind}/{name}": value for name, value in values.items() if name not in ("kind", "step") and value is not None}


def _is_measured(value: Any) -> bool:
    return value is None or (type(value) in (int, float) and math.isfinite(value))


def write_manifest(run_dir: Path, seed: int, devices: list[str], x64: bool = False) -> None:
    """Writes manifest.json: the command, versions, devices and seed of this run, and whether JAX_ENABLE_X64 is set."""
    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "tokenizers", "transformers")
    write_json(
        run_dir / "manifest.json",
        {
            "git": _git_hash(),
            "command": redact_words(sys.argv),
            "python": platform.python_version(),
            "platform": platform.platform(),
            "packages": {name: importlib.metadata.version(name) for name in packages},
            "devices": devices,
            "jax_enable_x64": x64,
            "seed": seed,
        },
    )


def _git_hash() -> str | None:
    """Commit of the source tree, with '+' when it has changes; None outside a checkout or without git."""
    here = Path(__file__).resolve().parent
    try:
        run = lambda *words: subprocess.run(["git", *words], cwd=here, capture_output=True, text=True, check=True).stdout.strip()
        return run("rev-parse", "HEAD") + ("+" if run("status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return None
