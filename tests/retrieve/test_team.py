"""Several processes write one index: the bytes are those of one process, whoever is stopped, dies or reads something else.

The processes are threads here; tests/retrieve/test_index_hosts.py has real ones.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from qrag_jax.retrieve import embed, embedding, team, writing
from qrag_jax.retrieve.index import Index
from qrag_jax.retrieve.meta import META, Meta
from qrag_jax.retrieve.retriever import Retriever
from qrag_jax.retrieve.sources import Text
from qrag_jax.rundir.hosts import Place
from qrag_jax.rundir.lock import Busy, only_writer
from qrag_jax.rundir.log import Preempted, Unreachable
from tests.support.index import CHUNKS, content, small_retriever, write_files

SHARD = 8  # ten shards, of which the last three have only texts of the second to the fourth


@pytest.fixture(scope="module")
def retriever() -> Retriever:
    return small_retriever()


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Signs of life come soon."""
    for name, seconds in {"BEAT": 0.2, "LOOK": 0.02, "JOIN": 60}.items():
        monkeypatch.setattr(team, name, seconds)


def together(count: int, call: Callable[[Place], Any]) -> list[Any]:
    """What ``call`` returns or raises in each of ``count`` processes."""
    run = uuid.uuid4().hex

    def ended(number: int) -> Any:
        try:
            return call(Place(number, count, run))
        except (Exception, Preempted) as error:
            return error

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(ended, range(count)))


