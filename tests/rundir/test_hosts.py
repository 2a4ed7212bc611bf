"""How the processes of a run start: what the environment says, what is refused, and how a wait for the others ends."""

from __future__ import annotations

import signal
import threading
from contextlib import nullcontext
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

import pytest

from experiments.cli import main
from qrag_jax.rundir import hosts
from qrag_jax.rundir.ending import execute
from qrag_jax.rundir.log import Interrupted, Unreachable


def test_a_second_process_with_a_number_is_refused(monkeypatch):
    """jax would end both with a stack trace."""
    monkeypatch.setattr(hosts, "_claimed", [])
    hosts._claim_number("localhost:1", 2, 1)
    hosts._claim_number("localhost:1", 2, 0)
    hosts._claim_number("localhost:2", 2, 1)
    with pytest.raises(ValueError, match="JAX_PROCESS_ID = 1: another process of this run on this machine has this number"):
        hosts._claim_number("localhost:1", 2, 1)
    for lock in hosts._claimed:
        lock.release()
    hosts._claim_number("localhost:1", 2, 1)
    hosts._claimed[-1].release()


def test_waiting_for_others_ends_in_one_line(monkeypatch, capsys):
    """At its time, and by a signal at once; an error of joining is raised as it is."""
    monkeypatch.setattr(hosts, "SOON", 0.01)
    monkeypatch.setattr(hosts, "START", 0.2)
    never = threading.Event()
    with pytest.raises(Unreachable, match=r"the other processes of this run did not come in 0\.2 s; start all of them with"):
        hosts._wait_for(never.wait)
    assert "waiting for the other processes of this run, up to 0.2 s" in capsys.readouterr().out
    monkeypatch.setattr(hosts, "START", 60)
    stopper = threading.Timer(0.3, signal.pthread_kill, (threading.main_thread().ident, signal.SIGINT))
    stopper.start()
    assert execute(lambda: hosts._wait_for(never.wait)) == 130
    never.set()

    def fail() -> None:
        raise RuntimeError("UNAVAILABLE")

    with pytest.raises(RuntimeError, match="UNAVAILABLE"):
        hosts._wait_for(fail)
    hosts._wait_for(lambda: None)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((None, "2", "0"), "JAX_COORDINATOR_ADDRESS: not set, but"),
        (("localhost:1", None, None), "JAX_NUM_PROCESSES, JAX_PROCESS_ID: not set, but"),
        (("localhost", "2", "0"), "JAX_COORDINATOR_ADDRESS = 'localhost': must be HOST:PORT"),
        (("localhost:1", "two", "0"), "JAX_NUM_PROCESSES = 'two': must be a whole number"),
        (("localhost:1", "2", "2"), "JAX_PROCESS_ID = '2': must be in 0..1"),
        (("localhost:1", "2", "-1"), "JAX_PROCESS_ID = '-1': must be in 0..1"),
    ],
)
def test_half_a_start_is_refused(given, message, monkeypatch, capsys, tmp_path):
    for name, value in zip(hosts.VARIABLES, given, strict=True):
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)
    assert main("babilong", "", ["--run-dir", str(tmp_path / "run")]) == 64
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(("count", "refused"), [("2", True), ("1", False), (None, False)])
def test_a_command_of_one_process_is_refused_in_several(count, refused, monkeypatch):
    for name, value in zip(hosts.VARIABLES, ("localhost:1", count, "0"), strict=True):
        monkeypatch.delenv(name, raising=False)
        if count is not None:
            monkeypatch.setenv(name, value)
    message = r"qrag serve: runs in one process; run it on one host, without JAX_NUM_PROCESSES"
    with pytest.raises(ValueError, match=message) if refused else nullcontext():
        hosts.alone("qrag serve")


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (Unreachable("the reader"), "Unreachable"),
        (Interrupted("Ctrl-C"), "Preempted"),
        (PermissionError(13, "denied", "docs"), "ValueError"),
        (OSError(28, "full", "index"), "CannotWrite"),
        (KeyError("a fault"), "KeyError"),
    ],
)
def test_what_ends_one_process_is_told_to_the_others(error, kind):
    assert hosts.kind_of(error) == kind
    assert type(hosts.told(kind, "text", 1)) is hosts.ENDS.get(kind, RuntimeError)


class Metadata(BaseHTTPRequestHandler):
    """Compute Engine's metadata server, for a machine with the attributes of ``known``."""

    known: ClassVar[dict[str, str]] = {}

    def do_GET(self) -> None:
        text = self.known.get(self.path.rpartition("/")[2])
        self.send_response(200 if text and self.headers["Metadata-Flavor"] == "Google" else 404)
        self.end_headers()
        self.wfile.write((text or "").encode())

    def log_message(self, *args: Any) -> None:
        pass


@pytest.mark.parametrize(
    ("environment", "attributes", "count"),
    [
        ({}, {"worker-network-endpoints": "a,b"}, 1),  # no TPU here: nothing is asked
        ({"TPU_ML_PLATFORM": "JAX"}, {"worker-network-endpoints": "unknown:unknown:10.0.0.2"}, 1),
        ({"TPU_ML_PLATFORM": "JAX"}, {"worker-network-endpoints": "x:0:10.0.0.2,x:1:10.0.0.3"}, 2),
        ({"TPU_ML_PLATFORM": "JAX"}, {}, 1),
        ({"TPU_ML_PLATFORM": "JAX", "TPU_SKIP_MDS_QUERY": "1"}, {"worker-network-endpoints": "a,b"}, 1),
        ({"TPU_ML_PLATFORM": "JAX", "TPU_WORKER_HOSTNAMES": "localhost"}, {}, 1),
        ({"TPU_ML_PLATFORM": "JAX", "TPU_WORKER_HOSTNAMES": "a,b,c,d"}, {}, 4),
        ({"TPU_ML_PLATFORM": "JAX", "TPU_WORKER_HOSTNAMES": "a,b", "MEGASCALE_NUM_SLICES": "2"}, {}, 4),
    ],
)
def test_hosts_of_a_tpu_are_counted(environment, attributes, count, monkeypatch):
    for name in ("TPU_ML_PLATFORM", "TPU_SKIP_MDS_QUERY", "TPU_PROCESS_ADDRESSES", "TPU_WORKER_HOSTNAMES", "MEGASCALE_NUM_SLICES"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(Metadata, "known", attributes)
    with ThreadingHTTPServer(("127.0.0.1", 0), Metadata) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        monkeypatch.setenv("GCE_METADATA_IP", f"127.0.0.1:{server.server_address[1]}")
        assert hosts.tpu_hosts() == count
        server.shutdown()


def test_a_machine_without_metadata_is_one_host(monkeypatch):
    monkeypatch.setenv("TPU_ML_PLATFORM", "JAX")
    for name in ("TPU_SKIP_MDS_QUERY", "TPU_PROCESS_ADDRESSES", "TPU_WORKER_HOSTNAMES", "MEGASCALE_NUM_SLICES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GCE_METADATA_IP", "127.0.0.1:9")
    assert hosts.tpu_hosts() == 1
