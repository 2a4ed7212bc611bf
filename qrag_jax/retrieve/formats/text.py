"""Reads .txt files, which have no places, and .md files, which are divided at their headings. Their text stays as it is."""

from __future__ import annotations

import re
from pathlib import Path

from qrag_jax.retrieve.formats.passages import Headings, Passage, read_utf8

FRONT_MATTER = re.compile(r"\A\ufeff?---[ \t]*\n(.*?)^(?:---|\.\.\.)[ \t]*(?:\n|\Z)", re.DOTALL | re.MULTILINE)
_HEADING = re.compile(
    r"^[ ]{0,3}(?:(?P<fence>`{3,}|~{3,})(?P<after>[^\n]*)$"
    r"|(?P<marks>\#{1,6})(?:[ \t]+(?P<title>[^\n]*))?$"
    r"|(?:(?<=\n\n)|(?<![\s\S]))(?P<above>[^\s>|\#*+-][^\n]*)\n[ ]{0,3}(?P<rule>=+|-{2,})[ \t]*$)",
    re.MULTILINE,
)
"""A fence of code; a heading after # marks; a line above a rule of = or -, after an empty line."""
_LINK = re.compile(r"!?\[([^\[\]]*)\]\([^()]*\)")


def read_text(path: Path) -> list[Passage]:
    return [Passage(read_utf8(path))]


def read_markdown(path: Path) -> list[Passage]:
    """One passage for each heading, which begins with it, and one for what stands before the first. Together they are the whole text."""
    text = read_utf8(path)
    front = FRONT_MATTER.match(text)
    headings, found, fence = Headings(), [Passage("")], ""
    for line in _HEADING.finditer(text.replace("\ufeff", " ", 1), front.end() if front else 0):
        if line["fence"]:
            if not fence:
                fence = line["fence"]
            elif line["fence"].startswith(fence) and not line["after"].strip():
                fence = ""
        elif not fence:
            level = len(line["marks"]) if line["marks"] else 1 if line["rule"].startswith("=") else 2
            headings.enter(level, _plain(line["above"] or line["title"] or ""))
            found.append(Passage("", headings.place, line.start()))
    ends = [*(passage.start for passage in found[1:]), len(text)]
    passages = [Passage(text[one.start : end], one.place, one.start) for one, end in zip(found, ends, strict=True)]
    return passages if passages[0].text or len(passages) == 1 else passages[1:]


def _plain(title: str) -> str:
    """A heading without its closing # marks, and without the marks of links, code and bold text."""
    title = re.sub(r"(?:^|[ \t]+)#+[ \t]*$", "", title)
    return _LINK.sub(r"\1", title).replace("`", "").replace("**", "")
