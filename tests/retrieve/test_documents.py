"""Documents of an index: they come, change and go; their metadata, filters on it, and texts that several of them hold."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from qrag_jax import Text
from qrag_jax.integrations import metadata
from qrag_jax.retrieve.index import Index
from qrag_jax.retrieve.retriever import Retriever
from tests.support.index import small_retriever


@pytest.fixture(scope="module")
def retriever() -> Retriever:
    return small_retriever()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "docs"
    (folder / "reports").mkdir(parents=True)
    (folder / "a.txt").write_text("Mary went to the garden. John slept.")
    (folder / "reports/b.md").write_text("---\nyear: 2024\ntags: [x, y]\nday: 2024-05-01\n---\nJohn slept. Daniel left the office.")
    (folder / "reports/c.md").write_text("---\nSandra stayed there.\n---\nThen John slept.")
    (folder / "a.txt.json").write_text('{"year": 2023, "draft": true}')
    return folder


def asked(retriever: Retriever, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The texts that are embedded from now on."""
    found: list[str] = []
    embed = retriever.embed_chunks
    monkeypatch.setattr(retriever, "embed_chunks", lambda texts, **options: (found.extend(texts), embed(texts, **options))[1])
    return found


def test_metadata_of_files(retriever: Retriever, folder: Path, tmp_path: Path) -> None:
    Index.build(retriever, folder, tmp_path / "index")
    index = Index.open(tmp_path / "index", verify=True)
    assert {record.name: record.metadata for record in index.sources} == {
        "a.txt": {"year": 2023, "draft": True},
        "reports/b.md": {"year": 2024, "tags": ["x", "y"], "day": "2024-05-01"},
        "reports/c.md": {},
    }
    assert index.meta.skipped == {}, "a sidecar is not skipped: it is used"
    chunks = [index.chunk(i) for i in range(len(index))]
    assert not any("year" in chunk.text for chunk in chunks), "front matter is in no chunk"
    assert any("Sandra stayed there." in chunk.text for chunk in chunks), "text between two rules is text"
    for chunk in chunks:
        assert (folder / str(chunk.source)).read_text()[chunk.start : chunk.end] == chunk.text
    (folder / "a.txt.json").write_text("[1]")
    with pytest.raises(ValueError, match=r"a\.txt\.json: the metadata of a\.txt must be a JSON object"):
        index.sync(retriever, folder)


