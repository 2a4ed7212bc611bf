"""Reads .pdf files by PDFium. Each page is a passage; pages are counted from 1."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from qrag_jax.retrieve.formats.passages import Passage, Place, Unreadable, joined

_HYPHEN = re.compile("[\x02\ufffe]")  # how PDFium marks a word that was divided at the end of a line; it joins the halves itself


def read_pdf(path: Path) -> list[Passage]:
    """A page of pictures gives an empty passage; an empty page gives none. Raises Unreadable on an encrypted file and on one without
    any text."""
    import pypdfium2
    import pypdfium2.raw as raw

    try:
        document = pypdfium2.PdfDocument(path)
    except pypdfium2.PdfiumError as error:
        if error.err_code == raw.FPDF_ERR_PASSWORD:
            raise Unreadable("is protected by a password; save a copy without one") from error
        raise Unreadable("is damaged, or not a PDF file") from error

    def pages() -> Iterator[tuple[str, Place]]:
        for number in range(len(document)):
            page = document[number]
            text_page = page.get_textpage()
            text = _HYPHEN.sub("", text_page.get_text_bounded()).replace("\r\n", "\n")
            if text.strip() or next(page.get_objects([raw.FPDF_PAGEOBJ_IMAGE], max_depth=3), None):
                yield text, {"page": number + 1}
            text_page.close()
            page.close()

    with document:
        passages = joined(pages())
    if passages and not any(passage.text for passage in passages):
        raise Unreadable(f"holds pictures of {len(passages):,} pages and no text; OCR makes it readable, for example ocrmypdf")
    return passages
