"""``--seeds ... --parallel N``: each seed in a process of its own."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from experiments import child, parallel_seeds, slots
from experiments.cli import main
from qrag_jax.rundir import hosts
from qrag_jax.rundir.log import RunLog
from tests.support import runs
from tests.support.processes import start_python
from tests.support.small import options

ROW = {
    **{"benchmark": "babilong", "task": "qa1", "split": "test", "context_tokens": 1_000, "chunks": 50, "episodes": 8, "budget": 4},
    **{"fact_f1": 0.25, "fact_f1_stopped": 0.75, "stop_threshold": 0.5, "answer_em": None, "answer_f1": None, "ci95": None},
    **{"seconds_per_episode": 0.1, "checkpoint_step": 4},
}
# Fact EM is a quarter of the seed. Seed 3 fails, 4 is killed, and 9 waits until it is asked to stop.
SEED = f"""
import json, os, pathlib, signal, sys, time
told = json.loads(sys.stdin.readline())
folder, config = pathlib.Path(told["folder"]), json.loads(told["config"])
seed = config["train"]["seed"]
if seed == 3:
    print("working\\nerror: update 12 gave a number that is not finite", flush=True)
    sys.exit(70)
folder.mkdir(exist_ok=True)
(folder / "config.json").write_text(told["config"])
with (folder / "metrics.jsonl").open("a") as file:
    file.write(json.dumps({{"kind": "validation", "step": 10, "fact_em": seed / 4}}) + "\\n")
if seed == 4:
    os.kill(os.getpid(), signal.SIGKILL)
if seed == 9:
    (folder / ".started.tmp").touch()
    time.sleep(60)
