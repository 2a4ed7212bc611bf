"""Files and folders that are written whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from qrag_jax.rundir.files import is_unfinished, whole_file, whole_folder


def test_a_folder_is_replaced_whole(tmp_path: Path) -> None:
    out = tmp_path / "out"
    (tmp_path / ".out.new.tmp" / "left by a killed process").mkdir(parents=True)
    for text in ("first", "second"):
        with whole_folder(out) as new:
            assert is_unfinished(new)
            assert not list(new.iterdir())
            (new / text).write_text(text)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert [path.name for path in out.iterdir()] == ["second"]


def test_a_folder_may_be_read_by_whom_the_umask_allows(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    with whole_folder(tmp_path / "out") as new:
        (new / "deep").mkdir()
        (new / "deep" / "private").touch(0o600)
    assert (tmp_path / "out/deep/private").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_failure_leaves_file_and_folder_as_they_were(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "old").touch()
    (tmp_path / "file").write_text("old")

    def stopped_half_way(written: Path) -> None:
        written.write_text("new")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), whole_folder(tmp_path / "folder") as new:
        stopped_half_way(new / "new")
    with pytest.raises(KeyboardInterrupt), whole_file(tmp_path / "file") as new:
        stopped_half_way(new)
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")) == ["file", "folder", "folder/old"]
    assert (tmp_path / "file").read_text() == "old"


def test_the_old_folder_survives_a_failure_or_a_kill_between_the_two_renames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, rename = tmp_path / "out", Path.rename
    with whole_folder(out) as new:
        (new / "old").touch()

    def fail(path: Path, target: Path) -> Path:
        if path.name == ".out.new.tmp":
            raise OSError("the disk failed")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(OSError, match="the disk failed"), whole_folder(out) as new:
        (new / "new").touch()
    monkeypatch.undo()
    assert [path.name for path in out.iterdir()] == ["old"]
    out.rename(tmp_path / ".out.old.tmp")  # as a kill there leaves it
    with pytest.raises(KeyboardInterrupt), whole_folder(out):
        raise KeyboardInterrupt
    assert [path.name for path in out.iterdir()] == ["old"]
