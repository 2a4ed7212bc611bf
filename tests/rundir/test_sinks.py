"""TensorBoard and Weights & Biases get what metrics.jsonl gets; a run that resumes replaces what it had made."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest

from qrag_jax.config.watch import Watch
from qrag_jax.rundir import log as log_module
from qrag_jax.rundir.log import RunLog
from qrag_jax.rundir.sinks import check_trackers


def events(folder: Path) -> list[Any]:
    """The events of a folder's files, in the order in which TensorBoard reads them. A record: length, checksum, content, checksum."""
    from tensorboardX.proto.event_pb2 import Event

    found = []
    for path in sorted(folder.glob("events.*")):
        content = path.read_bytes()
        while content:
            (length,) = struct.unpack("<Q", content[:8])
            found.append(Event.FromString(content[12 : 12 + length]))
            content = content[16 + length :]
    return found


def shown(folder: Path) -> dict[tuple[str, int], float]:
    """The scalars that TensorBoard shows: (name, update) -> value. A session that begins at update N hides what is from N on."""
    found: dict[tuple[str, int], float] = {}
    for event in events(folder):
        if event.HasField("session_log"):
            found = {key: value for key, value in found.items() if key[1] < event.step}
        for value in event.summary.value:
            if value.HasField("simple_value"):
                found[value.tag, event.step] = value.simple_value
    return found


def test_tensorboard_shows_what_is_recorded_and_a_resumed_run_replaces_its_end(tmp_path: Path) -> None:
    folder = tmp_path / "tensorboard"
    with RunLog(tmp_path) as log:  # a run that began without a sink
        log.rewind(-1)
        log.record("train", 5, loss=0.5)
    with RunLog(tmp_path, ["tensorboard"]) as log:
        log.rewind(5)
        assert log.tracked
        log.record("train", 10, loss=0.25, answer_em=None)
        log.record("train", 15, loss=9.0)  # after the last checkpoint
        log.histogram("train/loss", 10, [0.1, 0.9, 0.9])
        log.table("validation/picks", 10, ["question", "Q"], [["Where | is it?", "0.9"]])
    assert shown(folder) == {("train/loss", 5): 0.5, ("train/loss", 10): 0.25, ("train/loss", 15): 9.0}
    with RunLog(tmp_path, ["tensorboard"]) as log:
        log.rewind(10)
        log.record("train", 15, loss=0.125)
    assert shown(folder) == {("train/loss", 5): 0.5, ("train/loss", 10): 0.25, ("train/loss", 15): 0.125}
    tags = {value.tag: value for event in events(folder) for value in event.summary.value}
    assert tags["train/loss_histogram"].histo.num == 3, "no tag is a number and a histogram"
    (text,) = tags["validation/picks/text_summary"].tensor.string_val
    assert text.decode() == "| question | Q |\n| --- | --- |\n| Where \\| is it? | 0.9 |"
    assert [json.loads(line)["loss"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [0.5, 0.25, 0.125]


def test_a_sink_that_fails_ends_but_the_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    class Broken:
        empty = True

        def scalars(self, step: int, values: object) -> None:
            raise ConnectionError("no route to host")

    monkeypatch.setattr(log_module, "open_sink", lambda *_: Broken())
    log = RunLog(tmp_path, ["wandb"])
    log.rewind(-1)
    log.record("train", 5, loss=0.5)
    log.record("train", 10, loss=0.25)
    assert not log.tracked
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2
    said = capsys.readouterr().out
    assert said == "Broken gets no more figures of this run, since it failed (no route to host); metrics.jsonl has all of them\n"


def test_a_disk_that_is_full_ends_the_run_as_always(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        empty = True

        def scalars(self, step: int, values: object) -> None:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(log_module, "open_sink", lambda *_: Full())
    log = RunLog(tmp_path, ["tensorboard"])
    log.rewind(-1)
    with pytest.raises(OSError, match="No space left"):
        log.record("train", 5, loss=0.5)


def test_what_is_asked_for_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Watch(profile="20:30").profiled == range(20, 31)
    assert not Watch().profiled
    for bad in ("20", "0:3", "30:20", "a:b", "20:30:40", ""):
        with pytest.raises(ValueError, match=rf"^profile = '{bad}': must be FIRST:LAST, two updates counted from 1, such as 20:30$"):
            Watch(profile=bad)
    with pytest.raises(ValueError, match=r"^track = 'tensorbord': unknown; known: tensorboard, wandb; did you mean 'tensorboard'\?$"):
        Watch(track=("tensorbord",))
    check_trackers(["tensorboard", "wandb"])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"^track = 'wandb': needs the package wandb: pip install 'qrag-jax\[log\]'$"):
        check_trackers(["wandb"])


@pytest.mark.slow
@pytest.mark.quick
def test_weights_and_biases_keeps_a_run_offline_and_resumes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)  # a key alone sends nothing
    (tmp_path / "config.json").write_text('{"train": {"seed": 3}}')
    for start, step in ((-1, 5), (5, 10)):
        with RunLog(tmp_path, ["wandb"]) as log:
            log.rewind(start)
            log.record("train", step, loss=0.5)
            log.histogram("validation/q", step, [0.1, 0.9])
            log.table("validation/picks", step, ["question", "Q"], [["Where?", "0.9"]])
            assert log.tracked
    runs = sorted((tmp_path / "wandb").glob("offline-run-*"))
    identity = (tmp_path / "wandb" / "run-id.txt").read_text()
    assert len(runs) == 2, "one folder for each start"
    assert all(run.name.endswith(identity) for run in runs), "both are the same run"
    for run in runs:
        content = next(run.glob("*.wandb")).read_bytes()
        assert b"train/loss" in content
        assert b"0" * 40 not in content
