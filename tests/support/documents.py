"""Small real files of the formats that an index reads, made by the libraries of these formats or by hand."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from xml.sax.saxutils import escape

CONTAINER = (
    '<container xmlns="urn:oasis:names:tc:opendocument:xmlns:container" version="1.0"><rootfiles>'
    '<rootfile full-path="OEBPS/book.opf" media-type="application/oebps-package+xml"/></rootfiles></container>'
)
SHADES = bytes(range(0, 256, 16))  # a picture of 4 x 4 grey pixels


def write_pdf(path: Path, pages: Sequence[Sequence[str] | None], password: str | None = None) -> Path:
    """A page for each list of lines; None: a page that is a picture."""
    from reportlab.lib.utils import ImageReader
    from reportlab.pdfgen.canvas import Canvas

    canvas = Canvas(str(path), encrypt=password, invariant=1)
    for lines in pages:
        if lines is None:
            from PIL import Image

            canvas.drawImage(ImageReader(Image.frombytes("L", (4, 4), SHADES)), 72, 600, 100, 100)
        for i, line in enumerate(lines or ()):
            canvas.drawString(72, 720 - 20 * i, line)
        canvas.showPage()
    canvas.save()
    return path


def write_docx(path: Path) -> Path:
    """A title, two sections, a table and a list."""
    import docx

    document = docx.Document()
    document.add_heading("Minutes", 0)
    document.add_paragraph("The board met on Monday.")
    document.add_heading("Budget", 1)
    document.add_paragraph("Daniel asked for two ovens.")
    table = document.add_table(2, 2)
    for cell, text in zip((cell for row in table.rows for cell in row.cells), ("item", "price", "oven", "900"), strict=True):
        cell.text = text
    document.add_heading("Staff", 1)
    for name in ("Mary", "John"):
        document.add_paragraph(name, style="List Bullet")
    document.save(str(path))
    return path


def write_epub(path: Path, chapters: Mapping[str, str], more: Mapping[str, str] | None = None) -> Path:
    """Chapters in XHTML by the names of their files, in reading order; ``more``: other members of the archive."""
    items = "".join(f'<item id="c{i}" href="{name.replace(" ", "%20")}"/>' for i, name in enumerate(chapters))
    order = "".join(f'<itemref idref="c{i}"/>' for i in range(len(chapters)))
    package = f'<package xmlns="http://www.idpf.org/2007/opf"><manifest>{items}</manifest><spine>{order}</spine></package>'
    members = {"mimetype": "application/epub+zip", "META-INF/container.xml": CONTAINER, "OEBPS/book.opf": package}
    members |= {f"OEBPS/{name}": page for name, page in reversed(chapters.items())}
    return write_zip(path, members | dict(more or {}))


def chapter(body: str) -> str:
    return (
        f'<?xml version="1.0" encoding="utf-8"?><html xmlns="http://www.w3.org/1999/xhtml"><head><title/></head><body>{body}</body></html>'
    )


def write_zip(path: Path, members: Mapping[str, str | bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def word_document(body: str, before: str = "") -> dict[str, str]:
    """The members of a .docx file whose text is ``body`` (XML); ``before``: a document type."""
    main = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"
    office = "http://schemas.openxmlformats.org/officeDocument/2006/relationships/officeDocument"
    return {
        "_rels/.rels": '<Relationships xmlns="http://schemas.openxmlformats.org/package/2006/relationships">'
        f'<Relationship Id="r1" Type="{office}" Target="word/document.xml"/></Relationships>',
        "word/document.xml": f'{before}<w:document xmlns:w="{main}"><w:body>{body}</w:body></w:document>',
    }


def word_paragraph(text: str) -> str:
    return f"<w:p><w:r><w:t>{escape(text)}</w:t></w:r></w:p>"


def write_one_of_each(folder: Path) -> Path:
    """A folder with one file of each format, and one that is not read."""
    folder.mkdir(exist_ok=True)
    write_pdf(folder / "report.pdf", [["Mary kept the ledger.", "It was red."], [], ["John moved the ledger to the kitchen."]])
    write_docx(folder / "minutes.docx")
    write_epub(
        folder / "book.epub",
        {"b.xhtml": chapter("<h1>One</h1><p>Fred left.</p>"), "a 2.xhtml": chapter("<p>He came back.</p>")},
    )
    (folder / "page.html").write_text("<title>x</title><h1>Kitchen</h1><p>It is on the <b>ground</b> floor.<h2>Ovens</h2><p>There are two.")
    (folder / "people.csv").write_text('name;room;note\nAnn;garden;"likes; tea"\nBob;;late;extra\n')
    (folder / "facts.json").write_text('[{"who": "Ann", "at": {"room": "office", "floor": 2}, "tags": ["a", "b"], "gone": null}, "Plain."]')
    (folder / "log.jsonl").write_text('{"event": "opened", "hour": 9}\n\n{"event": "closed", "by": [{"name": "Ann"}, {"name": "Bob"}]}\n')
    (folder / "notes.md").write_text("---\nyear: 2024\n---\nIntro here.\n\n# Guide\n\nRead this.\n")
    (folder / "plain.txt").write_text("Mary went to the garden. John slept.")
    (folder / "old.doc").write_text("not read")
    return folder