@pytest.mark.parametrize(("count", "dtype", "shard"), [(2, "float32", SHARD), (3, "int8", SHARD), (4, "int8-exact", 32)])
def test_the_bytes_are_those_of_one_process(count: int, dtype: Any, shard: int, retriever: Retriever, tmp_path: Path) -> None:
    """The last case has more processes than shards."""
    one = Index.build(retriever, CHUNKS, tmp_path / "one", dtype=dtype, shard_chunks=shard)
    found = together(count, lambda place: Index.build(retriever, CHUNKS, tmp_path / "many", dtype=dtype, shard_chunks=shard, place=place))
    assert content(tmp_path / "many") == content(one.path)
    assert [len(index) for index in found] == [80] * count
    embedded = [index.changes.embedded for index in found]
    assert embedded[0] == 60, "process 0 counts those of all"
    assert all(own <= -(-len(one.meta.shards) // count) * shard for own in embedded[1:])
    again = together(2, lambda place: Index.build(retriever, CHUNKS, tmp_path / "many", dtype=dtype, shard_chunks=shard, place=place))
    assert [str(index.changes) for index in again] == ["documents: 0 added, 0 replaced, 0 removed, 1 unchanged; texts embedded: 0"] * 2
    assert content(tmp_path / "many") == content(one.path)


def test_additions_and_updates_are_those_of_one_process(retriever: Retriever, tmp_path: Path) -> None:
    docs, more = write_files(tmp_path / "docs"), [Text(f"{i} moved. Mary went to the garden.", f"{i}.txt") for i in range(9)]
    for name, run in {"one": lambda call: [call(Place())], "two": lambda call: together(2, call)}.items():
        index = tmp_path / name
        build, *_ = run(lambda place, index=index: Index.build(retriever, docs, index, shard_chunks=4, place=place))
        added, *_ = run(lambda place, index=index: Index.open(index).add(retriever, more, place=place))
        synced, *_ = run(lambda place, index=index: Index.open(index).sync(retriever, docs, place=place))
        assert [one.changes.added for one in (build, added, synced)] == [4, 9, 0], (build, added, synced)
        assert synced.changes.removed == 9
    assert content(tmp_path / "two") == content(tmp_path / "one")


@pytest.mark.parametrize("then", [1, 3])
def test_a_process_that_is_stopped_stops_all_and_others_take_up_its_share(
    then: int, retriever: Retriever, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = Index.build(retriever, CHUNKS, tmp_path / "one", shard_chunks=SHARD)
    embed, stopped, calls = retriever.embed_chunks, threading.local(), []

    def embed_or_stop(texts: list[str]) -> np.ndarray:
        stopped.calls = getattr(stopped, "calls", 0) + 1
        if stopped.number == 1 and stopped.calls == 2:
            raise Preempted("run the same command again to resume")
        return embed(texts)

    def build(place: Place) -> Index:
        stopped.number = place.number
        return Index.build(retriever, CHUNKS, tmp_path / "many", shard_chunks=SHARD, place=place)

    with monkeypatch.context() as patch:
        patch.setattr(retriever, "embed_chunks", embed_or_stop)
        found = together(2, build)
    assert [(type(error), str(error)) for error in found] == [(Preempted, "run the same command again to resume")] * 2
    with pytest.raises(ValueError, match="the build was not finished; run the same build command again"):
        Index.open(tmp_path / "many")
    monkeypatch.setattr(retriever, "embed_chunks", lambda texts: (calls.extend(texts), embed(texts))[1])
    resumed = together(then, build) if then > 1 else [Index.build(retriever, CHUNKS, tmp_path / "many", shard_chunks=SHARD)]
    assert content(tmp_path / "many") == content(one.path)
    assert resumed[0].changes.embedded == len(calls)
    assert 0 < len(calls) <= 60 - 2 * SHARD, "what was written is not embedded again"


def test_a_process_that_does_not_come_or_dies_is_missed(retriever: Retriever, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(team, "LOST", 0.4)
    monkeypatch.setattr(team, "JOIN", 0.2)
    path, tell = tmp_path / "index", team.Team.tell
    build = lambda number: Index.build(retriever, CHUNKS, path, shard_chunks=SHARD, place=Place(number, 2, f"run {number}"))
    for alone in (0, 1):
        with pytest.raises(
            Unreachable, match=rf"index: process {1 - alone} of 2 has given no sign of life for 0\.2 s; all need this folder"
        ):
            build(alone)

    def tell_with_a_dead_one(self: team.Team, **changes: Any) -> None:
        """Process 1 has spoken once, and never again."""
        tell(self, **changes)
        tell(team.Team(path, Place(1, 2, "run 0")), stage="working")

    monkeypatch.setattr(team, "JOIN", 30)
    monkeypatch.setattr(team.Team, "tell", tell_with_a_dead_one)
    with pytest.raises(Unreachable, match=r"process 1 of 2 has given no sign of life for 0\.4 s"):
        build(0)


def test_a_sign_of_life_that_is_taken_for_a_leftover_is_given_again(
    retriever: Retriever, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Process 0 clears the folder between the writing of an unfinished file and its renaming."""
    rename, names = Path.replace, []

    def rename_after_clearing(self: Path, target: Path) -> Path:
        names.append(target.name)
        if len(names) % 2:
            writing.clean(self.parent, ())
        return rename(self, target)

    monkeypatch.setattr(Path, "replace", rename_after_clearing)
    with team.Team(tmp_path, Place(1, 2, "this run")) as own:
        own.tell(stage="working")
        other = team.Team(tmp_path, Place(0, 2, "this run")).look()[1]
    assert (other and other.stage, set(names)) == ("working", {".process-1.tmp"})
    assert len(names) >= 4


def test_a_shard_that_is_awaited_keeps_no_thread_from_another_shard(
    retriever: Retriever, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Up to Python 3.11, a cached property that waits would."""
    Index.build(retriever, CHUNKS, tmp_path / "index", shard_chunks=SHARD)
    meta = Meta.read(tmp_path / "index" / META)
    own, other = meta.shards[:2]  # nothing of them is read yet
    waits, goes_on = threading.Event(), threading.Event()
    members = team.Team(tmp_path / "index", Place(0, 2, "this run"))
    monkeypatch.setattr(members, "wait", lambda *_: (waits.set(), goes_on.wait(30), other.files)[-1])
    awaited = team.Awaited(members, meta, 1, 1, other.chunks, "")
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(lambda: awaited.vectors)
        assert waits.wait(30)
        try:
            assert pool.submit(lambda: own.vectors).result(10).shape == (SHARD, meta.width)
        finally:
            goes_on.set()
        np.testing.assert_array_equal(first.result(30), other.vectors)


def test_other_files_on_another_host_are_refused(retriever: Retriever, tmp_path: Path) -> None:
    for change in (lambda texts: ["changed", *texts[1:]], lambda texts: texts[:SHARD]):
        found = together(
            2,
            lambda place, change=change: Index.build(
                retriever, change(CHUNKS) if place.number else CHUNKS, tmp_path / "index", shard_chunks=SHARD, place=place
            ),
        )
        told = "index: process 1 reads another source; give all processes the same files"
        assert all(isinstance(error, ValueError) and str(error).endswith(told) for error in found), found


def test_another_model_on_another_host_is_refused(retriever: Retriever, tmp_path: Path) -> None:
    other = small_retriever(1)
    build = lambda place: Index.build(other if place.number else retriever, CHUNKS, tmp_path / "index", shard_chunks=SHARD, place=place)
    for error in together(2, build):
        assert isinstance(error, ValueError)
        assert "has another model or dtype; start all with the same command" in str(error)


def test_a_helper_of_an_earlier_run_keeps_new_writers_away(retriever: Retriever, tmp_path: Path) -> None:
    with only_writer(tmp_path), team.only_helper(tmp_path, 1), pytest.raises(Busy, match="another process 1 is writing to it"):
        team.only_helper(tmp_path, 1).__enter__()
    with team.only_helper(tmp_path, 3):
        for error in together(2, lambda place: Index.build(retriever, CHUNKS, tmp_path, place=place)):
            assert isinstance(error, Preempted)
            assert "a process of an earlier run is writing to it" in str(error)
    assert len(Index.build(retriever, CHUNKS, tmp_path)) == 80


def test_a_store_is_filled_by_one_process(retriever: Retriever, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"store = 'duckdb:v\.db': must be left out with several processes"):
        Index.build(retriever, CHUNKS, tmp_path / "index", store="duckdb:v.db", place=Place(0, 2, "this run"))
    assert not (tmp_path / "index").exists()


def test_several_devices_embed_to_the_bytes_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embed, "SIZES", (8,))  # three blocks
    one, many = small_retriever(), small_retriever()
    many.embeds_on, used, original = jax.devices()[:2], [], embedding.embed_action_rows

    def embed_and_note(params: Any, ids: np.ndarray, **more: Any) -> jax.Array:
        used.append(next(iter(jax.tree.leaves(params)[0].devices())))
        return original(params, ids, **more)

    monkeypatch.setattr(embedding, "embed_action_rows", embed_and_note)
    np.testing.assert_array_equal(many.embed_chunks(CHUNKS[:20]), one.embed_chunks(CHUNKS[:20]))
    assert used[:3] == [*jax.devices()[:2], jax.devices()[0]]
