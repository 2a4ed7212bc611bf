"""An index by someone else: its fields, its offsets and the links in a source folder are checked; checksums prove only that it is whole."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qrag_jax.retrieve.index import Index
from qrag_jax.retrieve.meta import checksum
from qrag_jax.retrieve.sources import ChunkStream
from tests.support.index import CHUNKS, small_retriever
from tests.support.small import small_tokenizer


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hostile") / "index"
    Index.build(small_retriever(), CHUNKS, folder)
    return folder


def rewritten(good: Path, folder: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    """A copy with another meta.json, under a checksum of its own."""
    shutil.copytree(good, folder)
    tree = json.loads((folder / "meta.json").read_text())
    change(tree)
    tree["sha256"] = checksum({name: value for name, value in tree.items() if name != "sha256"})
    (folder / "meta.json").write_text(json.dumps(tree))
    return folder


def read(folder: Path) -> list[str]:
    index = Index.open(folder)
    return [shard.chunk(row).text for shard, row in map(index.rows.place, range(len(index.rows)))]


@pytest.mark.parametrize("name", ["model", "dtype", "width", "shard_chunks", "shards", "sources", "written"])
@pytest.mark.parametrize("value", ["missing", None, -1, "x", [[]], [None], 2**70, {}], ids=str)
def test_meta_json(good: Path, tmp_path: Path, name: str, value: Any) -> None:
    folder = rewritten(good, tmp_path / "index", lambda tree: tree.pop(name) if value == "missing" else tree.update({name: value}))
    with pytest.raises(ValueError, match=r"meta\.json|dtype = ") as caught:
        read(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("place", "value"), [(0, 5), (1, -1), (1, 2**62), (-1, 10**9), (3, 0)])
def test_offsets_that_lead_out_of_the_texts(good: Path, tmp_path: Path, place: int, value: int) -> None:
    path = good / "offsets-00000.bin"
    offsets = np.fromfile(path, "<i8")
    offsets[place] = value
    digest = hashlib.sha256(offsets.tobytes()).hexdigest()
    folder = rewritten(good, tmp_path / "index", lambda tree: tree["shards"][0]["offsets"].update(sha256=digest))
    offsets.tofile(folder / path.name)
    with pytest.raises(ValueError, match=r"offsets-00000\.bin|texts-00000\.jsonl"):
        read(folder)
    with pytest.raises(ValueError, match=r"offsets-00000\.bin: .*build the index again"):
        Index.open(folder, verify=True)


def test_vectors_that_are_not_finite_answer_nothing(good: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(good, tmp_path / "index")
    vectors = np.fromfile(folder / "vectors-00000.bin", "<f4")
    vectors[-1] = np.nan
    vectors.tofile(folder / "vectors-00000.bin")
    with pytest.raises(ValueError, match="Q is not finite"):
        small_retriever().search("Where is Mary?", Index.open(folder), budget=2)


def test_links_that_lead_out_of_a_folder_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "secret.txt").write_text("The password is sesame.")
    folder = tmp_path / "docs"
    folder.mkdir()
    (folder / "a.txt").write_text("Mary went home.")
    (folder / "inside.txt").symlink_to(folder / "a.txt")
    (folder / "b.txt").symlink_to(tmp_path / "secret.txt")
    stream = ChunkStream(folder, small_tokenizer(), 16, "sentence")
    assert [chunk.text for chunk in stream] == ["Mary went home."] * 2
    assert stream.skipped == {"link out of the folder": 1}
