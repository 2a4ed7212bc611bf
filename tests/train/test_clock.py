"""The time left of a training, on a clock that the test moves."""

from __future__ import annotations

import pytest

from qrag_jax.train.clock import Leg, TimeLeft


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def simulate(legs: list[Leg], eval_every: int, seconds: list[float], *, until: float, compile_at: set[int]) -> tuple[float, float]:
    """A run whose updates of stage i take ``seconds[i]``, a validation 7 s (20 s at the start, 13 of them compiling), a compilation 30 s.
    Returns what is foretold after the share ``until`` of it, and what is then left."""
    clock, compiled = Clock(), list[float]()
    steps, asked, foretold = legs[-1].until, int(until * legs[-1].until), 0.0
    left = TimeLeft(legs, eval_every, compiled, clock)
    at = 0.0
    for step in range(1, steps + 1):
        if step in compile_at:
            compiled.append(30.0)
            clock.now += 30.0
        clock.now += next(each for leg, each in zip(legs, seconds, strict=True) if step <= leg.until)
        if step == asked:
            foretold, at = left.left(step) or 0.0, clock.now
        if step % eval_every == 0 or step == steps:
            with left.validating():
                clock.now += 7.0
        left.updated(step)
    return foretold, clock.now - at


@pytest.mark.parametrize("until", [0.05, 0.3, 0.9])
def test_the_time_left_is_right_within_a_third_after_a_twentieth_of_the_run(until: float) -> None:
    # One stage; the start is compiled, and validations are a tenth of the time. At 5 % (update 50), one validation of 100 is over.
    foretold, real = simulate([Leg(1000, 400)], 50, [1.2], until=until, compile_at={1})
    assert foretold == pytest.approx(real, rel=1 / 3)
    # A second stage whose updates are four times the work, compiled when it begins.
    foretold, real = simulate([Leg(300, 100), Leg(1000, 400)], 50, [0.3, 1.2], until=until, compile_at={1, 301})
    assert foretold == pytest.approx(real, rel=1 / 3)


def test_nothing_is_foretold_before_an_update_that_compiled_nothing() -> None:
    clock, compiled = Clock(), list[float]()
    left = TimeLeft([Leg(10, 1)], 5, compiled, clock)
    assert left.left(0) is None
    compiled.append(30.0)
    clock.now = 31.0
    left.updated(1)
    assert left.left(1) is None, "the first update compiles"
    clock.now += 2.0
    left.updated(2)
    # By hand: 8 updates of 2 s, and validations after updates 5 and 10, whose time is not known yet.
    assert left.left(2) == pytest.approx(16.0)
    with left.validating():
        clock.now += 3.0
    left.updated(3)
    # The last update took no time, the one before 2 s: (0.99 * 2 + 0) / (0.99 + 1) = 0.995 s each; 7 updates, two validations of 3 s.
    assert left.left(3) == pytest.approx(7 * 1.98 / 1.99 + 6.0)
