"""The processes of a command, one per host: how they start, agree, and follow the first.

Process 0 is the leader. In a training, it alone reads and writes the run directory, prints, validates and evaluates; the others only train,
and receive its results. So the processes need no common folder. With one process, each function here just makes the call. All processes
must call these functions in the same order, except :func:`is_leader`.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
import secrets
import tempfile
import threading
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast

import jax
import numpy as np
from filelock import FileLock, Timeout
from jax.experimental import multihost_utils

from qrag_jax.rundir.early import be_patient
from qrag_jax.rundir.files import disk_error, write_text
from qrag_jax.rundir.log import CannotWrite, NotFinite, Preempted, Unreachable, say, silence
from qrag_jax.rundir.peers import Peers
from qrag_jax.rundir.stop import acknowledge

T = TypeVar("T")
ENDS: dict[str, type[BaseException]] = {kind.__name__: kind for kind in (ValueError, Preempted, CannotWrite, NotFinite, Unreachable)}
"""Errors with an exit code of their own. If one process ends with such an error, all do."""
VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
START = 300  # seconds to wait for the other processes at the start
LEAVE = 60  # and at the end: all reach it together, so a longer wait means that one has failed
PATIENCE = 7 * 24 * 3600  # seconds that the others wait while process 0 evaluates
MARK = ".common.tmp"  # an unfinished file (rundir/files.py), so nothing takes it for the content of a folder
SOON = 5  # seconds after which the wait at the start is said
_barriers = itertools.count()
_claimed: list[FileLock] = []


@dataclass(frozen=True)
class Place:
    """Process ``number`` of ``count`` that do one thing together. ``run``: a text that is the same on all of them, and on no others."""

    number: int = 0
    count: int = 1
    run: str = ""


ALONE = Place()


def start() -> None:
    """Joins the other processes of this run, if there are any. Call it before anything uses a device.

    There are others if ``VARIABLES`` are set (jax's own names; JAX_LOCAL_DEVICE_IDS picks this process's GPUs), or if this machine is
    one of several hosts of a Cloud TPU. Raises ValueError when the variables are incomplete, wrong, or those of
    another process on this machine; Unreachable when the others do not come.
    """
    given = _variables()
    if jax.distributed.is_initialized() or (given[1] if given else tpu_hosts()) == 1:
        return
    # If this stayed on, jax would handle SIGTERM itself; but the training loop has its own way to agree on when to stop.
    jax.config.update("jax_enable_preemption_service", False)
    # When its own time is over, jax ends the process with a stack trace; so it gets more time than it needs.
    timeouts: dict[str, Any] = {"initialization_timeout": 2 * START, "shutdown_timeout_seconds": LEAVE}
    if given:
        _claim_number(*given)
        _wait_for(partial(jax.distributed.initialize, *given, cluster_detection_method="deactivate", **timeouts))
    else:
        _wait_for(partial(jax.distributed.initialize, **timeouts))
    be_patient(2 * LEAVE)
    if not is_leader():
        silence()


def _wait_for(join: Callable[[], None]) -> None:
    """Calls ``join`` in a thread, so that Ctrl-C and SIGTERM end the wait for the others. Raises Unreachable after ``START`` seconds."""
    failures: list[BaseException] = []

    def run() -> None:
        try:
            join()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(SOON)
    if thread.is_alive():
        say(f"waiting for the other processes of this run, up to {START} s")
        thread.join(START)
    if thread.is_alive():
        raise Unreachable(
            f"the other processes of this run did not come in {START} s; start all of them with the same JAX_COORDINATOR_ADDRESS and "
            "JAX_NUM_PROCESSES, and each with a JAX_PROCESS_ID of its own"
        )
    for failure in failures:
        raise failure


def _claim_number(address: str, count: int, number: int) -> None:
    """Raises ValueError if another process on this machine has joined the same run with the same number: jax would end both."""
    run = hashlib.sha256(f"{address} {count}".encode()).hexdigest()[:16]
    lock = FileLock(Path(tempfile.gettempdir(), f"qrag-jax-{run}-{number}.lock"), timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise ValueError(
            f"JAX_PROCESS_ID = {number}: another process of this run on this machine has this number; give each a number of its own"
        ) from None
    except OSError:
        return  # without a place for locks, jax finds out
    _claimed.append(lock)  # the system frees it when the process ends


def _variables() -> tuple[str, int, int] | None:
    """The coordinator's address, the number of processes and this process's number, from the environment; None if they are not set."""
    address, count, number = values = [os.environ.get(name, "") for name in VARIABLES]
    if not any(values):
        return None
    if not all(values):
        missing = ", ".join(name for name, value in zip(VARIABLES, values, strict=True) if not value)
        raise ValueError(f"{missing}: not set, but the other variables of a run in several processes are; set {', '.join(VARIABLES)}")
    if not re.fullmatch(r".+:\d{1,5}", address):
        raise ValueError(f"JAX_COORDINATOR_ADDRESS = {address!r}: must be HOST:PORT of process 0, such as 10.0.0.1:8476")
    if not re.fullmatch(r"[1-9]\d*", count):
        raise ValueError(f"JAX_NUM_PROCESSES = {count!r}: must be a whole number >= 1")
    if not number.isdecimal() or int(number) >= int(count):
        raise ValueError(f"JAX_PROCESS_ID = {number!r}: must be in 0..{int(count) - 1}, different for each process")
    return address, int(count), int(number)


def tpu_hosts() -> int:
    """Number of hosts of the Cloud TPU that this machine belongs to; 1 if there is no TPU, or if it has one host.

    GKE names the hosts in the environment, Compute Engine in its metadata, which are read on TPU VMs only.
    """
    if "TPU_ML_PLATFORM" not in os.environ:  # importing jax sets it on a machine with TPU chips and libtpu
        return 1
    slices = int(os.environ.get("MEGASCALE_NUM_SLICES") or 1)
    names = os.environ.get("TPU_PROCESS_ADDRESSES") or os.environ.get("TPU_WORKER_HOSTNAMES")
    if names is None and "TPU_SKIP_MDS_QUERY" not in os.environ:
        names = _metadata("worker-network-endpoints")
    return slices * len((names or "localhost").split(","))


def _metadata(name: str) -> str | None:
    """An attribute of this virtual machine; None if it has no such attribute or no metadata server."""
    server = os.environ.get("GCE_METADATA_IP", "metadata.google.internal")
    url = f"http://{server}/computeMetadata/v1/instance/attributes/{name}"
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers={"Metadata-Flavor": "Google"}), timeout=10) as answer:
            return cast(bytes, answer.read()).decode()
    except urllib.error.URLError:  # choose_devices still refuses several hosts that have not been started
        return None


def is_multiprocess() -> bool:
    """Whether :func:`start` has joined other processes. Uses no device."""
    return jax.distributed.is_initialized()


def leave() -> Place:
    """Parts from the other processes: from now on, this one neither waits for them nor ends with them. Call it on all of them."""
    if not is_multiprocess():
        return ALONE
    run = from_leader(lambda: uuid.uuid4().hex)
    place = Place(jax.process_index(), jax.process_count(), run)
    jax.distributed.shutdown()
    return place


def alone(command: str) -> None:
    """Raises ValueError if ``VARIABLES`` ask for several processes, which ``command`` cannot use."""
    given = _variables()
    if given is not None and given[1] > 1:
        raise ValueError(f"{command}: runs in one process; run it on one host, without {VARIABLES[1]}")


def is_leader() -> bool:
    """Whether this is process 0. With one process, uses no device."""
    return not is_multiprocess() or jax.process_index() == 0


def run_on_all(make: Callable[[], T]) -> T:
    """Calls ``make`` on every process. If it fails on one, it fails on all: with the same error of ``ENDS``, or else with RuntimeError."""
    if not is_multiprocess():
        return make()
    failure: BaseException | None = None
    try:
        made = make()
    except (Exception, Preempted) as error:
        failure = error
        acknowledge()  # the others must learn of it first
    kind = "" if failure is None else kind_of(failure)
    reports = [json.loads(report) for report in _gather(json.dumps([kind, str(failure)]))]
    if failure is not None:
        raise failure
    for process, (kind, text) in enumerate(reports):
        if kind:
            raise told(kind, text, process)
    return made


def told(kind: str, text: str, process: int) -> BaseException:
    """The error to raise for one of ``process``: of its ``kind`` (:func:`kind_of`), if that has an exit code of its own."""
    return ENDS[kind](text) if kind in ENDS else RuntimeError(f"process {process} failed: {kind}: {text}")


def kind_of(error: BaseException) -> str:
    """The name of the error of ``ENDS`` that ``error`` is, or will be reported as; else the name of its own class."""
    if disk_error(error) is not None:
        return CannotWrite.__name__
    if isinstance(error, OSError) and error.filename is not None:  # a place that cannot be read or written
        return ValueError.__name__
    return next((name for name, kind in ENDS.items() if isinstance(error, kind)), type(error).__name__)


def from_leader(make: Callable[[], T]) -> T:
    """Calls ``make`` on process 0 only, and returns its result on every process (sent as JSON). An error there is raised on all.

    With one process, uses no device.
    """
    made = run_on_all(lambda: make() if is_leader() else None)
    if not is_multiprocess() or jax.process_count() == 1:
        return cast(T, made)
    told = _gather(json.dumps(made))[0]
    return cast(T, made if is_leader() else json.loads(told))


def leader_only(make: Callable[[], T]) -> T:
    """``make()`` on process 0; on the others an object whose methods do nothing and return None. An error of ``make`` is raised on all."""
    return run_on_all(lambda: make() if is_leader() else cast(T, _Absent()))


class _Absent:
    def __enter__(self) -> _Absent:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_, **__: None


def on_any(flag: bool) -> bool:
    """Whether ``flag`` is true on any of the processes."""
    return flag if jax.process_count() == 1 else bool(multihost_utils.process_allgather(np.bool_(flag)).any())


def agree(**texts: str) -> None:
    """Raises ValueError, naming what differs, unless every process has the same texts."""
    found = [json.loads(texts) for texts in _gather(json.dumps(texts))]
    for name in texts:
        others = [process for process, theirs in enumerate(found) if theirs[name] != found[0][name]]
        if others:
            raise ValueError(
                f"{name.replace('_', ' ')}: differs between process {others[0]} and process 0; "
                "start all processes with the same command, code and data"
            )


def peers() -> Peers:
    """All processes of this run."""
    return Peers(jax.process_index(), jax.process_count(), run_on_all, from_leader)


def have_in_common(folder: Path) -> bool:
    """Whether all processes see the same folder, which process 0 has made: each looks for a mark that process 0 leaves there."""
    if not is_multiprocess():
        return True
    mark = folder / MARK
    text = from_leader(lambda: write_text(mark, secrets.token_hex()).read_text())
    try:
        seen = mark.read_text(encoding="utf-8") == text
    except (OSError, UnicodeDecodeError):
        seen = False
    missing = on_any(not seen)
    if is_leader():
        mark.unlink(missing_ok=True)
    return not missing


def barrier() -> None:
    """Waits for all processes, for as long as it takes; collectives of devices would give up after half a minute."""
    if not is_multiprocess():
        return
    import orbax.checkpoint as ocp  # its import takes seconds, which a command without other processes does not need

    ocp.multihost.get_barrier_sync_fn()(key=f"qrag-{next(_barriers)}", timeout_ms=1000 * PATIENCE)


def _gather(text: str) -> list[str]:
    """Every process's text, in order."""
    if jax.process_count() == 1:
        return [text]
    barrier()
    own = np.frombuffer(text.encode(), np.uint8)
    sizes: Any = multihost_utils.process_allgather(np.int32(len(own)))
    room = 2 ** int(np.ceil(np.log2(max(sizes.max(), 256))))  # few shapes, so few compilations
    rows = multihost_utils.process_allgather(np.pad(own, (0, room - len(own))))
    return [bytes(row[:size]).decode() for row, size in zip(rows, sizes, strict=True)]