def test_sync_embeds_only_what_is_new(retriever: Retriever, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = Index.build(retriever, folder, tmp_path / "index", shard_chunks=3)
    before = [old.chunk(i) for i in range(len(old))], old.rows.block(0, len(old)).copy()
    (folder / "a.txt").write_text("Mary went to the garden. Fred arrived.")
    (folder / "reports/b.md").unlink()
    (folder / "0.txt").write_text("Daniel left the office.")
    found = asked(retriever, monkeypatch)
    index = old.sync(retriever, folder)
    assert found == ["Fred arrived."]
    assert str(index.changes) == "documents: 1 added, 1 replaced, 1 removed, 1 unchanged; texts embedded: 1"
    monkeypatch.undo()
    fresh = Index.build(retriever, folder, tmp_path / "fresh", shard_chunks=3)
    assert [index.chunk(i) for i in range(len(index))] == [fresh.chunk(i) for i in range(len(fresh))]
    np.testing.assert_allclose(index.rows.block(0, len(index)), fresh.rows.block(0, len(fresh)), atol=1e-6)
    assert index.meta.sources == fresh.meta.sources
    Index.open(index.path, verify=True)
    assert ([old.chunk(i) for i in range(len(old))], old.rows.block(0, len(old)).tolist()) == (before[0], before[1].tolist())
    assert str(index.sync(retriever, folder).changes) == "documents: 0 added, 0 replaced, 0 removed, 3 unchanged; texts embedded: 0"
    kept = index.remove(["reports/c.md"])
    assert [record.name for record in kept.sources] == ["0.txt", "a.txt"]
    named = {file.name for shard in kept.meta.shards for file in shard.files.values()}
    assert {path.name for path in kept.path.iterdir()} == {"meta.json", *named}
    with pytest.raises(ValueError, match=r"has no document 'a\.tx'; did you mean 'a\.txt'\?"):
        kept.remove(["a.tx"])


def test_filters(retriever: Retriever, folder: Path, tmp_path: Path) -> None:
    index = Index.build(retriever, folder, tmp_path / "index")
    search = lambda filter: {pick.source for pick in retriever.search("Where is Mary?", index, 9, filter=filter)}
    assert search(["source=reports/*"]) == {"reports/b.md", "reports/c.md"}
    assert search(["year=202?", "draft=true"]) == search({"year": 2023}) == {"a.txt"}
    assert search({"tags": "y"}) == {"reports/b.md"}
    for given, message in (
        (["yaer=2024"], "filter = 'yaer': unknown; known: source, day, draft, tags, year; did you mean 'year'"),
        (["year=2031"], "filter year=2031: no document has that; year is 2023, 2024"),
        (["year=2024", "draft=true"], "nothing is left to search"),
        (["year"], "filter = 'year': must be KEY=VALUE"),
        ("year=2024", "must be a list of conditions"),
    ):
        with pytest.raises(ValueError, match=message):
            search(given)


@pytest.mark.parametrize("beam", [1, 2])
def test_a_text_of_several_documents_is_picked_once(retriever: Retriever, tmp_path: Path, beam: int) -> None:
    documents = [
        Text("John slept. Mary went to the garden.", "a.txt", {"year": 2023}),
        Text("Sandra stayed. John slept. John slept.", "b.txt"),
    ]
    index = Index.build(retriever, documents, tmp_path / "index")
    assert (index.equals(0), index.equals(3), index.equals(4)) == ((3, 4), (0,), (0,))
    for source in (index, retriever.document(documents)):
        for picks in (
            retriever.search("Where is John?", source, 4, beam=beam),
            [step.pick for step in retriever.stream("Where is John?", source, 4, beam=beam)],
        ):
            slept = [pick for pick in picks if pick.text == "John slept."]
            assert len({pick.source for pick in slept}) == 1
            assert {other.source for other in slept[0].also} == {"a.txt", "b.txt"} - {slept[0].source}
            assert sorted(metadata(slept[0])["sources"]) == ["a.txt", "b.txt"]
            assert len(slept) == (1 if slept[0].source == "a.txt" else 2), "both places in b.txt are its own"


def test_a_filter_on_a_text_of_several_documents(retriever: Retriever, tmp_path: Path) -> None:
    documents = [Text("John slept. Mary left.", f"{name}.txt", {"year": year}) for name, year in (("a", 2023), ("b", 2024), ("c", 2024))]
    index = Index.build(retriever, documents, tmp_path / "index")
    for source in (index, retriever.document(documents)):
        picks = retriever.search("Where is John?", source, 9, filter=["year=2024", "source=[bc].txt"])
        assert sorted(pick.text for pick in picks) == ["John slept.", "Mary left."], "each text once"
        for pick in picks:
            assert pick.source in ("b.txt", "c.txt")
            assert {pick.source, *(other.source for other in pick.also)} == {"a.txt", "b.txt", "c.txt"}, "it is said where else it stands"


def test_documents_of_frameworks_keep_their_metadata(retriever: Retriever, tmp_path: Path) -> None:
    given = [SimpleNamespace(page_content=f"Page {i}.", metadata={"source": "a.pdf", "page": i}) for i in range(3)]
    index = Index.build(retriever, given, tmp_path / "index")
    assert index.chunk(2).metadata == {"page": 2}
    assert index.sync(retriever, given).changes.unchanged == 1, "pages are parts of one document"
    with pytest.raises(ValueError, match="metadata 'x' is of type object: must be a text"):
        index.add(retriever, [SimpleNamespace(page_content="Page.", metadata={"x": object()})])
