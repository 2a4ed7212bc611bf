"""Several processes that write one index together. All that they share is its folder.

    .process-0.tmp     what process 0 tells the others: :class:`Told`. Written again every ``BEAT`` seconds, as a sign of life
    building-1.json    the shards that process 1 has written; those of process 0 are in building.json

Process 0 leads: it holds the lock, decides which shards of an unfinished change are used, and publishes meta.json. No process connects to
another one, so none ends because another one dies: it waits, sees no sign of life, and says so.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from jaxtyping import Num

from qrag_jax.config.parse import decode
from qrag_jax.retrieve.meta import JOURNAL, Meta
from qrag_jax.retrieve.storage import Shard, StoredFile
from qrag_jax.rundir.files import read_json, write_json
from qrag_jax.rundir.hosts import ALONE, Place, kind_of, told
from qrag_jax.rundir.lock import only_helper, only_writer
from qrag_jax.rundir.log import Unreachable, say

T = TypeVar("T")
BEAT = 5.0  # seconds between two signs of life
LOST = 120.0  # seconds without one after which a process counts as dead: a network folder shows changes late
JOIN = 300.0  # seconds within which all must have begun
LOOK = 0.2  # seconds between two looks at the others
SOON = 30.0  # seconds of waiting after which that is said
JOURNALS = "building-*.json"


@dataclass(frozen=True)
class Told:
    """What a process tells the others: its ``stage``, how many ``shards`` its journal has, how many texts it has ``embedded``. Process 0
    also tells how many shards, the first of its journal, an unfinished change had ``begun``. One that is done tells a hash of the ``texts``
    of all shards; one that failed ``kind`` and ``text`` of its error."""

    run: str
    stage: Literal["starting", "working", "done", "failed"] = "starting"
    beat: int = 0
    shards: int = 0
    embedded: int = 0
    begun: int = 0
    texts: str = ""
    kind: str = ""
    text: str = ""


class Team:
    """This process among those that write to ``folder``. With one process, it does nothing. Use :func:`writers`."""

    def __init__(self, folder: Path, place: Place = ALONE) -> None:
        self.folder, self.place = folder, place
        self.told = Told(place.run)
        self._stop, self._writing = threading.Event(), threading.Lock()
        self._beating: threading.Thread | None = None
        self._seen: dict[int, tuple[Told | None, float]] = {}
        self._journals: dict[int, dict[int, Shard]] = {}

    @property
    def leads(self) -> bool:
        return self.place.number == 0

    @property
    def journal(self) -> Path:
        """Where this process notes the shards that it has written."""
        return self.folder / journal(self.place.number)

    def __enter__(self) -> Team:
        if self.place.count > 1:
            self.tell()
            self._beating = threading.Thread(target=self._beat, daemon=True)
            self._beating.start()
        return self

    def __exit__(self, _kind: Any, error: BaseException | None, _trace: Any) -> None:
        if self._beating is None:
            return
        self._stop.set()
        self._beating.join()
        with suppress(OSError):
            if error is None:
                self._file(self.place.number).unlink(missing_ok=True)
            else:  # the file stays, for the others; the next change removes it
                self.tell(stage="failed", kind=kind_of(error), text=str(error))

    def tell(self, **changes: Any) -> None:
        """Lets the others know."""
        if self.place.count > 1:
            with self._writing:
                self.told = replace(self.told, beat=self.told.beat + 1, **changes)
                with suppress(FileNotFoundError):
                    return self._write()
                self._write()  # process 0, which clears the folder when it begins, took the unfinished file for that of a killed process

    def _write(self) -> None:
        write_json(self._file(self.place.number), asdict(self.told))

    def _beat(self) -> None:
        while not self._stop.wait(BEAT):
            with suppress(OSError):
                self.tell()

    def look(self) -> dict[int, Told | None]:
        """What each other process has told last; None: nothing yet. Raises the error of one that has failed, and Unreachable when one has
        given no sign of life for too long."""
        return {number: self._look(number) for number in range(self.place.count) if number != self.place.number}

    def _look(self, number: int) -> Told | None:
        found, now = self._read(number), time.monotonic()
        before, since = self._seen.get(number, (None, now))
        if number not in self._seen or found != before:
            self._seen[number] = found, now
        elif now - since > (limit := JOIN if found is None else LOST):
            shared = "" if found is not None else "; all need this folder, on a disk that they share"
            raise Unreachable(f"{self.folder}: process {number} of {self.place.count} has given no sign of life for {limit:g} s{shared}")
        if found is not None and found.stage == "failed":
            raise told(found.kind, found.text, number)
        return found

    def _read(self, number: int) -> Told | None:
        with suppress(ValueError, TypeError, OSError):
            found = decode(Told, read_json(self._file(number)), "process")
            return found if found.run == self.place.run else None
        return None

    def wait(self, number: int, find: Callable[[Told | None], T | None]) -> T:
        """The first thing that ``find`` finds, given what process ``number`` has told. Raises as :meth:`look` does."""
        began, said = time.monotonic(), False
        while (found := find(self.look()[number])) is None:
            if not said and time.monotonic() - began > SOON:
                say(f"waiting for process {number} of {self.place.count}")
                said = True
            time.sleep(LOOK)
        return found

    def begun(self, meta: Meta) -> list[Shard]:
        """The shards of an unfinished change that process 0 has found sound, for the others."""
        now = self.wait(0, lambda now: now)
        return list(self.written(0, now, meta).values())[: now.begun]

    def written(self, number: int, now: Told | None, meta: Meta) -> dict[int, Shard]:
        """The shards of the journal of process ``number``, by their own numbers. Raises ValueError when it has other settings."""
        known = self._journals.get(number, {})
        if now is not None and now.shards > len(known):
            found = Meta.read(self.folder / journal(number))
            if settings(found) != settings(meta):
                raise ValueError(f"{self.folder}: process {number} has another model or dtype; start all with the same command")
            known = self._journals[number] = {shard.number: shard for shard in found.shards}
        return known

    def differs(self, number: int) -> ValueError:
        """The error when process ``number`` has cut other chunks than this one."""
        return ValueError(f"{self.folder}: process {number} reads another source; give all processes the same files")

    def _file(self, number: int) -> Path:
        return self.folder / f".process-{number}.tmp"


@contextmanager
def writers(folder: Path, place: Place) -> Iterator[Team]:
    """Lets all processes of ``place`` write to the folder, and nobody else: :func:`~qrag_jax.rundir.lock.only_writer` for several.

    The block of the others begins when process 0 says :meth:`Team.tell` ``stage="working"``. Raises Busy, as that does; Unreachable when a
    process does not come or dies; and what ends another process, so that all end alike.
    """
    with Team(folder, place) as team:
        if team.leads:
            with only_writer(folder):
                yield team
        else:
            team.wait(0, lambda now: True if now is not None and now.stage != "starting" else None)
            with only_helper(folder, place.number):
                team.tell(stage="working")
                yield team


class Awaited(Shard):
    """A shard of ``chunks`` chunks that process ``owner`` writes. Whoever asks for its files waits for them. ``texts``: the SHA-256 of its
    texts."""

    def __init__(self, team: Team, meta: Meta, owner: int, number: int, chunks: int, texts: str) -> None:
        self.folder, self.chunks, self.width, self.dtype, self.store = team.folder, chunks, meta.width, meta.dtype, meta.store
        self._team, self._meta, self._owner, self._number, self._texts = team, meta, owner, number, texts
        self._files: dict[str, StoredFile] | None = None

    @property
    def number(self) -> int:
        return self._number

    # Not cached properties: up to Python 3.11, one that waits holds a lock that all threads need for the same property of other objects.

    @property
    def files(self) -> dict[str, StoredFile]:  # type: ignore[override]
        """Raises as :meth:`Team.wait` does; ValueError when the other process has cut other chunks."""
        if self._files is None:
            self._files = self._team.wait(self._owner, self._find)
        return self._files

    @property
    def vectors(self) -> Num[np.ndarray, "R D"]:
        self.files  # noqa: B018 (waits)
        return super().vectors

    def _find(self, now: Told | None) -> dict[str, StoredFile] | None:
        found = self._team.written(self._owner, now, self._meta).get(self._number)
        if found is None and not (now is not None and now.stage == "done"):
            return None
        if found is None or found.files["texts"].sha256 != self._texts:
            raise self._team.differs(self._owner)
        return found.files


def journal(number: int) -> str:
    return JOURNAL if number == 0 else JOURNALS.replace("*", str(number))


def settings(meta: Meta) -> tuple[Any, ...]:
    """What two lists of shards must have in common, so that vectors of one can be copied into the other."""
    return meta.model.hash, meta.dtype, meta.width, meta.store and meta.store.ref
