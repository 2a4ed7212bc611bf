"""The clock of a search: compiling is not searching."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace

import jax
import jax.monitoring
import jax.numpy as jnp
import pytest

from qrag_jax.retrieve import clock
from qrag_jax.retrieve.clock import COMPILING, WorkClock


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A time that the test sets."""
    at = SimpleNamespace(time=100.0)
    monkeypatch.setattr(clock, "time", SimpleNamespace(perf_counter=lambda: at.time))
    monkeypatch.setattr(clock, "_here", threading.local())
    return at


def compiled(seconds: float, event: str = f"{COMPILING}backend_compile_duration") -> None:
    jax.monitoring.record_event_duration_secs(event, seconds)


def test_spans_of_compiling_are_left_out_once(now: SimpleNamespace) -> None:
    work = WorkClock()
    now.time = 103.0
    compiled(2.0)  # 101 to 103, within
    now.time = 104.0
    compiled(3.5)  # 100.5 to 104
    now.time = 106.0
    compiled(1.0)  # 105 to 106
    now.time = 110.0
    compiled(5.0, "/jax/something/else")
    now.time = 112.0
    assert work.seconds() == 12 - 3.5 - 1
    later = WorkClock()
    assert later.seconds() == 0
    now.time = 113.0
    compiled(4.0)  # 109 to 113: it began before this clock
    now.time = 114.0
    assert later.seconds() == 1


def test_another_threads_compiling_is_not_left_out(now: SimpleNamespace) -> None:
    work = WorkClock()
    now.time = 103.0
    thread = threading.Thread(target=compiled, args=(2.0,))
    thread.start()
    thread.join()
    assert work.seconds() == 3


def test_jax_tells_of_its_compiling() -> None:
    """The names of the events are JAX's: a version that calls them otherwise would be counted as searching again."""
    constant = time.time_ns() % 997  # a program that no cache has

    @jax.jit
    def program(x: jax.Array) -> jax.Array:
        for i in range(40):
            x = jnp.sin(x @ x + i + constant)
        return x

    x = jnp.ones((8, 8)).block_until_ready()
    start, work = time.perf_counter(), WorkClock()
    program(x).block_until_ready()
    whole, seconds = time.perf_counter() - start, work.seconds()
    assert seconds < whole / 2, f"{seconds:.3f} s of {whole:.3f} s"
