"""tpu/vm_job.sh, run for real in a folder that serves as the TPU VM: every ending is told, and SIGTERM reaches the command."""

from __future__ import annotations

import re
import subprocess
import sys
import time

import yaml

from tests.tpu.world import TPU

# Saves when it is asked to stop, as a run does.
RUN = """
import pathlib, signal, sys, time
def save(*_):
    pathlib.Path("saved").touch()
    sys.exit(75)
signal.signal(signal.SIGTERM, save)
pathlib.Path("started").touch()
time.sleep(60)
"""


def test_a_preempted_vm_lets_the_command_save(world):
    world.ready_vm()
    world.call("run.sh", "qrag", "--", sys.executable, "-c", RUN)
    home = world.home / "qrag"
    for _ in range(300):
        if (home / "started").exists():
            break
        time.sleep(0.1)
    subprocess.run(["kill", (home / "job/pid").read_text()], check=True)
    assert world.wait_for_job()[0] == 75
    assert (home / "saved").exists()


def test_a_command_that_fails_tells_how(world):
    world.ready_vm()
    world.call("run.sh", "qrag", "--", "sh", "-c", "echo said; exit 70")
    assert world.wait_for_job() == (70, "said\n")
    assert "qrag-job 70" in world.call("status.sh", "qrag")


def test_runs_that_stay_on_the_vm_are_told(world):
    world.ready_vm()
    world.call("run.sh", "qrag", "--", "true")
    assert "the run directory is only on the VM" in world.said
    world.wait_for_job()
    world.call("run.sh", "qrag", "--", "true", "--run-dir", "gs://b/r")
    assert "the run directory" not in world.said


def test_skypilot_runs_the_same_script_and_tries_the_same_codes_again(world):
    task = yaml.safe_load((TPU / "skypilot.yaml").read_text())
    (again,) = re.findall(r"NONE \| LOST \| ([0-9 |]+)\)", (TPU / "babysit.sh").read_text())
    assert task["resources"]["job_recovery"]["recover_on_exit_codes"] == [int(code) for code in again.split(" | ")]
    assert subprocess.run(["bash", "-n", "-c", task["setup"]]).returncode == 0
    world.ready_vm()
    settings = {**task["envs"], "HOME": str(world.home), "COMMAND": "echo 'a  b' >said; exit 75"}
    done = subprocess.run(["bash", "-c", task["run"]], env=world.environment(**settings), timeout=60)
    assert done.returncode == 75
    assert (world.home / "qrag/said").read_text() == "a  b\n"


def test_a_job_that_vanished_is_lost(world):
    world.ready_vm()
    world.call("run.sh", "qrag", "--", "true")
    world.wait_for_job()
    job = world.home / "qrag" / "job"
    (job / "exit").unlink()
    (job / "boot").write_text("another boot")  # the machine started again: the process id means nothing now
    assert "qrag-job LOST" in world.call("status.sh", "qrag")
