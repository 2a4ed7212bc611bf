"""Shared by all tests: four simulated devices, how programs are compiled, runs that several files use, and the shared real data."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=4")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import jax
import pytest
from filelock import FileLock

from tests.support.compiling import compile_quickly, install, keep, quick

ROOT = Path(__file__).resolve().parents[1]
keep()
install()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Optimises programs for tests marked ``optimized`` or slow, unless ``quick``. For the others, compiling takes longer than running."""
    marked = lambda name: item.get_closest_marker(name) is not None
    optimized = marked("optimized") or (marked("slow") and not marked("quick"))
    if quick() == optimized:
        compile_quickly(not optimized)
        jax.clear_caches()  # what an earlier test compiled would be used as it is


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Trainings first: they take longest and share runs, so that at the end no worker waits for another one."""
    items.sort(key=lambda item: item.path.parent.name != "train")


def shared(tmp_path_factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """The folder that ``make`` fills, once for all workers of pytest-xdist. Optimised programs have a folder of their own."""
    base = tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder = base / f"{name}-{'quick' if quick() else 'optimized'}"
    done = folder.with_suffix(".done")
    with FileLock(folder.with_suffix(".lock")):
        if not done.exists():
            make(folder)
            done.touch()
    return folder


@pytest.fixture
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small run of tests/support/runs.py from beginning to end, without interruption. Copy it before you write to it."""
    from tests.support import runs

    def make(run_dir: Path) -> None:
        assert runs.here(run_dir) == 0

    return shared(tmp_path_factory, "whole", make)


@pytest.fixture
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that tests/support/pair.py writes about two processes that train together. Copy them before you write to them."""
    from tests.support import pair, processes

    def make(folder: Path) -> None:
        folder.mkdir()
        with processes.processes(*[("-m", "tests.support.pair", str(folder))] * pair.COUNT) as started:
            processes.finish_all(started)

    return shared(tmp_path_factory, "pair", make)


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The vector stores have one in memory, which is empty at first."""
    from qrag_jax.retrieve.stores import places
    from tests.support.stores import MemoryStore

    monkeypatch.setitem(places.STORES, "memory", MemoryStore)
    yield
    MemoryStore.kept.clear()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The real data next to the repository, if the developer has it."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("needs the real data of shared/data beside the repository")
    return folder
