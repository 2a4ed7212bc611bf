"""Fixtures of the tests of indexes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from qrag_jax.retrieve.stores import places
from tests.support.stores import MemoryStore


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The stores have one in memory, which is empty at first."""
    monkeypatch.setitem(places.STORES, "memory", MemoryStore)
    yield
    MemoryStore.kept.clear()
