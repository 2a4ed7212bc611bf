"""An index of dtype int8-exact answers as one of float32 does, however it came to hold its documents."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from qrag_jax.__main__ import main
from qrag_jax.retrieve.codes import Codes
from qrag_jax.retrieve.index import Index, Text
from qrag_jax.retrieve.meta import checksum
from qrag_jax.retrieve.report import index_lines, index_tree
from qrag_jax.retrieve.retriever import Retriever
from qrag_jax.retrieve.stored_rows import CodedRows
from tests.support.index import CHUNKS, content, small_retriever, write_small_export

QUESTIONS = ["Where is Mary?", "Who went to the garden?", "Where did John move?"]
NAMED = [Text(" ".join(CHUNKS[start : start + 12]), f"{start}.txt") for start in range(0, 60, 12)]
OTHER = [NAMED[3], Text("Mary travelled to the office. Sandra left.", "new.txt"), *NAMED[:2]]


@pytest.fixture(scope="module")
def retriever() -> Retriever:
    return small_retriever()


@pytest.fixture(params=["index", "document"])
def pair(request: pytest.FixtureRequest, retriever: Retriever, tmp_path: Path) -> tuple[Index, Index]:
    """The same documents in float32 and in int8-exact, after an addition, a synchronisation and a removal."""
    made = []
    for dtype in ("float32", "int8-exact"):
        index = Index.build(retriever, NAMED[:4], tmp_path / dtype, dtype=dtype, shard_chunks=7, positions=request.param)
        made.append(index.add(retriever, NAMED[4:]).sync(retriever, OTHER).remove(["0.txt"]))
    return made[0], made[1]


def test_the_picks_are_those_of_float32(pair: tuple[Index, Index], retriever: Retriever) -> None:
    exact, coded = pair
    assert isinstance(coded.rows, CodedRows)
    for options in ({}, {"beam": 3}, {"mode": "single"}, {"mode": "hybrid"}, {"filter": ["source=36*"]}):
        wanted, found = (retriever.search_batch(QUESTIONS, index, 4, **options) for index in (exact, coded))
        assert [[pick.chunk for pick in picks] for picks in found] == [[pick.chunk for pick in picks] for picks in wanted]
        for ours, theirs in zip(found, wanted, strict=True):
            np.testing.assert_allclose([pick.q for pick in ours], [pick.q for pick in theirs], rtol=1e-5, atol=1e-6)
    wanted, found = (list(retriever.stream(QUESTIONS[0], index, 3, bins=5)) for index in (exact, coded))
    for a, b in zip(found, wanted, strict=True):
        assert [one.chunk for one in a.runners_up] == [one.chunk for one in b.runners_up]
        np.testing.assert_allclose(a.curve, b.curve, rtol=1e-5, atol=1e-6)


def test_codes_are_those_of_the_rows_after_every_change(pair: tuple[Index, Index]) -> None:
    _, coded = pair
    rows = Index.open(coded.path, verify=True).rows
    assert isinstance(rows, CodedRows)
    for shard, end in zip(rows.shards, rows.ends, strict=True):
        begin = end - shard.chunks
        made, kept = Codes.of(rows.block(begin, end)), rows.codes(begin, end)
        for name in ("codes", "scales", "errors"):
            np.testing.assert_array_equal(getattr(kept, name), getattr(made, name))
        np.testing.assert_array_equal(rows.take(np.arange(begin, end)), rows.block(begin, end))
    np.testing.assert_array_equal(rows.take(np.array([len(rows) - 1, 0])), rows.block(0, len(rows))[[-1, 0]])


def test_the_same_build_gives_the_same_bytes(retriever: Retriever, tmp_path: Path) -> None:
    first, second = (Index.build(retriever, NAMED, tmp_path / name, dtype="int8-exact", shard_chunks=9) for name in "ab")
    assert content(first.path) == content(second.path)
    with pytest.raises(ValueError, match="built with dtype = int8-exact, now float32; build with int8-exact"):
        Index.build(retriever, NAMED, first.path, shard_chunks=9)


def test_sizes_are_told(retriever: Retriever, tmp_path: Path) -> None:
    index = Index.build(retriever, CHUNKS, tmp_path / "index", dtype="int8-exact")
    # 80 rows of width 32: 4 * 80 * 32 bytes of float32; a quarter of that and 8 bytes a row of int8.
    line = "vectors: int8-exact, 32 wide (0.0 MB of float32; 0.0 MB of int8, which a search step on the CPU reads); shards: 1"
    assert index_lines(index, False)[1].startswith(line)
    sizes = index_tree(index)["bytes"]
    assert {kind: sizes[kind] for kind in ("vectors", "codes", "scales", "errors")} == {
        "vectors": 10240,
        "codes": 2560,
        "scales": 320,
        "errors": 320,
    }


@pytest.mark.parametrize("kind", ["codes", "scales", "errors"])
def test_a_file_of_codes_that_is_missing_cut_or_damaged_is_named(kind: str, retriever: Retriever, tmp_path: Path) -> None:
    path = Index.build(retriever, CHUNKS, tmp_path / "index", dtype="int8-exact").path
    file = path / f"{kind}-00000.bin"
    whole = file.read_bytes()
    file.write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
    with pytest.raises(ValueError, match=f"{file.name}: SHA-256"):
        Index.open(path, verify=True)
    file.write_bytes(whole[:-1])
    with pytest.raises(ValueError, match=f"{file.name}: has {len(whole) - 1} bytes"):
        Index.open(path)
    file.unlink()
    with pytest.raises(ValueError, match=f"{file.name}: no such file"):
        Index.open(path)
    tree = json.loads((path / "meta.json").read_text())
    del tree["shards"][0][kind], tree["sha256"]
    (path / "meta.json").write_text(json.dumps(tree | {"sha256": checksum(tree)}))
    with pytest.raises(ValueError, match=f"must be an object with .*{kind}"):
        Index.open(path)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, text = write_small_export(tmp_path / "run"), tmp_path / "story.txt"
    text.write_text(" ".join(CHUNKS))
    found = {}
    for dtype in ("float32", "int8-exact"):
        index = str(tmp_path / dtype)
        assert main(["index", "build", str(text), index, "--retriever", str(run), "--dtype", dtype]) == 0
        capsys.readouterr()
        assert main(["ask", index, QUESTIONS[0], "--json"]) == 0
        found[dtype] = [step["chunk"] for step in json.loads(capsys.readouterr().out)["steps"]]
    assert found["int8-exact"] == found["float32"]
    shutil.rmtree(tmp_path / "float32")
    assert main(["index", "info", index]) == 0
    assert "vectors: int8-exact" in capsys.readouterr().out
    assert main(["index", "build", str(text), index, "--retriever", str(run), "--dtype", "int8exact"]) == 64
    assert "int8-exact" in capsys.readouterr().err
