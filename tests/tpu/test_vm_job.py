"""tpu/vm_job.sh, run for real in a folder that serves as the TPU VM: runs come back from the bucket whole, and every ending is told."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import time

import yaml

from tests.tpu.world import TPU

# A run as the bucket sees it: two checkpoints, one of them still being written, and a log; says what it found when it started.
RUN = """
import pathlib, sys
runs = pathlib.Path("runs/x")
print(sorted(str(p.relative_to(runs)) for p in runs.rglob("*") if p.is_file()))
for name, text in {"metrics.jsonl": "{}", "checkpoints/last/%s/state/f" % sys.argv[1]: "whole"}.items():
    (runs / name).parent.mkdir(parents=True, exist_ok=True)
    (runs / name).write_text(text)
"""


def start(world, *words, code=RUN, **settings):
    world.call("run.sh", "qrag", "--", sys.executable, "-c", code, *words, RUN_BUCKET="gs://b/r/", **settings)


def test_runs_come_back_from_the_bucket_on_a_new_vm(world):
    world.ready_vm()
    start(world, "100")
    assert world.wait_for_job() == (0, "[]\n")
    bucket = world.folder / "gs" / "b"
    assert (bucket / "r.complete").read_text() == "x/checkpoints/last/100\n"
    assert (bucket / "r/x/checkpoints/last/100/state/f").read_text() == "whole"
    # The VM goes while checkpoint 200 is being sent: the bucket holds a part of it, and the list does not name it.
    (bucket / "r/x/checkpoints/last/200/state").mkdir(parents=True)
    shutil.rmtree(world.home)
    world.ready_vm()
    start(world, "300")
    code, log = world.wait_for_job()
    assert (code, log) == (0, "['checkpoints/last/100/state/f', 'metrics.jsonl']\n")
    assert (bucket / "r.complete").read_text() == "x/checkpoints/last/100\nx/checkpoints/last/300\n"
    # A checkpoint that the run has since removed goes from the bucket too, after the list has stopped naming it.
    shutil.rmtree(world.home / "qrag/runs/x/checkpoints/last/100")
    start(world, "400")
    assert world.wait_for_job()[0] == 0
    assert (bucket / "r.complete").read_text() == "x/checkpoints/last/300\nx/checkpoints/last/400\n"
    assert not (bucket / "r/x/checkpoints/last/100").exists()
    order = [" ".join(call[1:3]) for call in world.calls() if call[0] == "storage"][-3:]
    assert [word.split()[0] for word in order] == ["rsync", "cp", "rm"]


def test_a_bucket_that_cannot_be_read_is_not_an_empty_one(world):
    world.ready_vm()
    (world.folder / "gs.broken").touch()
    start(world, "100")
    code, log = world.wait_for_job()
    assert code == 75
    assert "403 access denied" in log
    assert not (world.home / "qrag/runs").exists()


def test_two_sets_of_runs_are_not_mixed(world):
    world.ready_vm()
    start(world, "100")
    world.wait_for_job()
    world.call("run.sh", "qrag", "--", "true", RUN_BUCKET="gs://b/other")
    assert world.wait_for_job()[0] == 64
    (world.home / "qrag/bucket").unlink()
    start(world, "200")
    code, log = world.wait_for_job()
    assert code == 64
    assert "both hold runs" in log


def test_results_that_could_not_be_sent_are_no_success(world):
    world.ready_vm()
    world.real_sleep = False
    (world.folder / "gs.full").touch()
    start(world, "100")
    code, log = world.wait_for_job()
    assert code == 75
    assert "they are on this VM alone" in log


def test_only_worker_0_sends(world):
    world.ready_vm()
    start(world, "100", STUB_WORKER="1")
    assert world.wait_for_job()[0] == 0
    assert world.count("storage rsync") == 0


def test_a_preempted_vm_saves_and_sends(world):
    world.ready_vm()
    code = """
import pathlib, signal, sys, time
def save(*_):
    pathlib.Path("runs/x/checkpoints/last/7").mkdir(parents=True)
    pathlib.Path("runs/x/checkpoints/last/7/f").write_text("saved")
    sys.exit(75)
signal.signal(signal.SIGTERM, save)
pathlib.Path("runs/started").touch()
time.sleep(60)
"""
    start(world, code=code, SYNC_SECONDS="1")
    for _ in range(300):
        if (world.folder / "gs/b/r/started").exists() and (world.folder / "gs/b/r.complete").exists():  # sent while it runs
            break
        time.sleep(0.1)
    assert (world.folder / "gs/b/r.complete").read_text() == ""
    subprocess.run(["kill", (world.home / "qrag/job/pid").read_text()], check=True)
    assert world.wait_for_job()[0] == 75
    assert (world.folder / "gs/b/r/x/checkpoints/last/7/f").read_text() == "saved"
    assert (world.folder / "gs/b/r.complete").read_text() == "x/checkpoints/last/7\n"


def test_skypilot_runs_the_same_script_and_tries_the_same_codes_again(world):
    task = yaml.safe_load((TPU / "skypilot.yaml").read_text())
    (again,) = re.findall(r"NONE \| LOST \| ([0-9 |]+)\)", (TPU / "babysit.sh").read_text())
    assert task["resources"]["job_recovery"]["recover_on_exit_codes"] == [int(code) for code in again.split(" | ")]
    assert subprocess.run(["bash", "-n", "-c", task["setup"]]).returncode == 0
    world.ready_vm()
    settings = {**task["envs"], "HOME": str(world.home), "RUN_BUCKET": "gs://b/r", "COMMAND": "echo 'a  b' >runs/said; exit 75"}
    done = subprocess.run(["bash", "-c", task["run"]], env=world.environment(**settings), timeout=60)
    assert done.returncode == 75
    assert (world.folder / "gs/b/r/said").read_text() == "a  b\n"


def test_a_job_that_vanished_is_lost(world):
    world.ready_vm()
    world.call("run.sh", "qrag", "--", "true")
    world.wait_for_job()
    job = world.home / "qrag" / "job"
    (job / "exit").unlink()
    (job / "boot").write_text("another boot")  # the machine started again: the process id means nothing now
    assert "qrag-job LOST" in world.call("status.sh", "qrag")
