"""Reads .html files. Each heading begins a passage, with the text below it.

A paragraph is a block between empty lines, a list item a line after "- ", a table row a line between "|". Scripts, styles, menus (nav),
buttons and hidden elements are left out. Pictures are not read. Of a page that marks its main content, only that is read
(:func:`read_html`).
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from qrag_jax.retrieve.formats.passages import SEPARATOR, Headings, Passage, Place, Unreadable, joined, not_utf8

LEFT_OUT = frozenset(
    (
        *("head", "script", "style", "noscript", "template", "nav", "iframe", "object", "svg", "-comment", "!doctype"),
        *("button", "select", "datalist"),
    )
)
LEFT_OUT_ROLES = frozenset(("navigation", "search"))
AROUND = frozenset(("aside", "complementary", "contentinfo", "footer"))
"""Elements and roles around the content of a page. Inside a section or an article they are part of it."""
HEADINGS = "h1, h2, h3, h4, h5, h6"
BLOCKS = frozenset(
    (
        *("address", "article", "aside", "blockquote", "body", "caption", "center", "dd", "details", "dialog", "div", "dl", "dt"),
        *("fieldset", "figcaption", "figure", "footer", "form", "header", "hr", "html", "legend", "li", "main", "ol", "p", "section"),
        *("summary", "table", "tbody", "tfoot", "thead", "tr", "ul"),
    )
)
LAYOUT = f"table, {HEADINGS}"
"""A table row that holds one of them lays out the page; it is no row of data."""
BREAK = "\v"
_ENCODING = re.compile(rb"""(?:charset|encoding)\s*=\s*["']?\s*([\w.:-]+)""", re.IGNORECASE)
_DECLARED_WITHIN = 2048  # bytes
_MARKS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))
# As browsers do: text in the smaller set is often in Microsoft's extension of it, and a page that says so in ASCII is not UTF-16.
_MEANT = {"iso8859-1": "cp1252", "ascii": "cp1252", "utf-16": "utf-8", "utf-16-le": "utf-8", "utf-16-be": "utf-8"}


def read_html(path: Path) -> list[Passage]:
    """The main content of a page: its ``main``; else its articles, if they hold half of its text or more; else the page without its footer,
    sidebars and header (of which the headings stay)."""
    from selectolax.lexbor import LexborHTMLParser

    root = LexborHTMLParser(decoded(path.read_bytes())).root
    found: list[Passage] = []
    if root is not None:
        found = _passages(_marked(root, "main"))
        if not found:
            found = _passages([root], page=True)
            articles = _passages(_marked(root, "article"))
            if 2 * _characters(articles) >= _characters(found):
                found = articles
    if not found:
        raise Unreadable("has no text; if a script fills the page, save it from a browser after it has loaded")
    return found


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
    """The passages of HTML texts that follow each other, all of whose elements are content. Raises Unreadable, saying ``if_empty``, when
    they hold no text."""
    from selectolax.lexbor import LexborHTMLParser

    roots = (LexborHTMLParser(page).root for page in pages)
    if not (found := _passages(root for root in roots if root is not None)):
        raise Unreadable(if_empty)
    return found


def _passages(roots: Iterable[Any], *, page: bool = False) -> list[Passage]:
    writer = _Writer()
    for root in roots:
        _walk(root, writer, page)
    return writer.finish()


def _characters(passages: Iterable[Passage]) -> int:
    return sum(len(one.text) for one in passages)


def _marked(root: Any, kind: str) -> list[Any]:
    """The outermost elements, in document order, that are of this kind by their tag or their role."""
    found, stack = [], [root]
    while stack:
        node = stack.pop()
        if node.tag == "-text" or _left_out(node):
            continue
        if kind in (node.tag, _role(node)):
            found.append(node)
        else:
            stack.extend(reversed(list(node.iter())))
    return found


def _role(node: Any) -> str:
    return (node.attributes.get("role") or "").strip().lower()


def _left_out(node: Any) -> bool:
    if node.tag in LEFT_OUT or _role(node) in LEFT_OUT_ROLES:
        return True
    attributes = node.attributes
    if node.tag == "a" and "headerlink" in (attributes.get("class") or "").split():  # the pilcrow after a heading
        return True
    # Some pages hide their whole body until a script runs.
    styled = node.tag != "body" and "display:none" in "".join((attributes.get("style") or "").split()).lower()
    return styled or "hidden" in attributes


def _walk(root: Any, writer: _Writer, page: bool) -> None:
    """Gives a tree to a writer in document order; without recursion, because hostile pages are nested as deeply as they like.

    ``page``: what stands around the content of the page is left out.
    """
    stack = [(root, True, page)]
    while stack:
        node, enters, around = stack.pop()
        tag = node.tag
        if tag == "-text":
            writer.text(node.text_content or "")
        elif not enters:
            writer.leave(tag)
        elif _left_out(node) or (around and not AROUND.isdisjoint((tag, _role(node)))):
            continue
        elif around and (tag == "header" or _role(node) == "banner"):
            stack.extend((heading, True, False) for heading in reversed(node.css(HEADINGS)))
        else:
            writer.enter(tag, node)
            stack.append((node, False, False))
            inside = around and tag not in ("article", "section")
            stack.extend((child, True, inside) for child in reversed(list(node.iter(include_text=True))))


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
