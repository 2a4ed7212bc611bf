"""Several processes, joined on loopback, train as one process does with the same global batch.

Bit for bit the same: batches, random picks, and what process 0 alone does with the same parameters. Sums over devices are not: gloo adds
in another order than the devices of one process, so gradients agree to float32 rounding, and what follows from them to a little more.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import jax
import numpy as np
import pytest

from experiments.cli import main
from qrag_jax.train import hosts
from qrag_jax.types import Share
from tests.conftest import ROOT
from tests.support.host_gradients import CONFIG, batches, gradients
from tests.support.runs import assert_same_records, records

SMALL = (
    *("--task", "qa1", "--steps", "20", "--data.chunks", "16", "--data.shared-noise", "8", "--model.layers", "1", "--model.width", "32"),
    *("--model.heads", "2", "--model.mlp-width", "64", "--model.vocab-size", "600", "--model.max-positions", "64", "--optim.batch", "8"),
    *("--train.log-every", "5", "--train.eval-every", "10", "--train.checkpoint-every", "10", "--train.eval-episodes", "8"),
    *("--rl.budget", "2", "--eval.budget", "2", "--eval-tokens", "1k", "--eval-episodes", "8"),
)


@contextmanager
def processes(*commands: tuple[str, ...]) -> Iterator[list[subprocess.Popen[str]]]:
    """``python COMMAND`` for each, in processes that know of each other, on four simulated devices in all."""
    count = len(commands)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    common = {
        **os.environ,
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={4 // count}",
        "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".jax_cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    started = []
    for number, words in enumerate(commands):
        several = dict(zip(hosts.VARIABLES, (address, str(count), str(number)), strict=True)) if count > 1 else {}
        options = {"cwd": ROOT, "env": {**common, **several}, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        started.append(subprocess.Popen([sys.executable, *words], **options))
    try:
        yield started
    finally:
        for process in started:
            process.kill()
            process.wait()


def finish(started: list[subprocess.Popen[str]], code: int = 0) -> list[str]:
    outputs = [process.communicate(timeout=400)[0] for process in started]
    assert [process.returncode for process in started] == [code] * len(started), "\n".join(outputs)
    return outputs


def train(run_dir: Path, *words: str) -> tuple[str, ...]:
    return ("-m", "experiments.babilong", *SMALL, "--run-dir", str(run_dir), *words)


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A run of two processes from beginning to end: its folder, and what each process said."""
    folder = tmp_path_factory.mktemp("two")
    with processes(train(folder / "run"), train(folder / "unused")) as started:
        return folder / "run", finish(started)


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


@pytest.fixture(scope="module")
def expected_gradients() -> dict[str, np.ndarray]:
    """Those of one process with four devices, which tests/train/test_devices.py compares with one device."""
    return gradients("shard_map", tuple(jax.devices()[:4]))


@pytest.mark.parametrize("count", [2, 4])
def test_raw_gradients_and_loss_are_those_of_one_process(count, expected_gradients, tmp_path):
    with processes(*[("-m", "tests.support.host_gradients", str(tmp_path / "found.npz"))] * count) as started:
        finish(started)
    found = np.load(tmp_path / "found.npz")
    assert set(found) == set(expected_gradients)
    assert max(np.abs(value).max() for value in expected_gradients.values()) > 1e-4
    for name, value in expected_gradients.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-4, atol=1e-7, err_msg=name)


ENDINGS = """
import errno, os
from experiments.cli import execute
from qrag_jax import hosts
from qrag_jax.rundir.log import CannotWrite, NotFinite, Preempted

def failing():
    raise error

hosts.start()
for error in (ValueError("v"), Preempted("p"), CannotWrite("c"), NotFinite("n")):
    print("exit", execute(lambda: hosts.from_leader(failing)))
error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "file")
try:
    hosts.from_leader(failing)
except Exception as told:
    print(type(told).__name__)
"""


def test_what_ends_the_first_process_ends_all_with_its_exit_code():
    with processes(*[("-c", ENDINGS)] * 2) as started:
        outputs = [[line for line in output.splitlines() if line.startswith(("exit", "OSError", "Cannot"))] for output in finish(started)]
    codes = ["exit 64", "exit 75", "exit 74", "exit 70"]
    assert outputs == [[*codes, "OSError"], [*codes, "CannotWrite"]]


def test_the_first_process_leads(two_processes):
    run_dir, (first, second) = two_processes
    assert (run_dir / "export" / "qrag.json").exists()
    assert not (run_dir.parent / "unused").exists()  # each was given a folder of its own
    assert "results are in" in first
    assert "train qa1" in first
    assert "results are in" not in second
    assert "train qa1" not in second


def test_sigterm_on_one_process_stops_all_and_one_process_goes_on_to_the_same_end(two_processes, tmp_path):
    # What one process does from there on equals what two do, so this compares their numbers too.
    run_dir = tmp_path / "run"
    with processes(train(run_dir), train(run_dir)) as started:
        log = run_dir / "metrics.jsonl"
        while not log.exists() or log.read_text().count("\n") < 2:  # validation, five updates
            assert all(process.poll() is None for process in started), finish(started)
            time.sleep(0.02)
        started[1].send_signal(signal.SIGTERM)
        stopped = [output.split("preempted: ")[1] for output in finish(started, 75)]
    saved = max(int(path.name) for path in (run_dir / "checkpoints" / "last").glob("[0-9]*"))
    assert all(f"saved at update {saved}; run the same command again" in text for text in stopped)
    assert saved < 20
    with processes(train(run_dir)) as started:
        assert f"at update {saved} of 20" in finish(started)[0]
    assert_same_records(records(run_dir), records(two_processes[0]))
    rows = [json.loads((folder / "results.json").read_text())["rows"][0] for folder in (run_dir, two_processes[0])]
    assert rows[0]["fact_em"] == rows[1]["fact_em"]


def test_nan_stops_all_and_the_first_process_leaves_the_update(tmp_path):
    command = train(tmp_path / "run", "--optim.learning-rate", "1e30")
    with processes(command, command) as started:
        for output in finish(started, 70):
            assert "error: update " in output
            assert "not a number in " in output
    (path,) = (tmp_path / "run" / "nan").glob("*.npz")
    assert not all(np.isfinite(value).all() for name, value in np.load(path).items() if name.startswith("metrics/"))


def test_processes_that_differ_are_refused(tmp_path):
    with processes(train(tmp_path / "run"), train(tmp_path / "run", "--seed", "1")) as started:
        for output in finish(started, 64):
            assert "error: configuration: process 1 has another one than process 0" in output
    assert not (tmp_path / "run").exists()


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
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("GCE_METADATA_IP", f"127.0.0.1:{server.server_address[1]}")
        assert hosts.tpu_hosts() == count
        server.shutdown()


def test_a_machine_without_metadata_is_one_host(monkeypatch):
    monkeypatch.setenv("TPU_ML_PLATFORM", "JAX")
    for name in ("TPU_SKIP_MDS_QUERY", "TPU_PROCESS_ADDRESSES", "TPU_WORKER_HOSTNAMES", "MEGASCALE_NUM_SLICES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GCE_METADATA_IP", "127.0.0.1:9")
    assert hosts.tpu_hosts() == 1
