"""The clock of a search does not count compiling."""

from __future__ import annotations

import time

import jax
import jax.monitoring
import jax.numpy as jnp
import pytest

from qrag_jax.retrieve.clock import SearchClock


def test_jax_says_when_it_compiles() -> None:
    function = jax.jit(lambda x: jnp.sin(x) @ x)  # a new function is traced and compiled, in a cache or not
    x = jnp.ones((3, 3))
    with SearchClock() as first:
        function(x).block_until_ready()
    with SearchClock() as second:
        function(x).block_until_ready()
    assert first.compiling > 0
    assert first.searching < first.compiling
    assert second.compiling == 0


def test_spans_that_overlap_count_once(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "time", lambda: now)
    with SearchClock() as clock:
        # Inner spans end first. The union of [101, 103], [100.5, 104] and [106, 107] has 3.5 + 1 = 4.5 seconds; the fourth is no compiling.
        for name, span in (("x", (101.0, 103.0)), ("y", (100.5, 104.0)), ("z", (106.0, 107.0))):
            jax.monitoring.record_event_time_span(f"/jax/core/compile/{name}", *span)
        jax.monitoring.record_event_time_span("/jax/other", 107.0, 109.0)
        now = 110.0
    assert (clock.compiling, clock.searching) == (4.5, 5.5)
    jax.monitoring.record_event_time_span("/jax/core/compile/x", 110.0, 120.0)
    assert clock.compiling == 4.5
