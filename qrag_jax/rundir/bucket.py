"""Runs in a bucket: gs://BUCKET/NAME is worked on in a folder here, and a thread keeps the bucket like it.

The folder may be a run directory, or hold several of them: seeds, ablations, the trials of a sweep.
A bucket has no renames, so order does what they do on a disk. A checkpoint is sent when it is whole here, after the files that it needs and
with its list of digests last, and loses that first when it is removed: whenever a process dies, what has a list in the bucket is whole.
"""

from __future__ import annotations

import base64
import hashlib
import logging
import os
import re
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
PATIENCE = 600.0  # seconds of failing before a run is stopped
SNAPSHOT = 2**25  # bytes: files up to here may grow while they are sent
CHECKPOINT = re.compile(r"((?P<run>.+/|)checkpoints/(?P<kind>last|best)/(?P<step>\d+))/.+")  # a file of one
PROBE = ".write-access"


def is_url(path: str | Path) -> bool:
    return "://" in str(path)


def home(url: str) -> Path:
    """Where a URL is kept on this machine: ``run`` is what is worked on, ``read`` what was only fetched."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "qrag-jax" / "buckets" / urllib.parse.quote(url.removeprefix("gs://").rstrip("/"), safe="")


class Bucket:
    """The objects below a URL, by their names there. Raises ValueError on a bad URL, and where gcsfs is not installed."""

    def __init__(self, url: str) -> None:
        parts = url.rstrip("/").split("/")[3:]
        if not re.fullmatch(r"gs://[a-z0-9][a-z0-9._-]+[a-z0-9](/[\w.=+-]+)+/?", url) or {".", ".."} & set(parts):
            raise ValueError(f"{url!r}: must be gs://BUCKET/NAME; NAME has letters, digits, '.', '_', '=', '+', '-' and '/'")
        try:
            from gcsfs.core import GCSFileSystem
        except ImportError:
            raise ValueError(f"{url}: buckets need gcsfs: pip install 'qrag-jax[gcs]'") from None
        logging.getLogger("gcsfs").setLevel(logging.CRITICAL + 1)  # it logs the traces of errors that it also raises
        self._root = url.removeprefix("gs://").rstrip("/")
        token = "anon" if os.environ.get("STORAGE_EMULATOR_HOST") else None  # a server that stands in for Google's asks nobody who it is
        self._files = GCSFileSystem(token=token, use_listings_cache=False, skip_instance_cache=True)

    def digests(self) -> dict[str, str]:
        """Name -> MD5 of every object, or what else tells its versions apart."""
        found = self._files.find(self._root, detail=True).items()
        names = {path.removeprefix(f"{self._root}/"): entry for path, entry in found if path.startswith(f"{self._root}/")}
        return {name: entry.get("md5Hash") or entry["etag"] for name, entry in names.items() if not name.endswith(("/", PROBE))}

    def get(self, name: str, path: Path) -> None:
        with whole_file(path) as temporary:
            self._files.get_file(f"{self._root}/{name}", str(temporary))

    def put(self, name: str, content: bytes | Path) -> None:
        """Sends bytes, or a file that nobody changes."""
        if isinstance(content, bytes):
            # One chunk: in the multipart request that gcsfs makes otherwise, a last carriage return is lost, and its boundary cuts.
            self._files.pipe_file(f"{self._root}/{name}", content, consistency="md5", chunksize=max(len(content), 1))
        else:
            self._files.put_file(str(content), f"{self._root}/{name}", consistency="md5")

    def remove(self, name: str) -> None:
        try:
            self._files.rm_file(f"{self._root}/{name}")
        except FileNotFoundError:  # by whom ever
            self.digests()  # raises it again if the bucket itself is gone


@contextmanager
def opening(url: str) -> Iterator[None]:
    """Raises ValueError where there is no bucket or no right to it, Preempted where it is out of reach, CannotWrite on a full disk here."""
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
    """A copy on this machine of the export below a URL, of a run or by itself. Raises ValueError when there is none."""
    bucket, folder = Bucket(url), home(url) / "read"
    with opening(url):
        found = bucket.digests()
        inside = "export/" if "export/qrag.json" in found else ""
        if f"{inside}qrag.json" not in found:
            raise ValueError(f"{url}: no export of a retriever there (no qrag.json); it comes at the end of a run")
        _follow(bucket, folder, {name: digest for name, digest in found.items() if name.startswith(inside)})
    return folder


class Mirror:
    """The folder on this machine, and the thread that keeps the bucket like it; a context manager that ends when all is sent.

    The bucket is what counts. The folder goes on where the bucket is as this machine left it, so that what could not be sent is not lost;
    otherwise it is made like the bucket. ``sent.json`` beside the folder says how that was. Raises what :func:`opening` raises.
    """

    def __init__(self, url: str) -> None:
        self._url, self.folder = url.rstrip("/"), home(url) / "run"
        self._bucket = Bucket(url)
        self._sent: dict[str, list[str | None]] = {}  # name -> what the bucket may have of it; two while it is under way
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
            f"{self._url}: cannot be written to ({reason(self._failure)}); nothing is lost: {self.folder} has it all, and the same command "
            "on this machine sends it and goes on"
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
                f"{self._url}: is empty, but held the run of {self.folder}; remove that folder to start over, or bring the run back "
                f"(gcloud storage rsync --recursive {self.folder} {self._url})"
            )
        halves = {match[1] for name in there.keys() - whole if (match := CHECKPOINT.fullmatch(name))}
        for half in sorted(halves):
            if not (ours and (self.folder / half).exists()):
                say(f"skipping {self._url}/{half}: it was not sent whole")
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
            except Exception as error:  # gcsfs raises many kinds; whatever it is, the run goes on for a while
                if failing is None:
                    failing = time.monotonic()
                    say(f"{self._url}: cannot be written to ({reason(error)}); trying again for {PATIENCE:.0f} s")
                if time.monotonic() - failing >= PATIENCE:
                    self._failure = error
                    if not closing:  # the run saves and leaves, as when it is preempted
                        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)
                time.sleep(EVERY)
            else:
                failing = None
                if closing:
                    return

    def _send(self) -> bool:
        """Makes the bucket like the folder; False when a file went away meanwhile, and the folder must be looked at again."""
        last = [name for name in _files(self.folder) if _is_last(name)]
        # Looked at later: what each of those needs.
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
        # Where the whole run has gone from here, nothing is removed there.
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
        """Written before the bucket changes, so that a killed run finds it as it was left."""
        self._sent[name] = [*self._sent.get(name, [None])[-1:], digest]
        write_json(self.folder.parent / "sent.json", self._sent)


def _follow(bucket: Bucket, folder: Path, there: dict[str, str], keep: bool = False) -> None:
    """Makes a folder like ``there``, objects with their digests. ``keep``: what it has is left as it is, and only what it lacks comes."""
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
    """Names of the files of a folder that are not being written aside."""
    found: list[Path] = []
    for place, folders, names in os.walk(folder):  # which passes over what goes away meanwhile
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [path for name in names if not is_unfinished(path := Path(place, name))]
    return [path.relative_to(folder).as_posix() for path in found]


def _is_last(name: str) -> bool:
    """Whether a file is one of a checkpoint to go on from."""
    return (match := CHECKPOINT.fullmatch(name)) is not None and match["kind"] == "last"


def _in_order(names: Iterable[str]) -> list[str]:
    """As they must reach the bucket: what makes it a run, other files, best checkpoints, those that name them; lists of digests last."""

    def key(name: str) -> tuple[int, int, bool, str]:
        if match := CHECKPOINT.fullmatch(name):
            # The newest first: it stays longest, and may take long to send.
            return (2 if match["kind"] == "best" else 3, -int(match["step"]), name.endswith(f"/{CONTENTS}"), name)
        return (0 if name.rpartition("/")[2] == "config.json" else 1, 0, False, name)

    return sorted(names, key=key)


def _stamp(path: Path) -> tuple[int, int, int]:
    """Another one after every change of a file."""
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns, stat.st_ino


def _md5(content: bytes | Path) -> str:
    """As Google Cloud Storage writes it."""
    if isinstance(content, bytes):
        return base64.b64encode(hashlib.md5(content).digest()).decode()
    with content.open("rb") as file:
        return base64.b64encode(hashlib.file_digest(file, "md5").digest()).decode()
