"""One writer at a time for a folder."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from qrag_jax.rundir.files import is_unfinished
from qrag_jax.rundir.lock import Busy, only_writer
from tests.conftest import ROOT


def test_the_second_writer_is_told_who_writes(tmp_path: Path) -> None:
    folder = tmp_path / "new"
    with only_writer(folder):
        assert all(is_unfinished(path) for path in folder.iterdir())
        told = rf"new: process {os.getpid()} on .*, started .* is writing to it; run the same command again"
        with pytest.raises(Busy, match=told), only_writer(folder):
            pass
        (folder / "kept").touch()
    assert [path.name for path in folder.iterdir()] == ["kept"]
    with only_writer(folder):
        pass


def test_a_folder_that_was_made_and_stays_empty_is_removed(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="bad"), only_writer(tmp_path / "new"):
        raise ValueError("bad")
    assert not (tmp_path / "new").exists()
    (tmp_path / "old").mkdir()
    with only_writer(tmp_path / "old"):
        pass
    assert (tmp_path / "old").exists()


def test_writers_never_meet(tmp_path: Path) -> None:
    """The lock's file is removed when a writer leaves; one that has just opened it must not hold a file that nobody sees."""
    inside, entered, wrong = 0, 0, 0

    def write() -> None:
        nonlocal inside, entered, wrong
        for _ in range(300):
            try:
                with only_writer(tmp_path):
                    inside += 1
                    wrong += inside != 1
                    entered += 1
                    inside -= 1
            except Busy:
                pass

    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert entered > 0
    assert wrong == 0


def test_the_lock_of_a_process_that_died_is_free(tmp_path: Path) -> None:
    # As a kill: nothing is cleaned up.
    code = "import os, pathlib, sys, qrag_jax.rundir.lock as lock\nwith lock.only_writer(pathlib.Path(sys.argv[1])): os._exit(7)"
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, check=False).returncode == 7
    assert list(tmp_path.iterdir())
    with only_writer(tmp_path):
        pass
    assert not list(tmp_path.iterdir())
