"""Reads .docx and .epub files, which are zip archives, by way of HTML. Nothing is unpacked to disk."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from urllib.parse import unquote
from xml.etree import ElementTree
from zipfile import BadZipFile, ZipFile

from qrag_jax.retrieve.formats.markup import decoded, passages_of
from qrag_jax.retrieve.formats.passages import LARGEST, Passage, Unreadable, megabytes

_OLD_OFFICE = bytes.fromhex("d0cf11e0a1b11ae1")  # how .doc files begin, and .docx files with a password
_CLOSED = re.compile(r"<(title|script|style|textarea|iframe|noscript)\b([^<>]*)/>")
"""Elements of XHTML that are empty; HTML would take all that follows as their content."""
_STYLES = "\n".join(f"p[style-name='{name}'] => h{i}:fresh" for i, name in enumerate(("Title", *(f"Heading {i}" for i in "12345")), 1))
"""A document's title is above its headings of level 1."""


def open_zip(path: Path) -> ZipFile:
    """Raises Unreadable when it is no sound archive, needs a password, or is too large when unpacked. zipfile unpacks no more of a member
    than the size that is checked here."""
    try:
        archive = ZipFile(path)
    except BadZipFile as error:
        with path.open("rb") as file:
            if file.read(len(_OLD_OFFICE)) == _OLD_OFFICE:
                raise Unreadable("is protected by a password, or is an old .doc file; save a .docx without a password") from error
        raise Unreadable("is damaged: no whole zip archive") from error
    members = archive.infolist()
    if (size := sum(one.file_size for one in members)) > LARGEST:
        raise Unreadable(f"is {megabytes(size)} when unpacked; at most {megabytes(LARGEST)} are read")
    if any(one.flag_bits & 1 for one in members):
        raise Unreadable("is protected by a password; save a copy without one")
    return archive


def read_docx(path: Path) -> list[Passage]:
    """Headings are paragraphs of Word's heading styles. Footnotes stand at the end; page headers, comments and pictures are left out."""
    import mammoth

    open_zip(path).close()
    with path.open("rb") as file:
        html = mammoth.convert_to_html(file, style_map=_STYLES, convert_image=lambda image: []).value
    return passages_of([html], "has no text")


def read_epub(path: Path) -> list[Passage]:
    """The documents of the book in reading order. Raises Unreadable when they are encrypted."""
    with open_zip(path) as archive:
        return passages_of((_CLOSED.sub(r"<\1\2></\1>", decoded(_member(archive, name))) for name in _spine(archive)), "has no text")


def _spine(archive: ZipFile) -> list[str]:
    """The names of a book's documents in reading order."""
    root = ElementTree.fromstring(_member(archive, "META-INF/container.xml")).find(".//{*}rootfile")
    package = "" if root is None else root.get("full-path", "")
    tree = ElementTree.fromstring(_member(archive, package))
    inside = lambda href: posixpath.normpath(posixpath.join(posixpath.dirname(package), unquote(href)))
    documents = {item.get("id"): inside(item.get("href", "")) for item in tree.iterfind("{*}manifest/{*}item")}
    names = [documents[reference] for item in tree.iterfind("{*}spine/{*}itemref") if (reference := item.get("idref")) in documents]
    if "META-INF/encryption.xml" in archive.namelist():
        locked = ElementTree.fromstring(_member(archive, "META-INF/encryption.xml")).iterfind(".//{*}CipherReference")
        if not {unquote(one.get("URI", "")) for one in locked}.isdisjoint(names):
            raise Unreadable("is protected against copying (DRM)")
    return names


def _member(archive: ZipFile, name: str) -> bytes:
    try:
        return archive.read(name)
    except KeyError as error:
        raise Unreadable(f"is damaged: holds no {name or 'list of its documents'}") from error
