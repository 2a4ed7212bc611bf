"""The window of metrics over a save, requests to stop, and the record of a bad update."""

from __future__ import annotations

import json
import signal
import threading

import jax.numpy as jnp
import numpy as np
import pytest

from qrag_jax.rundir.log import Preempted, RunLog
from qrag_jax.rundir.progress import Progress
from qrag_jax.rundir.stop import stop_requests
from qrag_jax.train.window import Window


def metrics(i: int):
    return {"loss": jnp.float32(0.1) * i, "q": jnp.float32(1) / (i + 3)}


def test_a_window_that_was_saved_has_the_same_means_to_the_last_bit():
    straight, carried = Window(), Window()
    for i in range(7):
        straight.add(metrics(i), 5)
        carried.add(metrics(i), 5)
        text = json.dumps(Progress(window=carried.saved()).to_json())
        carried = Window(Progress.from_json(json.loads(text)).window)
    assert len(carried) == 7
    assert carried.texts == 35
    assert carried.means() == straight.means()
    assert carried.values(2) == straight.values(2)
    assert carried.seconds > 0


@pytest.mark.parametrize("border", [1, 2])
def test_a_window_over_two_objectives_has_the_metrics_of_both(border):
    for first, second in (("target", "other"), ("other", "target")):
        window = Window()
        for i in range(3):
            window.add({"loss": np.float32(i), first if i < border else second: np.float32(7)}, 5)
        assert window.means() == {"loss": 1.0}
        assert Window(window.saved()).means() == {"loss": 1.0}


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_the_first_bad_update_is_found(bad):
    window = Window()
    assert window.first_bad() is None
    for loss in (0.5, 0.25, bad, 0.125, bad):
        window.add({"q": jnp.float32(1), "loss": jnp.float32(loss)}, 1)
    assert window.first_bad() == 2


def test_sigterm_ends_a_run_at_once_or_after_what_must_be_saved():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Preempted), stop_requests():
        signal.raise_signal(signal.SIGTERM)
    done = []

    def save() -> None:
        with stop_requests() as stop, stop.later():
            signal.raise_signal(signal.SIGTERM)
            done.append(stop.asked)

    def fail() -> None:
        with stop_requests() as stop, stop.later():
            stop.ask()
            raise KeyError

    with pytest.raises(Preempted):
        save()
    assert done == [True]
    with pytest.raises(KeyError):  # the first thing that went wrong is what is told
        fail()
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_damaged_last_line_of_the_metrics_is_dropped(tmp_path):
    log = RunLog(tmp_path)
    log.record("train", 1)
    whole = log.path.read_bytes()
    for last in (b'{"kind": "tra', b"\0\0\0\0\n", b'{"kind": "tra\n'):
        log.path.write_bytes(whole + last)
        assert [record["step"] for record in log.read()] == [1]
        log.rewind(1)
        assert log.path.read_bytes() == whole
    log.path.write_bytes(b"\0\n" + whole)
    with pytest.raises(ValueError, match=r"metrics\.jsonl:1: not JSON: .*restore a copy"):
        log.read()


def test_outside_the_main_thread_signals_are_left_alone():
    found = []

    def work():
        with stop_requests() as stop:
            found.append(stop.asked)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [False]
