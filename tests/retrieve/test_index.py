"""Indexes: what is stored, how it is read, and what is refused."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qrag_jax.retrieve.embed import model_hash
from qrag_jax.retrieve.index import Index
from qrag_jax.retrieve.retriever import Retriever
from qrag_jax.retrieve.storage import check_dtype, pack, unpack
from qrag_jax.retrieve.types import Document, Rows
from qrag_jax.rundir.lock import Busy, only_writer
from tests.support.index import CHUNKS, content, small_retriever, write_files, write_small_export
from tests.support.small import SMALL, changed

SHARD = 32  # shards of 32, 32 and 16 chunks
KINDS = (("vectors", "bin"), ("texts", "jsonl"), ("offsets", "bin"), ("keys", "bin"))


@pytest.fixture(scope="module")
def retriever() -> Retriever:
    return small_retriever()


@pytest.fixture(scope="module")
def whole(retriever: Retriever, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index of CHUNKS; not to be written to."""
    return Index.build(retriever, CHUNKS, tmp_path_factory.mktemp("whole") / "index", shard_chunks=SHARD).path


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "index"))


def test_vectors_are_those_of_the_retriever(retriever: Retriever, whole: Path) -> None:
    index = Index.open(whole, verify=True)
    assert isinstance(index, Document)
    assert isinstance(index.rows, Rows)
    assert (len(index), len(index.rows), index.rows.width, index.rows.parts()) == (80, 80, 32, [(0, 32), (32, 64), (64, 80)])
    found = index.rows.block(0, 80)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, retriever.embed_chunks(CHUNKS), atol=1e-6, rtol=0)
    assert [index.chunk(i).text for i in range(80)] == CHUNKS
    assert index.chunk(79).start is index.chunk(79).end is index.chunk(79).source is None
    assert set(content(whole)) == {"meta.json", *(f"{name}-0000{i}.{end}" for i in range(3) for name, end in KINDS)}


def test_equal_texts_are_embedded_once_across_shards(retriever: Retriever, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    embed = retriever.embed_chunks
    monkeypatch.setattr(retriever, "embed_chunks", lambda texts: (asked.extend(texts), embed(texts))[1])
    doubled = [CHUNKS[0], CHUNKS[0], *CHUNKS]
    for dtype in ("float32", "int8"):
        asked.clear()
        index = Index.build(retriever, doubled, tmp_path / dtype, dtype=dtype, shard_chunks=SHARD)
        assert asked == list(dict.fromkeys(doubled))
        rows = index.rows.block(0, len(doubled))
        for i, text in enumerate(doubled):
            np.testing.assert_array_equal(rows[i], rows[doubled.index(text)])


def test_blocks_in_one_shard_are_views_of_the_file(whole: Path) -> None:
    rows = Index.open(whole).rows
    block = rows.block(33, 60)
    assert block.base is not None
    assert not block.flags.writeable
    assert np.shares_memory(block, rows.block(32, 64))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 80), st.integers(0, 80), st.integers(0, 80))
def test_blocks_join_to_the_whole(whole: Path, a: int, b: int, c: int) -> None:
    a, b, c = sorted((a, b, c))
    rows = Index.open(whole).rows
    np.testing.assert_array_equal(np.concatenate([rows.block(a, b), rows.block(b, c)]), rows.block(0, 80)[a:c])


def test_places_outside_are_refused(whole: Path) -> None:
    index = Index.open(whole)
    for i in (-1, 80):
        with pytest.raises(ValueError, match=rf"chunk {i}: must be in 0\.\.79"):
            index.chunk(i)
    for start, end in ((-1, 3), (3, 81), (5, 4)):
        with pytest.raises(ValueError, match=r"must lie in 0\.\.80"):
            index.rows.block(start, end)


def test_packing_by_hand() -> None:
    # int8: scale 127 / 127 = 1, and half goes to even. bfloat16 keeps 8 bits: 1 + 2**-8 is half way, to even is down; 1 + 3 * 2**-8 up.
    raw, scales = pack(np.array([[127, -63.5, 0.4], [0, 0, 0]], np.float32), "int8")
    assert raw.tolist() == [[127, -64, 0], [0, 0, 0]]
    assert scales is not None
    assert scales.tolist() == [1, 0]
    assert unpack(raw, scales, "int8").tolist() == [[127, -64, 0], [0, 0, 0]]
    raw, _ = pack(np.array([[1 + 2**-8, 1 + 3 * 2**-8, -2.0]], np.float32), "bfloat16")
    assert raw.tolist() == [[0x3F80, 0x3F82, 0xC000]]
    assert unpack(raw, None, "bfloat16").tolist() == [[1, 1 + 2**-6, -2]]


