"""Runs in a bucket: the run gs://BUCKET/NAME works in a folder on this machine, and a thread copies every change to the bucket.

The folder may be a run directory, or hold several of them: seeds, ablations, the trials of a sweep.

On a disk, a checkpoint is renamed when it is complete. A bucket has no renames, so the order of the files does that work. A checkpoint is
sent when it is complete on this machine, after the files that it needs, and its list of digests is sent last. When it is removed, its list
is removed first. So a checkpoint that has a list in the bucket is complete, whenever a process dies.
"""

from __future__ import annotations

import base64
import hashlib
import logging
import os
import re
import shlex
import signal
import threading
import time
import urllib.parse
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from qrag_jax.rundir.checkpoint import CONTENTS
from qrag_jax.rundir.files import disk_error, is_unfinished, read_json, whole_file, write_json
from qrag_jax.rundir.log import CannotWrite, Preempted, say

EVERY = 2.0  # seconds between looks at the folder
PATIENCE = 600.0  # seconds of failures after which a run is stopped
SNAPSHOT = 2**25  # bytes: files up to this size may grow while they are sent
CHECKPOINT = re.compile(r"((?P<run>.+/|)checkpoints/(?P<kind>last|best)/(?P<step>\d+))/.+")  # a file of a checkpoint
PROBE = ".write-access"


def is_url(path: str | Path) -> bool:
    return "://" in str(path)


def home(url: str) -> Path:
    """The folder of a URL on this machine. It holds ``run``, in which the run works, and ``read``, the copy that :func:`fetch` makes."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "qrag-jax" / "buckets" / urllib.parse.quote(url.removeprefix("gs://").rstrip("/"), safe="")


class Bucket:
    """The objects below a URL, by their names there. Raises ValueError on a bad URL, or if gcsfs is not installed."""

    def __init__(self, url: str) -> None:
        parts = url.rstrip("/").split("/")[3:]
        if not re.fullmatch(r"gs://[a-z0-9][a-z0-9._-]+[a-z0-9](/[\w.=+-]+)+/?", url) or {".", ".."} & set(parts):
            raise ValueError(f"{url!r}: must be gs://BUCKET/NAME; NAME has letters, digits, '.', '_', '=', '+', '-' and '/'")
        try:
            from gcsfs.core import GCSFileSystem
        except ImportError:
            raise ValueError(f"{url}: buckets need gcsfs: pip install 'qrag-jax[gcs]'") from None
        logging.getLogger("gcsfs").setLevel(logging.CRITICAL + 1)  # it logs the tracebacks of errors that it also raises
        self._root = url.removeprefix("gs://").rstrip("/")
        token = "anon" if os.environ.get("STORAGE_EMULATOR_HOST") else None  # an emulator asks for no login
        self._files = GCSFileSystem(token=token, use_listings_cache=False, skip_instance_cache=True)

    def digests(self) -> dict[str, str]:
        """Name -> MD5 of every object, or its etag if it has no MD5."""
        found = self._files.find(self._root, detail=True).items()
        names = {path.removeprefix(f"{self._root}/"): entry for path, entry in found if path.startswith(f"{self._root}/")}
        return {name: entry.get("md5Hash") or entry["etag"] for name, entry in names.items() if not name.endswith(("/", PROBE))}

    def get(self, name: str, path: Path) -> None:
        with whole_file(path) as temporary:
            self._files.get_file(f"{self._root}/{name}", str(temporary))

    def put(self, name: str, content: bytes | Path) -> None:
        """Sends bytes, or a file that nothing changes meanwhile."""
        if isinstance(content, bytes):
            # One chunk: otherwise gcsfs sends a multipart request, which loses a final carriage return and ends at its boundary string.
            self._files.pipe_file(f"{self._root}/{name}", content, consistency="md5", chunksize=max(len(content), 1))
        else:
            self._files.put_file(str(content), f"{self._root}/{name}", consistency="md5")

    def remove(self, name: str) -> None:
        try:
            self._files.rm_file(f"{self._root}/{name}")
        except FileNotFoundError:  # someone has removed it already
            self.digests()  # raises the error again if the bucket itself is gone


@contextmanager
def opening(url: str) -> Iterator[None]:
    """Turns errors into ValueError (no such bucket, or no access), Preempted (it cannot be reached) and CannotWrite (this disk is full)."""
    from google.auth.exceptions import GoogleAuthError

    try:
        yield
    except (ValueError, CannotWrite):
        raise
    except FileNotFoundError as error:
        raise ValueError(f"{url}: no such bucket; create it first (gcloud storage buckets create)") from error
    except Exception as error:  # gcsfs raises many kinds
        if (told := disk_error(error)) is not None:
            raise CannotWrite(f"{home(url)}: cannot be written to ({told}); make room first") from error
        code = getattr(error, "code", None)
        if isinstance(error, GoogleAuthError) or code in (401, 403) or "Forbidden" in str(error):
            raise ValueError(
                f"{url}: no access ({reason(error)}); log in (gcloud auth application-default login), or give this machine's account the "
                "role Storage Object User"
            ) from error
        raise Preempted(f"{url}: cannot be reached ({reason(error)}); run the same command again") from error


def reason(error: BaseException) -> str:
    """An error in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())


