"""Files that cannot be read: each has its reason in one line, whatever the file does; the others are read."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from qrag_jax.retrieve.formats import archives, table
from qrag_jax.retrieve.formats.passages import Passage, Unreadable
from qrag_jax.retrieve.formats.process import FileReader
from qrag_jax.retrieve.formats.table import read
from tests.support.documents import chapter, word_document, word_paragraph, write_docx, write_epub, write_pdf, write_zip

LAUGHS = (
    "<!DOCTYPE d [<!ENTITY a0 'ha'>" + "".join(f"<!ENTITY a{i} '{f'&a{i - 1};' * 10}'>" for i in range(1, 11)) + "]>",
    "<w:p><w:r><w:t>&a10;</w:t></w:r></w:p>",
)
LOCKED = '<encryption xmlns:e="x"><e:CipherReference URI="OEBPS/a.xhtml"/></encryption>'


def reason(path: Path) -> str:
    with pytest.raises(Unreadable) as refused:
        read(path)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def read_or_reason(path: Path) -> str:
    try:
        return " ".join(one.text for one in read(path))
    except Unreadable as refused:
        return str(refused)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.pdf", b"%PDF-1.7 and nothing", "is damaged, or not a PDF file"),
        ("a.pdf", b"", "is damaged, or not a PDF file"),
        ("a.docx", bytes.fromhex("d0cf11e0a1b11ae1") + b"x" * 600, "is protected by a password, or is an old .doc file"),
        ("a.docx", b"PK\x03\x04 and nothing", "is damaged: no whole zip archive"),
        ("a.epub", b"not a zip", "is damaged: no whole zip archive"),
        (
            "a.html",
            b"<body><script>document.write('all')</script><noscript>Turn JavaScript on.</noscript>",
            "has no text; if a script fills",
        ),
        ("a.html", b"", "has no text"),
        ("a.html", b"<p>Caf\xe9", "byte 6 is 0xe9, which is not UTF-8; convert the file to UTF-8"),
        ("a.html", b"<meta charset=cp932><p>\x81\xff", "byte 23 is not cp932, the encoding that it names"),
        ("a.html", b"<meta charset=klingon><p>x", "names an encoding that is unknown: unknown encoding: klingon"),
        ("a.txt", b"Caf\xe9", "byte 3 is 0xe9, which is not UTF-8"),
        ("a.md", b"# Caf\xe9", "byte 5 is 0xe9, which is not UTF-8"),
        ("a.csv", b"a,b\n1,\xe9\n", "byte 6 is 0xe9, which is not UTF-8"),
        ("a.csv", b"only,names\n", "has no text"),
        ("a.json", b'{"a": ', "is damaged: not JSON: "),
        ("a.json", b"[" * 100_000, "is damaged: nested more than 64 levels deep"),
        ("a.json", b"[null, {}]", "has no text"),
        ("a.jsonl", b'{"a": 1\n{"a": \n', "line 1: not JSON: Expecting ',' delimiter at character 8; line 2: not JSON: "),
        ("a.jsonl", b'{"a": "\xe9"}', "line 1: not JSON: not UTF-8"),
    ],
)
def test_damaged_files_have_a_reason(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    assert reason(tmp_path / name).startswith(message)


def test_locked_and_scanned_files_have_a_reason(tmp_path: Path) -> None:
    assert reason(write_pdf(tmp_path / "a.pdf", [["Secret."]], password="x")) == "is protected by a password; save a copy without one"
    scanned = "holds pictures of 2 pages and no text; OCR makes it readable, for example ocrmypdf"
    assert reason(write_pdf(tmp_path / "b.pdf", [None, None])) == scanned
    assert reason(write_pdf(tmp_path / "c.pdf", [[]])) == "has no text"
    page = {"a.xhtml": chapter("<p>Secret.</p>")}
    assert reason(write_epub(tmp_path / "a.epub", page, {"META-INF/encryption.xml": LOCKED})) == "is protected against copying (DRM)"
    fonts = {"META-INF/encryption.xml": LOCKED.replace("a.xhtml", "font.otf")}
    assert read(write_epub(tmp_path / "b.epub", page, fonts)) == [Passage("Secret.")], "only a font is scrambled"
    assert reason(write_zip(tmp_path / "c.epub", {"a": "b"})) == "is damaged: holds no META-INF/container.xml"
    assert reason(write_zip(tmp_path / "c.docx", {"a": "b"})).startswith("is damaged: ")


def test_archives_that_unpack_to_too_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = write_zip(tmp_path / "a.docx", word_document(word_paragraph("0" * 2_000_000)))
    assert bomb.stat().st_size < 10_000
    assert len(read(bomb)[0].text) == 2_000_000
    monkeypatch.setattr(archives, "LARGEST", 2**20)
    assert reason(bomb) == "is 2 MB when unpacked; at most 1 MB are read"
    data = bomb.read_bytes()
    at = data.rindex(b"PK\x01\x02") + 24  # the size when unpacked, in the directory at the end
    bomb.write_bytes(data[:at] + (1000).to_bytes(4, "little") + data[at + 4 :])
    assert reason(bomb).startswith("is damaged: "), "one that lies about its size is unpacked up to that size"
    monkeypatch.setattr(table, "LARGEST", 1000)
    assert reason(bomb) == "is 0 MB; at most 0 MB of such a file are read"


def test_entities_of_xml_neither_grow_nor_reach_other_files(tmp_path: Path) -> None:
    assert reason(write_zip(tmp_path / "a.docx", word_document(LAUGHS[1], LAUGHS[0]))).startswith("is damaged: ")
    (tmp_path / "secret.txt").write_text("The secret.")
    outside = f"<!DOCTYPE d [<!ENTITY e SYSTEM '{(tmp_path / 'secret.txt').as_uri()}'>]>"
    body = word_paragraph("Before.") + "<w:p><w:r><w:t>&e;</w:t></w:r></w:p>"
    assert "secret." not in read_or_reason(write_zip(tmp_path / "b.docx", word_document(body, outside)))
    laughing = chapter("<p>x</p>").replace("<html", LAUGHS[0].replace("DOCTYPE d", "DOCTYPE html") + "<html").replace("x<", "&a10;<")
    assert len(read_or_reason(write_epub(tmp_path / "b.epub", {"a.xhtml": laughing}))) < 1000


@pytest.mark.parametrize(
    ("name", "package"), [("a.pdf", "pypdfium2"), ("a.docx", "mammoth"), ("a.html", "selectolax"), ("a.epub", "selectolax")]
)
def test_a_missing_package_is_named(name: str, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, f"{package}.lexbor", raising=False)
    if name == "a.docx":
        write_docx(tmp_path / name)
    elif name == "a.epub":
        write_epub(tmp_path / name, {"a.xhtml": chapter("<p>x</p>")})
    else:
        (tmp_path / name).write_bytes(b"x")
    assert reason(tmp_path / name) == f"needs the package {package}: pip install 'qrag-jax[files]'"


def test_a_file_that_ends_the_process_costs_one_line(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(["x"]))
    with FileReader() as reader:
        assert reader.read(tmp_path / "a.json") == [Passage("x", {"row": 1})]
        assert reader._process is not None
        reader._process.kill()
        reader._process.wait()
        with pytest.raises(Unreadable, match=r"ended the process that read it \(exit code -9\)"):
            reader.read(tmp_path / "a.json")
        assert reader.read(tmp_path / "a.json") == [Passage("x", {"row": 1})], "in a new process"
        with pytest.raises(Unreadable, match="cannot be read: No such file or directory"):
            reader.read(tmp_path / "b.json")


@pytest.mark.slow
@pytest.mark.quick
def test_a_file_that_takes_forever_is_given_up(tmp_path: Path) -> None:
    """The parser needs quadratic time for such a page."""
    (tmp_path / "a.html").write_text("<div>" * 1_000_000 + "x")
    (tmp_path / "b.html").write_text("<p>Text")
    with FileReader(seconds=5) as reader:
        with pytest.raises(Unreadable, match="takes longer than 5 s to read"):
            reader.read(tmp_path / "a.html")
        assert reader.read(tmp_path / "b.html") == [Passage("Text")]


@pytest.mark.slow
@pytest.mark.quick
def test_a_file_that_fills_the_memory_is_given_up(tmp_path: Path) -> None:
    """15 MB of JSON whose tree takes 300 MB."""
    (tmp_path / "a.json").write_text(f"[{'[],' * 5_000_000}[]]")
    with FileReader(memory=2**28) as reader, pytest.raises(Unreadable, match="needs more memory than a file may take"):
        reader.read(tmp_path / "a.json")
