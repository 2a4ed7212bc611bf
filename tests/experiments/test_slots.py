"""Each process of several on one machine has its own devices."""

from __future__ import annotations

import os

import pytest

from experiments import slots
from experiments.slots import CORES, own_cores, visible


def test_processes_have_their_own_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5, 6, 7, 9}, raising=False)
    assert [own_cores(slot, 2) for slot in range(2)] == [{CORES: "3,6,9"}, {CORES: "5,7"}]
    assert own_cores(0, 6) == {}, "with fewer cores than processes they share them"


def test_processes_have_their_own_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert visible("gpu", 1)["CUDA_VISIBLE_DEVICES"] == "1"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    assert visible("gpu", 1)["CUDA_VISIBLE_DEVICES"] == "6"
    assert visible("tpu", 3)["TPU_VISIBLE_CHIPS"] == "3"


def test_the_devices_are_counted_by_another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TPU_VISIBLE_CHIPS", raising=False)
    monkeypatch.setattr(slots, "LOOK", "print('tpu 4')")
    found = slots.slots(2, dict(os.environ))
    assert [one["TPU_VISIBLE_CHIPS"] for one in found] == ["0", "1"]
    assert slots.slots(1, {"A": "b"}) == [{"A": "b"}], "a single one has all devices"
    with pytest.raises(ValueError, match=r"^parallel = 5: must be <= 4, the tpu devices here$"):
        slots.slots(5, dict(os.environ))
    monkeypatch.setattr(slots, "LOOK", "raise RuntimeError('no chip')")
    with pytest.raises(ValueError, match=r"^parallel = 2: JAX finds no devices: RuntimeError: no chip$"):
        slots.slots(2, dict(os.environ))