def fetch(url: str) -> Path:
    """Copies the export below a URL (of a run, or an export folder) to this machine. Raises ValueError when there is none."""
    bucket, folder = Bucket(url), home(url) / "read"
    with opening(url):
        found = bucket.digests()
        inside = "export/" if "export/qrag.json" in found else ""
        if f"{inside}qrag.json" not in found:
            raise ValueError(f"{url}: no export of a retriever there (no qrag.json); it comes at the end of a run")
        _follow(bucket, folder, {name: digest for name, digest in found.items() if name.startswith(inside)})
    return folder


class Mirror:
    """The folder on this machine, and the thread that copies its changes to the bucket; a context manager that ends when all is sent.

    If the bucket is still as this machine left it, the run continues with the folder, so that changes which could not be sent are not lost.
    Otherwise the bucket has changed, and the folder is made equal to it. ``sent.json``, next to the folder, records how this machine left
    the bucket. Raises the errors of :func:`opening`.
    """

    def __init__(self, url: str) -> None:
        self._url, self.folder = url.rstrip("/"), home(url) / "run"
        self._bucket = Bucket(url)
        self._sent: dict[str, list[str | None]] = {}  # name -> digest in the bucket; two while it is being sent
        self._stamps: dict[str, tuple[int, int, int]] = {}
        self._failure: Exception | None = None
        with opening(url):
            self._bucket.put(PROBE, b"")
            self._bucket.remove(PROBE)
            self._fetch()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="bucket", daemon=True)
        self._thread.start()

    def __enter__(self) -> Mirror:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        self._closing.set()
        self._thread.join()
        if self._failure is None:
            say(f"everything is in {self._url}")
            return
        told = (
            f"{self._url}: cannot be written to ({reason(self._failure)}); nothing is lost: {self.folder} has everything. Run the same "
            "command on this machine to send it and resume"
        )
        if kind is not None and not issubclass(kind, Preempted):
            say(f"error: {told}")
            return
        raise CannotWrite(told) from self._failure

    def _fetch(self) -> None:
        there, state = self._bucket.digests(), self.folder.parent / "sent.json"
        whole = {name for name in there if (match := CHECKPOINT.fullmatch(name)) is None or f"{match[1]}/{CONTENTS}" in there}
        sent = read_json(state) if state.exists() and self.folder.exists() else {}
        ours = all(there.get(name) in sent.get(name, [None]) for name in there.keys() | sent.keys())
        if not (ours or there):
            raise ValueError(
                f"{self._url}: is empty, but it held the run of {self.folder}; send the run back "
                f"(gcloud storage rsync --recursive {shlex.quote(str(self.folder))} {self._url}), or start over with another gs:// address"
            )
        halves = {match[1] for name in there.keys() - whole if (match := CHECKPOINT.fullmatch(name))}
        for half in sorted(halves):
            if not (ours and (self.folder / half).exists()):
                say(f"skipping {self._url}/{half}: it was not sent completely")
        _follow(self._bucket, self.folder, {name: there[name] for name in whole}, keep=ours)
        self._sent = {name: [digest] for name, digest in there.items()}
        write_json(state, self._sent)

    def _watch(self) -> None:
        failing: float | None = None
        while self._failure is None:
            closing = self._closing.wait(EVERY)
            try:
                while not self._send():
                    pass
            except Exception as error:  # gcsfs raises many kinds; the run continues for a while, whatever it is
                if failing is None:
                    failing = time.monotonic()
                    say(f"{self._url}: cannot be written to ({reason(error)}); trying again for {PATIENCE:.0f} s")
                if time.monotonic() - failing >= PATIENCE:
                    self._failure = error
                    if not closing:  # the run saves and ends, as when it is preempted
                        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)
                time.sleep(EVERY)
            else:
                failing = None
                if closing:
                    return

    def _send(self) -> bool:
        """Makes the bucket equal to the folder. Returns False if a file disappeared meanwhile and the folder must be listed again."""
        last = [name for name in _files(self.folder) if _is_last(name)]
        # The files that these checkpoints need are listed after them, so that none of those is missing.
        names = _in_order([*last, *(name for name in _files(self.folder) if not _is_last(name))])
        for name in names:
            path = self.folder / name
            try:
                stamp = _stamp(path)
                if self._stamps.get(name) == stamp:
                    continue
                content = path.read_bytes() if stamp[0] <= SNAPSHOT else path
                digest = _md5(content)
            except FileNotFoundError:
                return False
            if self._sent.get(name) != [digest]:
                self._note(name, digest)
                try:
                    self._bucket.put(name, content)
                except FileNotFoundError:
                    if path.exists():
                        raise
                    return False
            self._stamps[name] = stamp
        # If the whole run is gone from the folder, nothing is removed from the bucket.
        gone = [(name, match) for name in self._sent.keys() - set(names) if (match := CHECKPOINT.fullmatch(name))]
        pruned = [name for name, match in gone if f"{match['run']}config.json" in names]
        for name in sorted(pruned, key=lambda name: not name.endswith(CONTENTS)):
            self._note(name, None)
            self._bucket.remove(name)
            self._stamps.pop(name, None)
        settled: dict[str, list[str | None]] = {name: values[-1:] for name, values in self._sent.items() if values[-1] is not None}
        if settled != self._sent:
            self._sent = settled
            write_json(self.folder.parent / "sent.json", settled)
        return True

    def _note(self, name: str, digest: str | None) -> None:
        """Records a change before it is made in the bucket, so that a run that is killed then still recognises the bucket."""
        self._sent[name] = [*self._sent.get(name, [None])[-1:], digest]
        write_json(self.folder.parent / "sent.json", self._sent)


