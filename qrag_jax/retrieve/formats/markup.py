"""Reads .html files. Each heading begins a passage, with the text below it.

A paragraph is a block between empty lines, a list item a line after "- ", a table row a line between "|". Scripts, styles, menus (nav) and
hidden elements are left out. Pictures are not read.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from qrag_jax.retrieve.formats.passages import SEPARATOR, Headings, Passage, Place, Unreadable, joined, not_utf8

LEFT_OUT = frozenset(("head", "script", "style", "noscript", "template", "nav", "iframe", "object", "svg", "-comment", "!doctype"))
BLOCKS = frozenset(
    (
        *("address", "article", "aside", "blockquote", "body", "caption", "center", "dd", "details", "dialog", "div", "dl", "dt"),
        *("fieldset", "figcaption", "figure", "footer", "form", "header", "hr", "html", "legend", "li", "main", "ol", "p", "section"),
        *("summary", "table", "tbody", "tfoot", "thead", "tr", "ul"),
    )
)
LAYOUT = "table, h1, h2, h3, h4, h5, h6"
"""A table row that holds one of them lays out the page; it is no row of data."""
BREAK = "\v"
_ENCODING = re.compile(rb"""(?:charset|encoding)\s*=\s*["']?\s*([\w.:-]+)""", re.IGNORECASE)
_DECLARED_WITHIN = 2048  # bytes
_MARKS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))
# As browsers do: text in the smaller set is often in Microsoft's extension of it, and a page that says so in ASCII is not UTF-16.
_MEANT = {"iso8859-1": "cp1252", "ascii": "cp1252", "utf-16": "utf-8", "utf-16-le": "utf-8", "utf-16-be": "utf-8"}


def read_html(path: Path) -> list[Passage]:
    return passages_of([decoded(path.read_bytes())], "has no text; if a script fills the page, save it from a browser after it has loaded")


def decoded(data: bytes) -> str:
    """The text of a page, in the encoding that its byte-order mark or its first lines name, else UTF-8. Raises Unreadable."""
    name = next((name for mark, name in _MARKS if data.startswith(mark)), None)
    declared = None if name else _ENCODING.search(data[:_DECLARED_WITHIN])
    try:
        if declared:
            codec = codecs.lookup(declared[1].decode("ascii")).name
            name = _MEANT.get(codec, codec)
        return data.decode(name or "utf-8").lstrip("\ufeff")
    except LookupError as error:
        raise Unreadable(f"names an encoding that is unknown: {error}; convert the file to UTF-8") from error
    except UnicodeDecodeError as error:
        if name in (None, "utf-8"):
            raise not_utf8(error) from error
        raise Unreadable(f"byte {error.start} is not {name}, the encoding that it names; convert the file to UTF-8") from error


def passages_of(pages: Iterable[str], if_empty: str) -> list[Passage]:
    """The passages of HTML pages that follow each other. Raises Unreadable, saying ``if_empty``, when they hold no text."""
    from selectolax.lexbor import LexborHTMLParser

    writer = _Writer()
    for page in pages:
        root = LexborHTMLParser(page).root
        if root is not None:
            _walk(root, writer)
    if not (found := writer.finish()):
        raise Unreadable(if_empty)
    return found


def _walk(root: Any, writer: _Writer) -> None:
    """Gives a tree to a writer in document order; without recursion, because hostile pages are nested as deeply as they like."""
    stack = [(root, True)]
    while stack:
        node, enters = stack.pop()
        tag = node.tag
        if tag == "-text":
            writer.text(node.text_content or "")
        elif not enters:
            writer.leave(tag)
        elif tag not in LEFT_OUT and "hidden" not in node.attributes:
            writer.enter(tag, node)
            stack.append((node, False))
            stack.extend((child, True) for child in reversed(list(node.iter(include_text=True))))


class _Writer:
    """Text of elements in document order -> passages. ``row``: the cells so far of a table row, in which blocks are only spaces."""

    def __init__(self) -> None:
        self.headings = Headings()
        self.parts: list[tuple[str, Place]] = []
        self.blocks: list[str] = []
        self.words: list[str] = []
        self.mark = ""
        self.row: list[str] | None = None
        self.preformatted = 0

    def text(self, text: str) -> None:
        self.words.append(text if self.preformatted else text.replace(BREAK, " "))

    def enter(self, tag: str, node: Any) -> None:
        if tag == "br":
            self.words.append("\n" if self.preformatted else BREAK)
        elif tag == "tr" and self.row is None and node.css_first(LAYOUT) is None:
            self._end_block()
            self.row = []
        elif self.row is not None:
            self.words.append(" ")
        elif tag in BLOCKS or _level(tag) or tag in ("td", "th"):
            self._end_block()
            self.mark = "- " if tag == "li" else self.mark
        elif tag == "pre":
            self._end_block()
            self.preformatted += 1

    def leave(self, tag: str) -> None:
        if self.row is not None:
            if tag in ("td", "th"):
                self.row.append(self._line())
            elif tag == "tr":
                if any(self.row):
                    self._add(f"| {' | '.join(self.row)} |")
                self.row = None
            elif tag in BLOCKS:
                self.words.append(" ")
        elif tag == "pre" and self.preformatted:
            self.preformatted -= 1
            text = "".join(self.words)
            self.words.clear()
            if text.strip():
                self._add(text.strip("\n").rstrip())
        elif level := _level(tag):
            if title := self._line():
                self._end_passage()
                self.headings.enter(level, title)
                self._add(title)
        elif tag in BLOCKS or tag in ("td", "th"):
            self._end_block()
            self.mark = "" if tag == "li" else self.mark

    def finish(self) -> list[Passage]:
        self._end_block()
        self._end_passage()
        return joined(self.parts)

    def _line(self) -> str:
        """The words so far, with one space between them."""
        line = " ".join("".join(self.words).split())
        self.words.clear()
        return line

    def _end_block(self) -> None:
        lines = [line for part in "".join(self.words).split(BREAK) if (line := " ".join(part.split()))]
        self.words.clear()
        if lines:
            self._add(self.mark + "\n".join(lines))
            self.mark = ""

    def _add(self, block: str) -> None:
        """Items of a list and rows of a table follow each other without an empty line."""
        close = bool(self.blocks) and block[:2] in ("- ", "| ") and self.blocks[-1].startswith(block[:2])
        self.blocks += ["\n" if close else SEPARATOR, block]

    def _end_passage(self) -> None:
        if self.blocks:
            self.parts.append(("".join(self.blocks), self.headings.place))
            self.blocks.clear()


def _level(tag: str) -> int:
    """1 to 6 for h1 to h6, else 0."""
    return int(tag[1]) if len(tag) == 2 and tag[0] == "h" and tag[1] in "123456" else 0
