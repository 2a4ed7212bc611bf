"""Runs whose directory is in a bucket, with a real server on this machine (tests/support/bucket.py)."""

from __future__ import annotations

import base64
import hashlib
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator
from http.server import HTTPServer
from pathlib import Path
from typing import Any

import pytest

from experiments import evaluate
from experiments.ablations import __main__ as ablations
from experiments.sweep import __main__ as sweep_command
from experiments.sweep import run as sweep_run
from qrag_jax.config import RunConfig
from qrag_jax.evaluate.results import write_results
from qrag_jax.rundir import bucket
from qrag_jax.rundir.bucket import Bucket, Mirror, home
from qrag_jax.rundir.checkpoint import saved_steps
from qrag_jax.rundir.files import read_json, write_text
from qrag_jax.rundir.log import RunLog
from qrag_jax.train import training, window
from tests.support import runs
from tests.support.bucket import Forbidding, bucket_server
from tests.support.runs import assert_same_run, start, wait_until

OFTEN = ("--train.checkpoint-every", "5")


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with bucket_server() as url:
        yield url


@pytest.fixture(autouse=True)
def machine(tmp_path, monkeypatch):
    """A function that moves the test to another machine, that is, to another cache folder."""
    monkeypatch.setattr(bucket, "PATIENCE", 30.0)

    def move(name: str) -> None:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / name))

    move("first")
    return move


def here(run_dir: str | Path, *extra: str) -> int:
    """The command in this process."""
    return runs.here(run_dir, *OFTEN, *extra)


def whole_steps(url: str) -> list[int]:
    """The last checkpoints in the bucket that have all the files that they list."""
    names = Bucket(url).digests()
    return sorted(int(name.split("/")[2]) for name in names if name.startswith("checkpoints/last/") and name.endswith("/contents.json"))


def send(folder: Path, url: str) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            Bucket(url).put(path.relative_to(folder).as_posix(), path.read_bytes())


@pytest.fixture
def at_update_13(monkeypatch):
    """Calls ``does[0]`` during update 13; the updates after it are slow."""
    add, seen, does = window.Window.add, [], []

    def add_and_do(self, metrics, texts):
        add(self, metrics, texts)
        seen.append(metrics)
        if len(seen) == 13:
            does[0]()
        if len(seen) > 13:
            time.sleep(0.2)

    monkeypatch.setattr(window.Window, "add", add_and_do)
    return does


