"""Checkpoints are restored as they were saved, broken ones are named and skipped, and none that is needed is ever removed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from threading import Event

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from qrag_jax.rundir import checkpoint
from qrag_jax.rundir.checkpoint import Checkpoint, Checkpoints, saved_steps
from qrag_jax.rundir.files import disk_error, is_unfinished, write_text
from qrag_jax.rundir.log import CannotWrite
from qrag_jax.rundir.peers import Peers
from qrag_jax.rundir.progress import Progress, SavedWindow
from tests.support.moments import moments_of
from tests.support.runs import half_saved

PROGRESS = Progress(best_step=0, threshold=0.3, window=SavedWindow({"loss": [0.1, 0.2]}, texts=9))


def state_at(step: int):
    """A state whose numbers show its step."""
    return {"params": {"w": np.arange(4000, dtype=np.float32) + step}, "key": jax.random.key(step)}


def parts_at(step: int):
    """The same in parts on four devices."""
    mesh = Mesh(np.asarray(jax.devices()[:4]), ("parts",))
    key, w = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in ((), ("parts",)))
    return jax.device_put(state_at(step), {"params": {"w": w}, "key": key})


def save(run_dir: Path, *steps: int, best: tuple[int, ...] = (0,)) -> None:
    """Checkpoints at ``steps``, each with the best one of that time."""
    with Checkpoints(run_dir) as checkpoints:
        for step in steps:
            if step in best:
                checkpoints.save_best(step, state_at(step)["params"], step / 10)
            checkpoints.save(step, state_at(step), replace(PROGRESS, best_step=max(b for b in best if b <= step)))


def latest(run_dir: Path) -> Checkpoint | None:
    with Checkpoints(run_dir) as checkpoints:
        return checkpoints.latest(state_at(0), state_at(0)["params"])


def same(found: Checkpoint | None, step: int) -> bool:
    assert found is not None
    expected = state_at(step)
    right = np.array_equal(found.state["params"]["w"], expected["params"]["w"]) and bool(found.state["key"] == expected["key"])
    return right and found.step == step and found.progress == PROGRESS


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("two")
    save(run_dir, 0, 10, 20)
    return run_dir


def test_what_was_saved_comes_back_although_the_state_has_moved_on(tmp_path):
    state = {"w": np.zeros(4, np.float32), "key": jax.random.key(3)}
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest(state, state) is None
        checkpoints.save_best(7, {"w": state["w"]}, None)
        checkpoints.save(7, state, Progress(best_step=7))
        state["w"] += 1  # as a donated buffer may be
        checkpoints.wait()
        found = checkpoints.latest(state, {"w": state["w"]})
        assert found is not None
        assert (found.step, found.progress, found.state["w"].tolist()) == (7, Progress(best_step=7), [0, 0, 0, 0])
        assert jax.random.key_data(found.state["key"]).tolist() == jax.random.key_data(state["key"]).tolist()
        best = checkpoints.best(7, {"w": state["w"]})
        assert (best.threshold, best.params["w"].tolist()) == (None, [0, 0, 0, 0])


def test_two_are_kept_with_the_best_ones_that_they_name(tmp_path):
    save(tmp_path, 0, 10, 20, 30, 40, best=(0, 20, 40))
    assert saved_steps(tmp_path) == [40, 30]
    assert {path.name for path in (tmp_path / "checkpoints" / "best").iterdir()} == {"20", "40"}


@pytest.mark.parametrize("state_at", [state_at, parts_at], ids=["whole", "parts"])
def test_a_kill_at_any_moment_of_a_save_loses_nothing(state_at, tmp_path, capsys):
    run_dir = tmp_path / "run"
    save(run_dir, 0, 10)
    with moments_of(run_dir, tmp_path / "moments") as moments, Checkpoints(run_dir) as checkpoints:
        assert same(checkpoints.latest(state_at(0), state_at(0)["params"]), 10)
        checkpoints.save_best(20, state_at(20)["params"], 2.0)
        checkpoints.save(20, state_at(20), replace(PROGRESS, best_step=20))
    newest, halves = [], 0
    for moment in moments:
        halves += bool(half_saved(moment))
        with Checkpoints(moment) as checkpoints:
            found = checkpoints.latest(state_at(0), state_at(0)["params"])
            assert found is not None
            assert np.array_equal(found.state["params"]["w"], state_at(found.step)["params"]["w"])
            newest.append(found.step)
            if found.step == 10:  # update 20 is made, and saved, again
                assert found.progress == PROGRESS
                checkpoints.save_best(20, state_at(20)["params"], 2.0)
                checkpoints.save(20, state_at(20), replace(PROGRESS, best_step=20))
        assert saved_steps(moment)[:2] == [20, 10]
        if newest[-1] == 10:
            left = {str(path.relative_to(moment / "checkpoints")) for path in (moment / "checkpoints").glob("*/*")}
            assert left == {"last/10", "last/20", "best/0", "best/20"}
    assert newest == sorted(newest)
    assert {10, 20} == set(newest)
    assert halves >= 6  # of both saves: their folder, what orbax writes into it, and their list of contents
    assert "skipping" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("index", "told"), [(0, "process 1 could not write its part"), (1, "process 0 could not complete this checkpoint")]
)
def test_a_checkpoint_is_complete_only_with_the_parts_of_all(index, told, tmp_path):
    """Here the other process is missing. (In one process there is nothing to wait for at barriers.)"""
    save(tmp_path, 0, 10)
    with Checkpoints(tmp_path, Peers(index, 2)) as checkpoints:
        last = tmp_path / "checkpoints" / "last"
        if index == 1:
            (last / ".20.new.tmp" / "state").mkdir(parents=True)  # process 0 makes it, before the others write
        checkpoints.save(20, parts_at(20), PROGRESS)
        with pytest.raises(CannotWrite, match=told):
            checkpoints.wait()
        checkpoints._writing.clear()
    assert saved_steps(tmp_path) == [10, 0]
    assert same(latest(tmp_path), 10)


def cut(share: float) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    for i in (0, len(content) // 2):
        content[i : i + 1] = bytes(255 - b for b in content[i : i + 1])
    path.write_bytes(content)


@pytest.mark.parametrize("harm", [cut(0.0), cut(0.99), flip, Path.unlink], ids=["empty", "shorter", "flipped", "gone"])
@pytest.mark.parametrize("name", ["last/20", "best/0"])
def test_a_run_never_resumes_from_a_broken_file(two, tmp_path, capsys, harm, name):
    """Either the broken file was not needed and everything is restored as saved, or the checkpoint is named and skipped."""
    skipped = 0
    files = [path.relative_to(two) for path in (two / "checkpoints" / name).rglob("*") if path.is_file()]
    assert len(files) > 8
    for i, file in enumerate(files):
        run_dir = tmp_path / str(i)
        shutil.copytree(two, run_dir)
        harm(run_dir / file)
        try:
            found = latest(run_dir)
        except ValueError as error:
            found, refused = None, str(error)
        said = capsys.readouterr().out
        if found is not None and found.step == 20:
            assert same(found, 20)
            assert said == ""
        else:
            skipped += 1
            if name == "last/20":
                assert same(found, 10)
            else:  # which both last ones name
                assert "none of its checkpoints [20, 10] can be read; restore a complete copy, use the version" in refused
            assert f"skipping checkpoint 20: {run_dir / 'checkpoints' / name}" in said
            assert file.name in said
    assert skipped >= len(files) - 4  # those of orbax that are empty anyway


def test_a_foreign_checkpoint_is_skipped_and_makes_room(two, tmp_path, capsys):
    run_dir = tmp_path / "run"
    shutil.copytree(two, run_dir)
    last = run_dir / "checkpoints" / "last"
    with Checkpoints(tmp_path / "other") as other:
        other.save_best(0, {"w": np.zeros(3)}, None)
        other.save(30, {"w": np.zeros(3)}, PROGRESS)
    shutil.copytree(tmp_path / "other" / "checkpoints" / "last" / "30", last / "30")
    (last / "40").mkdir()
    (last / ".50.new.tmp").mkdir()
    with Checkpoints(run_dir) as checkpoints:
        found = checkpoints.latest(state_at(0), state_at(0)["params"])
        assert found is not None
        assert found.step == 20
        said = capsys.readouterr().out
        assert "skipping checkpoint 40" in said
        assert "skipping checkpoint 30" in said
        checkpoints.save(25, state_at(25), PROGRESS)
    assert {path.name for path in last.iterdir()} == {"20", "25"}


def rewrite(contents: Path, info: object) -> None:
    """Puts other JSON into a checkpoint, with the right digest."""
    tree = json.loads(contents.read_text())
    contents.write_text(json.dumps(tree | {"info": info, "info_sha256": checkpoint._digest_of(info)}))


def test_the_format_on_disk_is_the_one_that_earlier_runs_have_left(two, tmp_path):
    contents = two / "checkpoints" / "last" / "20" / "contents.json"
    window = {"metrics": {"loss": [0.1, 0.2]}, "texts": 9, "seconds": 0.0}
    expected = {"seconds": 0.0, "best": -1.0, "best_step": 0, "reached": 0, "threshold": 0.3, "window": window}
    assert json.loads(contents.read_text())["info"] == expected
    assert json.loads((two / "checkpoints" / "best" / "0" / "contents.json").read_text())["info"] == {"threshold": 0.0}


@pytest.mark.parametrize(
    ("name", "info", "told"),
    [
        ("last/20", {"best_step": 0}, "last/20: its progress is ['best_step'], expected the fields ['best', 'best_step',"),
        ("last/20", [3], "last/20: its progress is [3], expected the fields"),
        ("last/20", PROGRESS.to_json() | {"window": None}, "last/20: its window of metrics cannot be read"),
        ("last/20", PROGRESS.to_json() | {"window": {"metrics": {}, "rows": 1}}, "last/20: its window of metrics cannot be read"),
        ("best/0", {}, "best/0: holds [], expected a threshold; another version wrote it"),
        ("best/0", 7, "best/0: holds 7, expected a threshold; another version wrote it"),
    ],
)
def test_progress_of_another_version_is_told_and_skipped(two, tmp_path, capsys, name, info, told):
    run_dir = tmp_path / "run"
    shutil.copytree(two, run_dir)
    rewrite(run_dir / "checkpoints" / name / "contents.json", info)
    if name == "last/20":
        assert same(latest(run_dir), 10)
    else:
        with pytest.raises(ValueError, match="none of its checkpoints"):
            latest(run_dir)
    assert f"skipping checkpoint 20: {run_dir}/checkpoints/{told}" in capsys.readouterr().out


def test_other_shapes_are_refused(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save_best(5, {"w": np.zeros((2, 3), np.float32)}, None)
        with pytest.raises(ValueError, match=r"best/5: \['params'\]\['w'\] is float32\[2, 3\], expected float32\[3, 3\]"):
            checkpoints.best(5, {"w": np.zeros((3, 3), np.float32)})


def test_another_programs_folder_is_refused(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "format.json").write_text('{"format": "something", "version": 9}')
    with pytest.raises(ValueError, match="another program or another version wrote these"):
        Checkpoints(tmp_path)
    (tmp_path / "checkpoints" / "format.json").rename(tmp_path / "checkpoints" / "mine.json")
    with pytest.raises(ValueError, match="not checkpoints of qrag-jax"):
        Checkpoints(tmp_path)


def test_what_goes_wrong_in_the_background_is_raised(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path)
    monkeypatch.setattr(checkpoint, "digests", lambda *_: 1 / 0)
    checkpoints.save_best(5, {"w": np.zeros(3)}, None)
    with pytest.raises(ZeroDivisionError):
        checkpoints.wait()
    with pytest.raises(ZeroDivisionError):
        checkpoints.save_best(6, {"w": np.zeros(3)}, None)
    with pytest.raises(ZeroDivisionError):
        checkpoints.check()
    checkpoints.__exit__(KeyError)  # does not hide what already ended the run


def removes(run_dir: Path, then: Callable[[], object]) -> Callable[..., None]:
    """A save by orbax during which the run directory is removed."""

    def save(*_: object, **__: object) -> None:
        shutil.rmtree(run_dir)
        then()

    return save


def test_a_folder_that_is_removed_is_named_and_not_made_again(tmp_path, monkeypatch):
    """Before a save, while orbax writes (which then raises something of its own), and while its threads wait for ever."""
    monkeypatch.setattr(checkpoint, "PATIENCE", 0.1)
    run_dir, stuck = tmp_path / "run", Event()

    def fails() -> None:
        raise ValueError("a database of another library")

    for moment in (None, fails, stuck.wait, lambda: None):
        saved = Checkpoints(run_dir)
        if moment is None:
            shutil.rmtree(run_dir)
        else:
            monkeypatch.setattr(saved._files, "write", removes(run_dir, moment))
        saved.save(1, state_at(1), PROGRESS)
        with pytest.raises(FileNotFoundError, match=rf"No such file or directory: '{run_dir}/checkpoints'"), saved:
            pass
        stuck.set()
        saved._thread.shutdown(wait=True)
        assert not run_dir.exists()


def test_disk_errors_are_told_from_others():
    assert disk_error(OSError(28, "No space left on device")) == "No space left on device"
    assert disk_error(ValueError("RESOURCE_EXHAUSTED: Failed to write 9 bytes: No space left on device [os_error_code='28']")) is not None
    assert disk_error(FileNotFoundError(2, "No such file")) is None
    assert disk_error(ValueError("optim.batch = 28")) is None


def test_a_failed_write_leaves_the_file_as_it_was(tmp_path):
    path = write_text(tmp_path / "a.json", "old")
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "\ud800")
    path.with_name("b").mkdir()
    with pytest.raises(IsADirectoryError):
        write_text(path.with_name("b"), "new")
    assert {p.name: p.is_file() and p.read_text() for p in tmp_path.iterdir()} == {"a.json": "old", "b": False}
    assert is_unfinished(Path(".a.json.123.tmp"))
    assert not is_unfinished(Path("a.tmp"))
