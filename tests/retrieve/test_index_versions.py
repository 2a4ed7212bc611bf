"""Indexes of other formats and versions: older ones are read and changed, unknown ones are refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qrag_jax.retrieve.index import Index
from qrag_jax.retrieve.meta import checksum
from qrag_jax.retrieve.retriever import Retriever
from tests.support.index import CHUNKS, small_retriever, write_files


@pytest.fixture(scope="module")
def retriever() -> Retriever:
    return small_retriever()


def test_other_formats_and_versions_are_refused(retriever: Retriever, tmp_path: Path) -> None:
    copy = Index.build(retriever, CHUNKS[:8], tmp_path / "index").path
    tree = json.loads((copy / "meta.json").read_text())
    for change, message in (({"format": "faiss"}, "is not of the format"), ({"version": 7}, "version = 7.*update")):
        (copy / "meta.json").write_text(json.dumps(tree | change))
        with pytest.raises(ValueError, match=message):
            Index.open(copy)


@pytest.mark.parametrize("version", [1, 2, 3, 4, 5])
def test_an_index_of_an_older_version_is_read_and_changed(version: int, retriever: Retriever, tmp_path: Path) -> None:
    folder = write_files(tmp_path / "text")
    one = folder / "a/deep/one.md"
    one.write_text(one.read_text().removeprefix("# "))  # before version 5, headings had no effect
    path = tmp_path / "index"
    new = Index.build(retriever, folder, path, shard_chunks=8)
    wanted = retriever.search("Where is Mary?", new, 3)
    make_older(path, version)
    old = Index.open(path, verify=True)
    assert (old.sources[0].digest is None) == (version < 3)
    assert old.restarts == (0,)
    assert (old.sources[0].tokens is None) == (version == 1)
    assert retriever.search("Where is Mary?", old, 3) == wanted
    assert old.equals(0) == new.equals(0)
    assert {pick.source for pick in retriever.search("Where is Mary?", old, 3, filter=["source=a/*"])} == {"a/deep/one.md"}
    assert Index.build(retriever, folder, path, shard_chunks=8).changes.unchanged == len(old.sources), "it is the same index"
    (folder / "b.txt").write_text("Now another text.")
    (folder / "new.txt").write_text("Mary left at once.")
    grown = old.sync(retriever, folder)
    assert str(grown.changes) == "documents: 1 added, 1 replaced, 0 removed, 3 unchanged; texts embedded: 2"
    assert json.loads((path / "meta.json").read_text())["version"] == 5
    fresh = Index.build(retriever, folder, tmp_path / "fresh", shard_chunks=8)
    assert grown.sources == fresh.sources, "with the digests and counts that the older version did not have"
    found = Index.open(path, verify=True)
    assert [found.chunk(i) for i in range(len(found))] == [fresh.chunk(i) for i in range(len(fresh))]


def make_older(path: Path, version: int) -> None:
    """Turns an index into what an older version wrote: 5 as it is; 4 without files that could not be read; 3 without positions, too; 2
    without keys, digests and metadata, too; 1 without counts of tokens and skipped files, too."""
    tree = json.loads((path / "meta.json").read_text())
    if version < 5:
        del tree["unread"]
    if version < 4:
        del tree["positions"]
    if version >= 3:
        tree["version"] = version
        del tree["sha256"]
        (path / "meta.json").write_text(json.dumps(tree | {"sha256": checksum(tree)}))
        return
    fields = ["name", "characters", "chunks"] + (["tokens", "outside", "cut", "unknown"] if version == 2 else [])
    tree["sources"] = [{name: source[name] for name in fields} for source in tree["sources"]]
    for shard in tree["shards"]:
        (path / shard.pop("keys")["name"]).unlink()
    for name in ("sha256", "written", *(["skipped"] if version == 1 else [])):
        del tree[name]
    tree |= {"version": version, "kept": 0}
    (path / "meta.json").write_text(json.dumps(tree | {"sha256": checksum(tree)}))
