"""A folder as people have it, with files of every format: what the index holds of it, and what happens when it changes."""

from __future__ import annotations

from pathlib import Path

import pytest

from qrag_jax.retrieve import index as index_module
from qrag_jax.retrieve.folder import list_files
from qrag_jax.retrieve.formats.passages import SEPARATOR
from qrag_jax.retrieve.formats.table import is_plain, read
from qrag_jax.retrieve.index import Index
from qrag_jax.retrieve.report import index_lines
from qrag_jax.retrieve.retriever import Retriever
from tests.support.documents import write_docx, write_one_of_each, write_pdf
from tests.support.index import small_retriever

LOCKED = "is protected by a password; save a copy without one"


@pytest.fixture(scope="module")
def retriever() -> Retriever:
    return small_retriever()


@pytest.fixture(scope="module")
def built(retriever: Retriever, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Index]:
    """A folder with a file of each format, and its index by tokens, with two files that cannot be read."""
    place = tmp_path_factory.mktemp("folder")
    folder = write_one_of_each(place / "files")
    write_pdf(folder / "locked.pdf", [["Secret."]], password="x")
    (folder / "broken.docx").write_bytes(b"PK")
    return folder, Index.build(retriever, folder, place / "index", chunk_by="tokens", positions="document")


def test_each_chunk_says_where_it_stands(built: tuple[Path, Index]) -> None:
    folder, index = built
    chunks = [index.chunk(i) for i in range(len(index))]
    files = {path.name: (path, read(path)) for path in folder.iterdir() if path.name in {chunk.source for chunk in chunks}}
    for chunk in chunks:
        path, passages = files[str(chunk.source)]
        whole = path.read_text() if is_plain(path) else SEPARATOR.join(one.text for one in passages)
        assert whole[chunk.start : chunk.end] == chunk.text
        (home,) = [one for one in passages if one.start <= (chunk.start or 0) and (chunk.end or 0) <= one.start + len(one.text)]
        assert {key: value for key, value in chunk.metadata.items() if key != "year"} == home.place
    places = {(chunk.source, *chunk.metadata.items()) for chunk in chunks}
    assert {
        ("report.pdf", ("page", 1)),
        ("report.pdf", ("page", 3)),
        ("minutes.docx", ("heading", "Minutes > Budget")),
        ("book.epub", ("heading", "One")),
        ("page.html", ("heading", "Kitchen > Ovens")),
        ("people.csv", ("row", 3)),
        ("facts.json", ("row", 2)),
        ("log.jsonl", ("row", 3)),
        ("notes.md", ("year", 2024)),
        ("notes.md", ("year", 2024), ("heading", "Guide")),
        ("plain.txt",),
    } < places
    firsts = [i for i, chunk in enumerate(chunks) if i == 0 or chunk.source != chunks[i - 1].source]
    assert list(index.restarts) == firsts, "positions run through a file, whatever its pages"


def test_filters_on_places(retriever: Retriever, built: tuple[Path, Index]) -> None:
    search = lambda *filter: [pick.text for pick in retriever.search("Where is Mary?", built[1], 9, filter=filter)]
    assert search("source=*.pdf", "page=3") == ["John moved the ledger to the kitchen."]
    assert search("heading=Minutes > *") == [
        "Budget",
        "Daniel asked for two ovens.",
        "| item | price |",
        "| oven | 900 |",
        "Staff\n\n- Mary\n- John",
    ]
    assert search("source=people.csv", "row=3") == ["name: Bob; note:", "late; column", "4: extra"]


def test_what_could_not_be_read_is_listed(built: tuple[Path, Index]) -> None:
    wanted = {"broken.docx": "is damaged: no whole zip archive", "locked.pdf": LOCKED}
    lines = index_lines(Index.open(built[1].path), False)
    assert Index.open(built[1].path).meta.unread == wanted
    assert lines[-2:] == [f"not read: {name}: {reason}" for name, reason in wanted.items()]
    assert lines[-3].startswith("skipped: .doc 1; only ")
    assert [line.rpartition(", ")[0] for line in lines if line.startswith("source: ")] == [
        "source: book.epub, 1 heading, 30 characters",
        "source: facts.json, 2 rows, 56 characters",
        "source: log.jsonl, 2 rows, 67 characters",
        "source: minutes.docx, 3 headings, 121 characters",
        "source: notes.md, 1 heading, 52 characters",
        "source: page.html, 2 headings, 56 characters",
        "source: people.csv, 2 rows, 79 characters",
        "source: plain.txt, 36 characters",
        "source: report.pdf, 2 pages, 70 characters",
    ]