@pytest.mark.slow
@pytest.mark.quick
@pytest.mark.processes
def test_a_killed_run_goes_on_elsewhere_to_the_same_end(server, whole, machine, capsys):
    url = f"{server}/runs/killed"
    process = start(url, *OFTEN)
    wait_until(lambda: bool(whole_steps(url)), process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    machine("second")
    assert here(url) == 0
    output = capsys.readouterr().out
    assert "resuming" in output
    assert f"everything is in {url}" in output
    assert_same_run(home(url) / "run", whole)
    # The bucket has it all, and what it has is the run to the last byte.
    found = Bucket(url).digests()
    assert {"results.md", "comparison.md", "curves.png", "export/qrag.json", "manifest.json"} <= found.keys()
    for name, digest in found.items():
        content = (home(url) / "run" / name).read_bytes()
        assert base64.b64encode(hashlib.md5(content).digest()).decode() == digest, name
    assert whole_steps(url) == sorted(saved_steps(home(url) / "run"))


def test_a_half_sent_checkpoint_is_passed_over(server, whole, capsys):
    url = f"{server}/runs/half"
    send(whole, url)
    Bucket(url).remove("checkpoints/last/40/contents.json")
    assert here(url) == 0
    output = capsys.readouterr().out
    assert f"skipping {url}/checkpoints/last/40: it was not sent completely" in output
    assert "at update 30 of 40" in output
    assert_same_run(home(url) / "run", whole)
    assert whole_steps(url) == [35, 40]


def test_sigterm_sends_the_last_checkpoint_before_it_exits_75(server, at_update_13, capsys):
    url = f"{server}/runs/stopped"
    at_update_13.append(lambda: signal.raise_signal(signal.SIGTERM))
    assert here(url) == 75
    assert "saved at update 13" in capsys.readouterr().err
    assert whole_steps(url) == [10, 13]


def test_a_bucket_that_goes_away_stops_the_run_with_the_folder_whole(server, at_update_13, monkeypatch, capsys):
    url = f"{server}/runs/gone"
    monkeypatch.setattr(bucket, "EVERY", 0.05)
    monkeypatch.setattr(bucket, "PATIENCE", 0.2)

    def put(self: Bucket, name: str, content: bytes | Path) -> None:
        raise FileNotFoundError(name)

    at_update_13.append(lambda: monkeypatch.setattr(Bucket, "put", put))
    assert here(url) == 74
    output = capsys.readouterr()
    assert "trying again for" in output.out
    assert f"error: {url}: cannot be written to (FileNotFoundError: " in output.err
    (saved, *_) = saved_steps(home(url) / "run")
    assert 13 < saved < 40  # it did not go on to the end
    monkeypatch.undo()


def test_what_could_not_be_sent_is_sent_next_time(server, monkeypatch):
    url = f"{server}/mirror/unsent"
    with Mirror(url) as mirror:
        (mirror.folder / "config.json").write_text("{}")
    (mirror.folder / "metrics.jsonl").write_text("unsent")
    with Mirror(url) as mirror:
        assert (mirror.folder / "metrics.jsonl").read_text() == "unsent"
    assert set(Bucket(url).digests()) == {"config.json", "metrics.jsonl"}


def test_a_folder_that_was_overtaken_follows_the_bucket(server, machine):
    url = f"{server}/mirror/overtaken"
    with Mirror(url) as mirror:
        (mirror.folder / "config.json").write_text("{}")
        (mirror.folder / "metrics.jsonl").write_text("1")
    (mirror.folder / "checkpoints" / "last" / "9" / "state").mkdir(parents=True)
    (mirror.folder / "checkpoints" / "last" / "9" / "contents.json").write_text("never sent")
    machine("second")
    with Mirror(url) as second:
        (second.folder / "metrics.jsonl").write_text("2")
    machine("first")
    with Mirror(url):
        assert (mirror.folder / "metrics.jsonl").read_text() == "2"
        assert not (mirror.folder / "checkpoints").exists()


@pytest.mark.parametrize("content", [b"", b"\r", b"1\r\n", b"1\n", b"\n--==0==--\n", bytes(range(256))])
def test_files_arrive_to_the_last_byte(server, content, tmp_path):
    there = Bucket(f"{server}/bytes")
    there.put("file", content)
    there.get("file", tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == content
    assert there.digests() == {"file": base64.b64encode(hashlib.md5(content).digest()).decode()}


@pytest.mark.parametrize("run", ["", "seed-1/", "trials/ab/"])
def test_only_pruned_checkpoints_are_removed(server, run):
    """``run``: the folder of the run, relative to the mirror's folder."""
    url = f"{server}/mirror/pruned-{len(run)}"
    names = ["config.json", "notes.txt", "checkpoints/last/1/contents.json", "checkpoints/last/1/state/x", "checkpoints/format.json"]
    with Mirror(url) as mirror:
        for name in names:
            (mirror.folder / run / name).parent.mkdir(parents=True, exist_ok=True)
            (mirror.folder / run / name).write_text(name)
    with Mirror(url):
        shutil.rmtree(mirror.folder / run / "checkpoints" / "last" / "1")
        (mirror.folder / run / "notes.txt").unlink()
    assert set(Bucket(url).digests()) == {f"{run}{name}" for name in ("config.json", "notes.txt", "checkpoints/format.json")}
    # A run that has gone from this machine as a whole has not been pruned.
    with Mirror(url):
        (mirror.folder / run / "checkpoints" / "last" / "2").mkdir(parents=True)
        (mirror.folder / run / "checkpoints" / "last" / "2" / "contents.json").touch()
    with Mirror(url):
        shutil.rmtree(mirror.folder / run)
    assert f"{run}checkpoints/last/2/contents.json" in Bucket(url).digests()


def test_a_half_sent_checkpoint_of_one_of_several_runs_is_passed_over(server, machine, capsys):
    url = f"{server}/mirror/halves"
    for name in ("seed-0/checkpoints/last/5/contents.json", "seed-0/checkpoints/last/5/state/x", "seed-1/checkpoints/last/5/state/x"):
        Bucket(url).put(name, b"content")
    with Mirror(url) as mirror:
        found = [path.relative_to(mirror.folder).as_posix() for path in mirror.folder.rglob("*") if path.is_file()]
    assert sorted(found) == ["seed-0/checkpoints/last/5/contents.json", "seed-0/checkpoints/last/5/state/x"]
    assert f"skipping {url}/seed-1/checkpoints/last/5: it was not sent completely" in capsys.readouterr().out


def test_what_makes_checkpoints_whole_is_sent_after_them():
    of_best, of_last = (
        [f"{run}checkpoints/{kind}/5/{name}" for run in ("", "a/") for name in ("contents.json", "state/x")] for kind in ("best", "last")
    )
    names = [*of_last, *of_best, "a/metrics.jsonl", "a/config.json", "config.json"]
    order = bucket._in_order(names)
    assert order[:3] == ["a/config.json", "config.json", "a/metrics.jsonl"]
    assert set(order[3:7]) == set(of_best)
    for part in (order[3:7], order[7:]):
        assert [name.endswith("contents.json") for name in part] == [False, False, True, True]


def ends_at_once(config: RunConfig, run_dir: Path, **_: Any) -> list[dict[str, Any]]:
    """Replaces a training run."""
    named = {"benchmark": "babilong", "task": "qa1", "split": "test", "context_tokens": 1_000, "chunks": 9, "episodes": 8, "budget": 4}
    scores = dict.fromkeys(("fact_em", "fact_f1", "fact_em_stopped", "fact_f1_stopped", "stop_threshold", "seconds_per_episode"), 0.5)
    rows = [{**named, **scores, "answer_em": None, "answer_f1": None, "ci95": [0.2, 0.8], "checkpoint_step": 4}]
    write_text(run_dir / "config.json", config.to_json())
    RunLog(run_dir).record("validation", 4, fact_em=0.5)
    write_results(run_dir, rows)
    return rows


def test_several_seeds_are_in_the_bucket(server, machine, monkeypatch, capsys):
    url = f"{server}/runs/seeds"
    monkeypatch.setattr(training, "run", ends_at_once)
    assert here(url, "--seeds", "0", "1") == 0
    machine("second")
    monkeypatch.setattr(training, "run", lambda config, run_dir, **_: ends_at_once(config, run_dir) if config.train.seed == 2 else 1 / 0)
    assert here(url, "--seeds", "0", "2") == 0
    found = Bucket(url).digests()
    assert {"results.json", "seeds.json", "curves.png", *(f"seed-{seed}/results.json" for seed in range(3))} <= found.keys()
    assert read_json(home(url) / "run" / "results.json")["seeds"] == [0, 1, 2]
    assert f"everything is in {url}" in capsys.readouterr().out


def test_ablations_are_in_the_bucket(server, monkeypatch, tmp_path):
    url = f"{server}/runs/ablations"
    monkeypatch.setattr(training, "run", ends_at_once)
    assert ablations.main(["--task", "qa1", "--variants", "full", "--seeds", "0", "1", "--run-dir", url]) == 0
    assert {"ablations.json", "ablations.md", "full-seed0/results.json", "full-seed1/results.json"} <= Bucket(url).digests().keys()


def test_a_sweep_is_in_the_bucket(server, machine, monkeypatch, tmp_path):
    url, spec = f"{server}/runs/sweep", tmp_path / "spec.yaml"
    spec.write_text("{benchmark: babilong, task: qa1, method: grid, space: {rl.lam: {values: [0.25, 0.75]}}}")
    ended: list[str] = []

    def end(sweep: Any) -> None:
        claim = sweep.next()
        RunLog(claim.folder).record("validation", 4, fact_em=0.5, fact_f1_stopped=None)
        sweep.finish(claim, "complete")
        ended.append(claim.name)

    monkeypatch.setattr(sweep_run, "run", end)
    for name in ("second", "third"):
        machine(name)
        assert sweep_command.main([str(spec), "--run-dir", url]) == 0
    assert len(set(ended)) == 2, "the second machine goes on with what the first had not tried"
    assert {"spec.json", "journal.log", "sweep.md", *(f"trials/{name}/metrics.jsonl" for name in ended)} <= Bucket(url).digests().keys()


def test_an_emptied_bucket_is_not_filled_again_unasked(server):
    url = f"{server}/mirror/emptied"
    with Mirror(url) as mirror:
        (mirror.folder / "config.json").write_text("{}")
    Bucket(url).remove("config.json")
    with pytest.raises(ValueError, match="is empty, but it held the run of"):
        Mirror(url)
    assert (mirror.folder / "config.json").exists()


def test_evaluate_reads_and_writes_buckets(server, whole, capsys):
    send(whole, f"{server}/runs/trained")
    words = ["--eval-tokens", "1k", "--eval-episodes", "2", "--budget", "2"]
    assert evaluate.main([f"{server}/runs/trained", "--run-dir", f"{server}/runs/again", *words]) == 0
    assert {"results.json", "comparison.md", "episodes/babilong-qa1-1k.jsonl"} <= Bucket(f"{server}/runs/again").digests().keys()
    assert evaluate.main([f"{server}/runs/nothing", "--run-dir", f"{server}/runs/again", *words]) == 64
    assert "no export of a retriever there" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("run_dir", "message"),
    [
        ("gs://", "'gs://': must be gs://BUCKET/NAME"),
        ("gs://some-bucket", "must be gs://BUCKET/NAME"),
        ("gs://some-bucket/", "must be gs://BUCKET/NAME"),
        ("gs://some-bucket/a/../b", "must be gs://BUCKET/NAME"),
        ("gs:///run", "must be gs://BUCKET/NAME"),
        ("s3://some-bucket/run", "must be gs://BUCKET/NAME"),
        ("gs://no-such-bucket/run", "gs://no-such-bucket/run: no such bucket"),
    ],
)
def test_bad_urls_are_refused(server, run_dir, message, capsys):
    assert here(run_dir) == 64
    assert message in capsys.readouterr().err


def test_missing_access_is_refused(monkeypatch, capsys):
    with HTTPServer(("127.0.0.1", 0), Forbidding) as forbidding:
        threading.Thread(target=forbidding.serve_forever, args=(0.01,), daemon=True).start()
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{forbidding.server_address[1]}")
        assert here("gs://some-bucket/run") == 64
        forbidding.shutdown()
    error = capsys.readouterr().err
    assert "gs://some-bucket/run: no access (OSError: Forbidden" in error
    assert "storage.objects.create" in error


def test_the_extra_is_asked_for(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gcsfs.core", None)
    assert here("gs://some-bucket/run") == 64
    assert "pip install 'qrag-jax[gcs]'" in capsys.readouterr().err


def test_other_commands_want_folders(capsys):
    assert evaluate.main(["runs/a", "--run-dir", "gs://", "--eval-episodes", "2"]) == 64
    from experiments import baselines

    assert baselines.main(["--run-dir", "gs://some-bucket/run"]) == 64
    assert "--run-dir = gs:/some-bucket/run: must be a place on this machine" in capsys.readouterr().err