@pytest.mark.parametrize(("dtype", "size"), [("bfloat16", 2), ("int8", 1)])
def test_smaller_types_stay_within_their_errors(retriever: Retriever, whole: Path, tmp_path: Path, dtype, size) -> None:
    exact = Index.open(whole).rows.block(0, 80)
    index = Index.build(retriever, CHUNKS, tmp_path / "index", dtype=dtype, shard_chunks=SHARD)
    found = Index.open(index.path, verify=True).rows.block(0, 80)
    assert found.dtype == np.float32
    bound = np.abs(exact) * 2**-8 if dtype == "bfloat16" else np.abs(exact).max(1, keepdims=True) / 127 / 2 * (1 + 1e-5)
    assert (np.abs(found - exact) <= bound).all()
    assert not np.array_equal(found, exact)
    assert (index.path / "vectors-00000.bin").stat().st_size == SHARD * 32 * size
    np.testing.assert_array_equal(np.concatenate([index.rows.block(0, 40), index.rows.block(40, 80)]), found)


def test_files_are_cut_with_their_places(retriever: Retriever, tmp_path: Path) -> None:
    folder = write_files(tmp_path / "text")
    index = Index.build(retriever, folder, tmp_path / "index", shard_chunks=4)
    names = ["a/deep/one.md", "a/empty.txt", "b.txt", "c.TXT"]
    texts = {name: (folder / name).read_text(encoding="utf-8") for name in names}
    chunks = [index.chunk(i) for i in range(len(index))]
    assert [(source.name, source.characters) for source in index.meta.sources] == [(name, len(texts[name])) for name in names]
    assert list(dict.fromkeys(chunk.source for chunk in chunks)) == ["a/deep/one.md", "b.txt", "c.TXT"]
    for source in index.meta.sources:
        own = [chunk for chunk in chunks if chunk.source == source.name]
        assert len(own) == source.chunks
        assert all(texts[source.name][chunk.start : chunk.end] == chunk.text for chunk in own)
        assert "".join("".join(chunk.text.split()) for chunk in own) == "".join(texts[source.name].split())
    one = Index.build(retriever, folder / "b.txt", tmp_path / "one")
    assert [one.chunk(i) for i in range(len(one))] == [chunk for chunk in chunks if chunk.source == "b.txt"]


TEXT = "Mr. Smith went to the garden. Mary took the milk there.\n\nWho saw her? " + "John moved to the office, and nobody saw him. " * 3


def test_a_str_is_a_text_and_a_path_is_read_everywhere(retriever: Retriever, tmp_path: Path) -> None:
    index = Index.build(retriever, TEXT, tmp_path / "text", shard_chunks=2)
    chunks = [index.chunk(i) for i in range(len(index))]
    assert len(chunks) == 6
    assert all(TEXT[chunk.start : chunk.end] == chunk.text and chunk.source is None for chunk in chunks)
    assert [(source.name, source.characters, source.chunks) for source in index.meta.sources] == [(None, len(TEXT), 6)]
    before = content(index.path)
    Index.build(retriever, TEXT, index.path, shard_chunks=2)
    assert content(index.path) == before
    with pytest.raises(ValueError, match="holds an index of another source"):
        Index.build(retriever, TEXT + "More.", index.path, shard_chunks=2)

    folder = tmp_path / "files"
    folder.mkdir()
    (folder / "one.txt").write_text(TEXT)
    (folder / "two.md").write_text("Sandra stayed. ")
    grown = index.add(retriever, folder)
    for source, expected in (
        (TEXT, chunks),
        (folder / "one.txt", [replace(chunk, source="one.txt") for chunk in chunks]),
        (folder, [grown.chunk(i) for i in range(6, len(grown))]),
    ):
        document = retriever.document(source)
        assert [document.chunk(i) for i in range(len(document))] == expected
    pick = retriever.search("Where is Sandra?", folder / "two.md", 1)[0]
    assert (pick.source, pick.start, pick.end, pick.text) == ("two.md", 0, 14, "Sandra stayed.")
    with pytest.raises(ValueError, match="absent: no such file or folder"):
        retriever.search("Where is Sandra?", folder / "absent")


