"""The world that the tests of this folder play in."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.tpu.world import World


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)
