"""Several processes, joined on loopback, train as one process does with the same global batch.

Bit for bit the same: batches, random picks, and what process 0 alone does with the same parameters. Sums over devices are not: gloo adds
in another order than the devices of one process, so gradients agree to float32 rounding, and what follows from them to a little more.
"""

from __future__ import annotations

import json
import shutil
import signal
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import jax
import numpy as np
import pytest

from experiments.cli import main
from qrag_jax.rundir.checkpoint import saved_steps
from qrag_jax.rundir.ending import execute
from qrag_jax.rundir.log import Unreachable
from qrag_jax.train import hosts
from qrag_jax.types import Share
from tests.support.pair import CONFIG, TRAIN, batches, gradients, scene
from tests.support.processes import finish_all, processes, wait_for_all
from tests.support.runs import assert_same_records, here, records


@pytest.mark.parametrize("count", [2, 4])
def test_shares_make_up_the_batch_of_one_process(count):
    whole = batches(CONFIG, Share(devices=4))
    parts = [batches(CONFIG, Share(index, count, 4)) for index in range(count)]
    for step in (0, 7):
        together = jax.tree.map(lambda *rows: np.concatenate(rows), *(part[step] for part in parts))
        jax.tree.map(np.testing.assert_array_equal, together, whole[step])


@pytest.mark.parametrize("count", [3, 4])
def test_a_pool_is_dealt_over_any_number_of_devices(count):
    one, dealt = batches(CONFIG)[0], batches(CONFIG, Share(devices=count))[0]
    pool = dealt.chunk_pool_ids.reshape(count, -1, dealt.chunk_pool_ids.shape[1])
    texts = (pool >= 0).any(-1).sum(1)
    assert texts.sum() == (one.chunk_pool_ids >= 0).any(-1).sum()
    assert texts.max() - texts.min() <= 1
    np.testing.assert_array_equal(dealt.chunk_pool_ids[dealt.chunk_index], one.chunk_pool_ids[one.chunk_index])


def assert_gradients_of_one_process(path: Path) -> None:
    """Those of four devices in one process, which tests/train/test_devices.py compares with one device."""
    expected = gradients("shard_map", tuple(jax.devices()[:4]))
    found = np.load(path)
    assert set(found) == set(expected)
    assert max(np.abs(value).max() for value in expected.values()) > 1e-4
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-4, atol=1e-7, err_msg=name)


@pytest.mark.processes
def test_raw_gradients_and_loss_are_those_of_one_process(pair):
    assert_gradients_of_one_process(pair / "gradients.npz")


@pytest.mark.processes
def test_what_ends_the_first_process_ends_all_with_its_exit_code(pair):
    _, said = scene(pair, "endings")
    endings = [[line for line in text.splitlines() if line.isdecimal() or line in ("OSError", "CannotWrite")] for text in said]
    codes = ["64", "75", "74", "70"]
    assert endings == [[*codes, "OSError"], [*codes, "CannotWrite"]]


@pytest.mark.processes
def test_the_first_process_leads(pair):
    codes, (first, second) = scene(pair, "whole")
    assert codes == [0, 0]
    assert (pair / "whole" / "export" / "qrag.json").exists()
    assert not (pair / "unused").exists()  # each was given a folder of its own
    assert "results are in" in first
    assert "train qa1" in first
    assert "results are in" not in second
    assert "train qa1" not in second


@pytest.mark.processes
def test_sigterm_on_one_process_stops_all_and_one_process_resumes_to_the_same_end(pair, tmp_path, capsys):
    # What one process does from there on equals what two do, so this compares their numbers too.
    codes, said = scene(pair, "stopped")
    assert codes == [75, 75]
    run_dir = shutil.copytree(pair / "stopped", tmp_path / "run")
    saved = saved_steps(run_dir)[0]
    assert all(f"saved at update {saved}; run the same command again" in text.split("preempted: ")[1] for text in said)
    assert 7 <= saved < 20
    assert here(run_dir, small=TRAIN) == 0
    assert f"at update {saved} of 20" in capsys.readouterr().out
    assert_same_end(run_dir, pair / "whole")


def assert_same_end(found: Path, expected: Path) -> None:
    assert_same_records(records(found), records(expected))
    rows = [json.loads((folder / "results.json").read_text())["rows"][0] for folder in (found, expected)]
    assert rows[0]["fact_em"] == rows[1]["fact_em"]


@pytest.mark.slow
@pytest.mark.quick
@pytest.mark.processes
def test_a_real_sigterm_stops_two_processes_and_one_resumes_to_the_same_end(tmp_path, capsys):
    run_dir, log = tmp_path / "run", tmp_path / "run" / "metrics.jsonl"
    train = ("-m", "tests.support.runs", *TRAIN, "--run-dir", str(run_dir))
    with processes(train, train) as started:
        wait_for_all(lambda: log.exists() and log.read_text().count("\n") >= 2, started)  # validation, five updates
        started[1].send_signal(signal.SIGTERM)
        stopped = [output.split("preempted: ")[1] for output in finish_all(started, 75)]
    saved = saved_steps(run_dir)[0]
    assert all(f"saved at update {saved}; run the same command again" in text for text in stopped)
    assert saved < 20
    assert here(run_dir, small=TRAIN) == 0
    assert f"at update {saved} of 20" in capsys.readouterr().out
    assert here(tmp_path / "whole", small=TRAIN) == 0
    assert_same_end(run_dir, tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.quick
@pytest.mark.processes
def test_nan_stops_all_and_the_first_process_leaves_the_update(tmp_path):
    with processes(*[("-m", "tests.support.pair", str(tmp_path), "nan")] * 2) as started:
        finish_all(started)
    codes, said = scene(tmp_path, "nan")
    assert codes == [70, 70]
    for text in said:
        assert "error: update " in text
        assert "gave a number that is not finite: " in text
    (path,) = (tmp_path / "nan" / "nan").glob("*.npz")
    assert not all(np.isfinite(value).all() for name, value in np.load(path).items() if name.startswith("metrics/"))


@pytest.mark.processes
def test_processes_that_differ_are_refused(pair):
    codes, said = scene(pair, "different")
    assert codes == [64, 64]
    assert all("error: configuration: differs between process 1 and process 0" in text for text in said)
    assert not (pair / "different").exists()


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
