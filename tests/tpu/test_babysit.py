"""tpu/babysit.sh: its actions when TPUs come and go and jobs end, in a simulated world that plays a scenario."""

from __future__ import annotations

import pytest

from tests.tpu.world import COMMAND


def lives(world, *lines):
    world.set("lives", "\n".join(lines))


def counts(world):
    """(creates, deletes, set-ups, starts)"""
    return tuple(world.count(word) for word in ("queued-resources create", "queued-resources delete", "tpu-vm scp", "vm_job.sh start"))


def test_babysit_creates_again_after_each_preemption(world):
    lives(world, "UNREADY NONE RUNNING RUNNING !SUSPENDED", "UNREADY NONE RUNNING !SUSPENDED", "UNREADY NONE RUNNING 0")
    world.call("babysit.sh", "qrag", *COMMAND)
    assert counts(world) == (3, 2, 3, 3)
    assert "done" in world.said
    assert "costs money" in world.said


def test_babysit_sees_a_vm_that_is_gone_before_its_request_says_so(world):
    lives(world, "UNREADY NONE RUNNING 0")
    world.set("state", "ACTIVE")
    world.set("node", "PREEMPTED READY")
    world.call("babysit.sh", "qrag", *COMMAND)
    assert counts(world) == (1, 1, 1, 1)


@pytest.mark.parametrize("again", ["75", "134", "143", "LOST"])
def test_babysit_starts_again_without_a_new_tpu(world, again):
    lives(world, f"UNREADY NONE RUNNING {again} RUNNING 0")
    world.call("babysit.sh", "qrag", *COMMAND)
    assert counts(world) == (1, 0, 1, 2)


@pytest.mark.parametrize(("code", "life"), [(64, "UNREADY NONE 64"), *((code, f"UNREADY NONE RUNNING {code}") for code in (1, 64, 70, 74))])
def test_babysit_stops_at_once_on_what_would_only_come_again(world, code, life):
    lives(world, life)
    world.call("babysit.sh", "qrag", *COMMAND, code=code)
    assert counts(world) == (1, 0, 1, 1)
    assert f"exit code {code}" in world.said


def test_babysit_finds_a_running_job(world):
    world.set("state", "ACTIVE")
    world.set("life", "RUNNING RUNNING 0")
    world.call("babysit.sh", "qrag", *COMMAND)
    assert counts(world) == (0, 0, 0, 0)


def test_babysit_tries_an_old_failure_again_and_leaves_an_old_success(world):
    world.set("state", "ACTIVE")
    world.set("life", "64 RUNNING 0")
    world.call("babysit.sh", "qrag", *COMMAND)
    assert counts(world) == (0, 0, 0, 1)
    world.call("babysit.sh", "qrag", *COMMAND)
    assert counts(world) == (0, 0, 0, 1)


def test_babysit_backs_off_up_to_a_bound_and_gives_up(world):
    world.set("fate", "FAILED")
    world.set("lives", "")
    world.call("babysit.sh", "qrag", *COMMAND, code=69, MAX_FAILURES="6", BASE_DELAY="10", MAX_DELAY="100")
    # Each wait before an attempt doubles, to 100 at most; 7 is the look after each create.
    assert [s for s in world.sleeps() if s != 7] == [10, 20, 40, 80, 100, 100]
    assert counts(world) == (7, 6, 0, 0)
    assert "gave up after 6 attempts" in world.said


def test_babysit_counts_failures_in_a_row_only(world):
    lives(world, *["UNREADY NONE RUNNING !SUSPENDED"] * 4, "UNREADY NONE RUNNING 0")
    world.call("babysit.sh", "qrag", *COMMAND, MAX_FAILURES="2")
    # Two a preemption: a look without an answer, then the request SUSPENDED. What runs in between sets the count back.
    assert counts(world)[0] == 5


def test_babysit_does_not_create_because_gcloud_fails(world):
    world.set("state", "BROKEN")
    world.call("babysit.sh", "qrag", *COMMAND, code=69, MAX_FAILURES="3")
    assert counts(world) == (0, 0, 0, 0)
    assert "Network is unreachable" in world.said


def test_babysit_deletes_when_done_if_asked(world):
    lives(world, "UNREADY NONE RUNNING 0")
    world.call("babysit.sh", "qrag", *COMMAND, "--run-dir", "gs://b/r", DELETE_WHEN_DONE="1")
    assert counts(world) == (1, 1, 1, 1)
    assert world.calls()[-1][-1] == "--quiet"