def test_a_text_that_names_a_file_is_a_text_and_the_user_is_told(
    retriever: Retriever, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "one.txt").write_text(TEXT)
    name = str(tmp_path / "one.txt")
    assert name.startswith(retriever.document(name).chunk(0).text)
    assert f"taken as a text, because it is a str; to read that file or folder, give pathlib.Path({name!r})" in capsys.readouterr().out
    for text in ("Mary left.", "x" * 5000, "x" * 1000, "a\0b"):  # the last three are no possible names
        retriever.document(text)
    assert "taken as a text" not in capsys.readouterr().out


def test_sources_that_cannot_be_indexed_are_refused(retriever: Retriever, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "blank").mkdir()
    (tmp_path / "blank/a.txt").write_text("\n \n")
    (tmp_path / "latin.txt").write_bytes("Caf\u00e9.".encode("latin-1"))
    for source, message in (
        (tmp_path / "absent", "absent: no such file or folder"),
        (tmp_path / "empty", "empty: holds no file of a kind that is read"),
        (tmp_path / "blank", "blank: no text"),
        (tmp_path / "blank/a.txt", "a.txt: no text"),
        (tmp_path / "latin.txt", "latin.txt: byte 3 is 0xe9, which is not UTF-8"),
        (" \n", "the text has nothing to search"),
        ("a \ud800 b", "source: character 2 is half of a surrogate pair"),
        ([], "source holds no chunks"),
        (["a", " "], "chunk 1 = ' ': must be a text"),
        (["a", "\ud800"], "chunk 1: character 0 is half of a surrogate pair"),
    ):
        with pytest.raises(ValueError, match=message):
            Index.build(retriever, source, tmp_path / "index")
        assert not (tmp_path / "index").exists()
    with pytest.raises(ValueError, match="shard_chunks = 0"):
        Index.build(retriever, CHUNKS, tmp_path / "index", shard_chunks=0)
    with pytest.raises(ValueError, match="dtype = 'float16': must be one of float32, bfloat16, int8, int8-exact"):
        check_dtype("float16")