(folder / "results.json").write_text(json.dumps({{"schema": 1, "rows": [{{**{ROW!r}, "fact_em": seed / 4}}]}}))
(folder / "seen").write_text(json.dumps([os.environ["SLOT"], told["watch"]]))
"""


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """The command on the folder ``out``, whose runs end at once."""
    (tmp_path / "seed.py").write_text(SEED)
    monkeypatch.setattr(parallel_seeds, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(parallel_seeds.run, "__defaults__", ((sys.executable, str(tmp_path / "seed.py")),))

    def without_jax(parallel: int, shared: Mapping[str, str]) -> list[dict[str, str]]:
        return [{**shared, "SLOT": str(slot)} for slot in range(parallel)]

    monkeypatch.setattr(parallel_seeds, "slots", without_jax)
    base = ("--task", "qa1", "--run-dir", str(tmp_path / "out"), "--eval-tokens", "1k")
    return lambda *words: main("babilong", "", [*base, *words])


def results(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    return found


def test_a_seed_that_fails_leaves_the_others_alone(tmp_path: Path, call: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert call("--seeds", "0", "3", "2", "--parallel", "2", "--track", "tensorboard") == 70, "the exit code of the seed that failed"
    assert results(out)["seeds"] == [0, 2]
    assert results(out)["rows"][0]["values"]["fact_em"] == [0.0, 0.5]
    assert sorted(path.name for path in out.glob("seed-*")) == ["seed-0", "seed-0.log", "seed-2", "seed-2.log", "seed-3.log"]
    slot, watch = json.loads((out / "seed-0" / "seen").read_text())
    assert (slot, watch) == ("0", {"track": ["tensorboard"], "profile": None})
    said, failed = capsys.readouterr()
    assert f"seed 0: {out / 'seed-0'}; what it says is in {out / 'seed-0.log'}\n" in said
    assert "seed 2: validation after update 10: Fact EM 0.500\n" in said
    assert "seed 2: done\n" in said
    assert failed == (
        f"seed 3 failed: exit code 70; error: update 12 gave a number that is not finite; the rest is in {out / 'seed-3.log'}\n"
    )
    # A seed that was killed may be started again; those that have ended are only read.
    assert call("--seeds", "0", "2", "4", "--parallel", "3") == 75
    said, failed = capsys.readouterr()
    assert "seeds that have already ended with these settings, and are not repeated: 0 2\n" in said
    assert "seed 4 failed: killed by SIGKILL (out of memory?); the rest is in" in failed
    assert "not included: seeds 4, which have not ended with these settings" in said


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_request_to_stop_reaches_every_seed(
    number: signal.Signals, code: int, tmp_path: Path, call: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    def ask() -> None:
        while not (tmp_path / "out" / "seed-9" / ".started.tmp").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    asking = threading.Thread(target=ask)
    asking.start()
    began = time.monotonic()
    assert call("--seeds", "9", "1", "2", "--parallel", "2") == code
    asking.join()
    assert time.monotonic() - began < 30, "it does not wait for the end of the run"
    assert f"seeds saved in {tmp_path / 'out'}; run the same command again to resume" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--seeds", "0", "1", "--parallel", "0"), "--parallel = 0: must be >= 1"),
        (("--parallel", "2"), "--parallel = 2: is used with --seeds; add that"),
        (("--seeds", "0", "1", "--parallel", "3"), "--parallel = 3: must be <= 2, the number of seeds"),
        (("--seeds", "0", "1", "--parallel", "x"), "--parallel = 'x': must be a whole number"),
    ],
)
def test_what_cannot_be_done_is_refused(
    words: tuple[str, ...], message: str, tmp_path: Path, call: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(*words) == 64
    assert capsys.readouterr().err == f"error: {message}\n"
    assert not (tmp_path / "out").exists()


def test_several_hosts_and_too_few_devices_are_refused(
    tmp_path: Path, call: Callable[..., int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(parallel_seeds, "slots", slots.slots)
    monkeypatch.setattr(slots, "LOOK", "print('gpu 1')")
    assert call("--seeds", "0", "1", "--parallel", "2") == 64
    assert capsys.readouterr().err == "error: --parallel = 2: must be <= 1, the gpu devices here\n"
    monkeypatch.setattr(hosts, "is_multiprocess", lambda: True)
    with pytest.raises(ValueError, match=r"^parallel = 2: must be 1 when several processes train a run together$"):
        parallel_seeds.run(None, tmp_path / "out", (0, 1), None, 2)  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


def test_a_run_whose_command_has_ended_does_not_begin(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(parallel_seeds, "follow", lambda: None)
    monkeypatch.setattr(os, "read", lambda *_: b"")
    assert (child.ordered(), parallel_seeds.main()) == ("", 75)
    assert capsys.readouterr().err == "preempted: the command that started this run has ended\n"


@pytest.mark.slow
@pytest.mark.quick
@pytest.mark.processes
def test_seeds_whose_command_is_killed_save_and_resume_one_after_the_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, small = (
        tmp_path / "seeds",
        (*options(train={"devices": 1, "steps": 20}), "--run-dir", str(tmp_path / "seeds"), "--seeds", "0", "1"),
    )
    process = start_python("-m", "experiments.babilong", *small, "--parallel", "2")
    runs.wait_until(lambda: all(any(out.glob(f"seed-{seed}/checkpoints/last/[0-9]*")) for seed in (0, 1)), process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    logs = [out / f"seed-{seed}.log" for seed in (0, 1)]
    until = time.monotonic() + 300
    while not all(re.search("preempted: |results are in", log.read_text()) for log in logs):  # each notices by itself
        assert time.monotonic() < until
        time.sleep(0.05)
    capsys.readouterr()
    assert main("babilong", "", [*small]) == 0
    assert results(out)["seeds"] == [0, 1]
    said = capsys.readouterr().out
    for seed, log in enumerate(logs):
        assert "preempted" not in log.read_text() or f"resuming {out / f'seed-{seed}'} at update" in said
        assert [record["step"] for record in RunLog(out / f"seed-{seed}").validations()] == [0, 10, 20]
