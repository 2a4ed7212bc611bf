"""Fixtures of the tests of training runs."""

from __future__ import annotations

import signal

import pytest

from qrag_jax.train import window


@pytest.fixture(params=[signal.SIGTERM])
def stop_at_13(request, monkeypatch):
    """SIGTERM, or another signal, while update 13 is made: in the middle of a window of 5."""
    add, seen = window.Window.add, []

    def add_and_stop(self, metrics, texts):
        add(self, metrics, texts)
        seen.append(metrics)
        if len(seen) == 13:
            signal.raise_signal(request.param)

    monkeypatch.setattr(window.Window, "add", add_and_stop)