def test_folders_that_are_something_else_are_left_alone(retriever: Retriever, whole: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis/chapter.txt").write_text("years of work")
    for path in (tmp_path / "thesis", tmp_path / "thesis/chapter.txt"):
        with pytest.raises(ValueError, match="exists and is not an index"):
            Index.build(retriever, CHUNKS, path)
    with pytest.raises(ValueError, match="not an index"):
        Index.open(tmp_path / "thesis")
    before = content(whole)
    assert len(Index.build(retriever, CHUNKS, whole, shard_chunks=SHARD)) == 80
    for chunks in (CHUNKS[:-1], [*CHUNKS, "one more"], ["other", *CHUNKS[1:]]):
        with pytest.raises(ValueError, match="holds an index of another source"):
            Index.build(retriever, chunks, whole, shard_chunks=SHARD)
    with pytest.raises(ValueError, match="built with dtype = float32, now int8; build with float32, or into another folder"):
        Index.build(retriever, CHUNKS, whole, dtype="int8", shard_chunks=SHARD)
    assert content(whole) == before


@pytest.mark.parametrize("name", ["meta.json", *(f"{kind}-00001.{end}" for kind, end in KINDS)])
def test_damage_is_found_and_named(copy: Path, name: str) -> None:
    path = copy / name
    data = path.read_bytes()
    flipped = bytearray(data)
    flipped[len(data) // 2] ^= 1
    path.write_bytes(flipped)
    with pytest.raises(ValueError, match=name):
        Index.open(copy, verify=True)
    path.write_bytes(data[:-3])
    with pytest.raises(ValueError, match=name) as error:
        Index.open(copy)
    assert name == "meta.json" or f"has {len(data) - 3} bytes, was written with {len(data)}" in str(error.value)
    path.unlink()
    with pytest.raises(ValueError, match=name):
        Index.open(copy)


def test_another_model_is_refused(retriever: Retriever, copy: Path) -> None:
    other = small_retriever(1)
    index = Index.open(copy)
    index.check(retriever)
    names = f"model {model_hash(retriever)[:12]}, but this retriever is model {model_hash(other)[:12]}"
    for refuse in (
        lambda: index.check(other),
        lambda: index.add(other, ["new"]),
        lambda: Index.build(other, CHUNKS, copy, shard_chunks=SHARD),
    ):
        with pytest.raises(ValueError, match=names):
            refuse()
    with pytest.raises(ValueError, match=names):
        index.check(other)  # having checked the right one does not let another through


def test_the_model_hash_is_of_what_a_vector_depends_on(retriever: Retriever, tmp_path: Path) -> None:
    base = model_hash(retriever)
    assert model_hash(Retriever.from_pretrained(write_small_export(tmp_path / "export"))) == base

    def with_leaf(encoder: str) -> Retriever:
        params = {"params": dict(retriever.params["params"])}
        params["params"][encoder] = jax.tree.map(lambda leaf: leaf * 1.5, params["params"][encoder])
        return Retriever(SMALL, retriever.embedder, params, retriever.tokenizer)

    assert model_hash(with_leaf("state_encoder")) == base
    other_tokenizer = type(retriever.tokenizer)(retriever.tokenizer._tokenizer.from_str(retriever.tokenizer._tokenizer.to_str()))
    other_tokenizer._tokenizer.add_tokens(["xyzzy"])
    others = [
        with_leaf("action_encoder"),
        Retriever(changed(SMALL, data={"chunk_tokens": 15}), retriever.embedder, retriever.params, retriever.tokenizer),
        Retriever(SMALL, retriever.embedder.clone(divisor=5.0), retriever.params, retriever.tokenizer),
        Retriever(SMALL, retriever.embedder.clone(pooling="cls"), retriever.params, retriever.tokenizer),
        Retriever(SMALL, retriever.embedder, retriever.params, other_tokenizer),
    ]
    assert len({base, *map(model_hash, others)}) == 6


def test_add_goes_on_in_new_shards(retriever: Retriever, copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = Index.open(copy)
    asked: list[str] = []
    embed = retriever.embed_chunks
    monkeypatch.setattr(retriever, "embed_chunks", lambda texts: (asked.extend(texts), embed(texts))[1])
    grown = old.add(retriever, ["brand new", CHUNKS[5], CHUNKS[70]])
    assert asked == ["brand new"]
    assert (len(old), len(grown), grown.rows.parts()[-1]) == (80, 83, (80, 83))
    np.testing.assert_array_equal(grown.rows.block(0, 80), old.rows.block(0, 80))
    np.testing.assert_array_equal(grown.rows.block(81, 83), old.rows.block(0, 80)[[5, 70]])
    folder = write_files(tmp_path / "text")
    grown = grown.add(retriever, folder)
    assert [source.name for source in grown.meta.sources][:3] == [None, None, "a/deep/one.md"]
    assert str(grown.add(retriever, folder / "b.txt").changes).startswith(
        "documents: 0 added, 0 replaced, 0 removed, 1 unchanged; texts embedded: 0"
    )
    (folder / "b.txt").write_text("Now another text.")
    with pytest.raises(ValueError, match=r"already has 'b\.txt', with other text or metadata; `qrag index add --replace`"):
        grown.add(retriever, folder / "b.txt")
    Index.open(copy, verify=True)


def test_one_writer_at_a_time(retriever: Retriever, copy: Path) -> None:
    index = Index.open(copy)
    with only_writer(copy):
        with pytest.raises(Busy, match="is writing to it; run the same command again"):
            index.add(retriever, ["new"])
        with pytest.raises(Busy, match="is writing to it"):
            Index.build(retriever, CHUNKS, copy, shard_chunks=32)
        assert len(Index.open(copy, verify=True)) == len(CHUNKS)  # readers need no lock
    old = index
    index.add(retriever, ["new"])
    assert len(old.add(retriever, ["newer"])) == len(CHUNKS) + 2  # an object that does not know the addition loses nothing


def test_vectors_that_are_not_finite_are_refused(retriever: Retriever, tmp_path: Path) -> None:
    params = jax.tree.map(lambda leaf: leaf * np.nan, retriever.params)
    with pytest.raises(ValueError, match="is not finite"):
        Index.build(Retriever(SMALL, retriever.embedder, params, retriever.tokenizer), CHUNKS, tmp_path / "index")
