"""What is read from a file: passages with their places, or the reason why there are none."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

Place = dict[str, int | str]
"""Where a passage stands in its file, for a citation: {"page": 3}, {"heading": "Guide > Install"}, {"row": 7}, or empty."""
PLACES = ("page", "heading", "row")
SEPARATOR = "\n\n"
"""Between the passages of a file in its extracted text."""
LARGEST = 512 * 2**20
"""Bytes of a file that is not plain text, and of an archive when unpacked."""
LONGEST_TITLE = 120


class Unreadable(ValueError):
    """A file that holds no text for us; the message says why, in one line, and what to do."""


@dataclass(frozen=True)
class Passage:
    """Text from one place of a file. It begins at character ``start`` of the file's text: of an .md or .txt file as it is, else of the
    extracted text, which is all passages joined by :data:`SEPARATOR`. An empty ``text``: the place holds only pictures, or what ``fault``
    says could not be read."""

    text: str
    place: Place = field(default_factory=dict, hash=False)
    start: int = 0
    fault: str = ""


def joined(parts: Iterable[tuple[str, Place]]) -> list[Passage]:
    """Texts and their places -> passages of one extracted text. Halves of surrogate pairs, which no tokenizer takes, become U+FFFD."""
    passages, start = [], 0
    for text, place in parts:
        text = text.strip().encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        passages.append(Passage(text, place, start))
        start += len(text) + len(SEPARATOR)
    return passages


def read_utf8(path: Path) -> str:
    """The text of a file, with universal newlines. Raises Unreadable when it is not UTF-8."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise not_utf8(error) from error


def not_utf8(error: UnicodeDecodeError) -> Unreadable:
    return Unreadable(f"byte {error.start} is 0x{error.object[error.start]:02x}, which is not UTF-8; convert the file to UTF-8")


def megabytes(size: int) -> str:
    return f"{size / 2**20:,.0f} MB"


class Headings:
    """The headings above a place, from the largest down."""

    def __init__(self) -> None:
        self._open: list[tuple[int, str]] = []

    def enter(self, level: int, title: str) -> None:
        """A heading of level 1 (the largest) to 6 begins."""
        title = " ".join(title.split())
        title = title if len(title) <= LONGEST_TITLE else title[: LONGEST_TITLE - 1] + "…"
        self._open = [*(one for one in self._open if one[0] < level), (level, title)]

    @property
    def place(self) -> Place:
        path = " > ".join(title for _, title in self._open if title)
        return {"heading": path} if path else {}