def test_changes_of_files(
    retriever: Retriever, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "files"
    folder.mkdir()
    write_pdf(folder / "a.pdf", [["Mary left."], ["John slept."], ["Fred stayed."]])
    write_docx(folder / "b.docx")
    index = Index.build(retriever, folder, tmp_path / "index")
    assert index.changes is not None
    assert index.changes.added == 2, "documents, not pages"
    assert str(index.sync(retriever, folder).changes) == "documents: 0 added, 0 replaced, 0 removed, 2 unchanged; texts embedded: 0"
    write_pdf(folder / "a.pdf", [["Mary left.", "She sang."], ["John slept."], ["Fred stayed."]])
    (folder / "c.csv").write_text("who\nMary\n")
    index = index.sync(retriever, folder)
    assert str(index.changes) == "documents: 1 added, 1 replaced, 0 removed, 1 unchanged; texts embedded: 2"
    moved = next(index.chunk(i) for i in range(len(index)) if index.chunk(i).text == "John slept.")
    assert (moved.start, moved.metadata) == (22, {"page": 2}), "page 2 is as it was, but stands further down"
    write_pdf(folder / "a.pdf", [["New."]], password="x")
    (folder / "c.csv").unlink()
    index = index.sync(retriever, folder)
    assert str(index.changes) == "documents: 0 added, 0 replaced, 1 removed, 2 unchanged; texts embedded: 0"
    kept = f"{LOCKED}; the index keeps the text that it had"
    assert index.meta.unread == {"a.pdf": kept}
    assert f"not read: a.pdf: {kept}" in capsys.readouterr().out
    with pytest.raises(ValueError, match=rf"a\.pdf: {kept}"):
        index.add(retriever, folder / "a.pdf")
    write_pdf(tmp_path / "a.pdf", [["Mary left again."]])
    with pytest.raises(ValueError, match=r"already has 'a\.pdf'"):
        index.add(retriever, tmp_path / "a.pdf")
    index = index.add(retriever, tmp_path / "a.pdf", replace=True)
    assert str(index.changes) == "documents: 0 added, 1 replaced, 0 removed, 0 unchanged; texts embedded: 1"
    assert index.meta.unread == {}, "it was read"
    assert {record.name for record in index.remove(["a.pdf"]).sources} == {"b.docx"}


def test_a_folder_of_which_nothing_can_be_read_is_refused(retriever: Retriever, tmp_path: Path) -> None:
    folder = tmp_path / "files"
    folder.mkdir()
    for name in ("b.pdf", "a.docx"):
        (folder / name).write_bytes(b"PK")
    with pytest.raises(ValueError, match=r"files: a\.docx: is damaged: no whole zip archive, and 1 other file cannot be read$"):
        Index.build(retriever, folder, tmp_path / "index")
    with pytest.raises(ValueError, match=r"b\.pdf: is damaged, or not a PDF file$"):
        retriever.search("Where?", folder / "b.pdf")
    assert not (tmp_path / "index/meta.json").exists()


def test_pages_that_are_pictures_are_said(retriever: Retriever, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_pdf(tmp_path / "a.pdf", [["Mary left."], None, ["John slept."], None])
    picks = retriever.search("Where?", tmp_path / "a.pdf", 4)
    assert [pick.metadata for pick in picks] == [{"page": 1}, {"page": 3}]
    assert capsys.readouterr().out == "not read: a.pdf: pages that are pictures without text (2, 4); OCR makes them readable\n"


def test_broken_lines_of_a_file_are_said_and_the_others_read(
    retriever: Retriever, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "files").mkdir()
    (tmp_path / "files/a.jsonl").write_text('{"text": "Mary left."}\n{"text": \n{"text": "John slept."}\n')
    index = Index.build(retriever, tmp_path / "files", tmp_path / "index")
    assert [index.chunk(i).metadata for i in range(len(index))] == [{"row": 1}, {"row": 3}]
    assert index.meta.unread == {"a.jsonl": "line 2: not JSON: Expecting value at character 9"}
    assert "not read: a.jsonl: line 2: not JSON: Expecting value at character 9\n" in capsys.readouterr().out
    assert index.sync(retriever, tmp_path / "files").meta.unread == index.meta.unread


def test_metadata_beside_any_file(retriever: Retriever, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A .json file is metadata if it is named after another file, else a document."""
    folder = tmp_path / "files"
    folder.mkdir()
    write_pdf(folder / "a.pdf", [["Mary left."]])
    (folder / "a.pdf.json").write_text('{"year": 2024, "page": 77}')
    (folder / "b.json").write_text('["John slept."]')
    assert [(file.name, file.sidecar is not None) for file in list_files(folder)[0]] == [("a.pdf", True), ("b.json", False)]
    index = Index.build(retriever, folder, tmp_path / "index")
    assert [index.chunk(i).metadata for i in range(2)] == [{"year": 2024, "page": 1}, {"row": 1}]
    assert "a.pdf: its metadata 'page' are not used; here they are the place of each passage" in capsys.readouterr().out


def test_the_reading_process_ends_when_a_build_fails(retriever: Retriever, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Warnings are errors here: a process that is left running would be one."""
    write_pdf(tmp_path / "a.pdf", [["Mary left."]])
    monkeypatch.setattr(index_module, "rewrite", lambda path, meta, plan, *rest: next(iter(plan)) and 1 / 0)
    with pytest.raises(ZeroDivisionError):
        Index.build(retriever, tmp_path / "a.pdf", tmp_path / "index")
