"""Several processes, joined on loopback, train as one process does with the same global batch.

Bit for bit the same: batches, random picks, and what process 0 alone does with the same parameters. Sums over devices are not: gloo adds
in another order than the devices of one process, so gradients agree to float32 rounding, and what follows from them to a little more.
"""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path

import jax
import numpy as np
import pytest

from qrag_jax.rundir.checkpoint import saved_steps
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