def _follow(bucket: Bucket, folder: Path, there: dict[str, str], keep: bool = False) -> None:
    """Makes a folder equal to ``there`` (objects and their digests). With ``keep``, only fetches missing files and changes no others."""
    here = {name: _md5(folder / name) for name in _files(folder)}
    if not keep:
        for name in here.keys() - there.keys():
            (folder / name).unlink()
        for path in sorted(folder.rglob("*"), reverse=True):
            if path.is_dir() and not any(path.iterdir()):
                path.rmdir()
    wanted = [name for name in there if name not in here or (not keep and here[name] != there[name])]
    folder.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: bucket.get(name, folder / name), wanted))


def _files(folder: Path) -> list[str]:
    """Names of the files of a folder, without temporary ones."""
    found: list[Path] = []
    for place, folders, names in os.walk(folder):  # os.walk skips what disappears meanwhile
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [path for name in names if not is_unfinished(path := Path(place, name))]
    return [path.relative_to(folder).as_posix() for path in found]


def _is_last(name: str) -> bool:
    """Whether a file belongs to a checkpoint to resume from."""
    return (match := CHECKPOINT.fullmatch(name)) is not None and match["kind"] == "last"


def _in_order(names: Iterable[str]) -> list[str]:
    """Names in the order in which they must reach the bucket: config.json, other files, best checkpoints, then the last checkpoints, which
    need those; in each checkpoint the list of digests comes last."""

    def key(name: str) -> tuple[int, int, bool, str]:
        if match := CHECKPOINT.fullmatch(name):
            # The newest first: it is kept longest, and may take long to send.
            return (2 if match["kind"] == "best" else 3, -int(match["step"]), name.endswith(f"/{CONTENTS}"), name)
        return (0 if name.rpartition("/")[2] == "config.json" else 1, 0, False, name)

    return sorted(names, key=key)


def _stamp(path: Path) -> tuple[int, int, int]:
    """Size, time of change and inode of a file: they differ after every change."""
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns, stat.st_ino


def _md5(content: bytes | Path) -> str:
    """MD5 in the form that Google Cloud Storage uses."""
    if isinstance(content, bytes):
        return base64.b64encode(hashlib.md5(content).digest()).decode()
    with content.open("rb") as file:
        return base64.b64encode(hashlib.file_digest(file, "md5").digest()).decode()
