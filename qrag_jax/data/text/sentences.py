"""Running English text -> sentences, by rules. Used to make haystacks, so a doubtful sentence is dropped, not repaired."""

from __future__ import annotations

import re
from collections.abc import Iterator

MIN_TOKENS, MAX_TOKENS = 10, 64
PLAIN_SHARE = 0.4
"""Of the tokens of prose, at least so many are words in small letters."""
HEADER_CHARACTERS = 200
"""A shorter paragraph that begins like "Chapter 3." is a heading as a whole, whatever sentences it seems to hold."""

_TOKEN = re.compile(r"\w+|[^\w\s]")
_PARAGRAPH = re.compile(r"\n[ \t]*\n")
# The end of a sentence: marks, closing quotes, white space, and a capital or a digit after opening quotes.
_CLOSE = r"""["'\u201d\u2019)\]*_]*"""
_OPEN = r"""["'\u201c\u2018(\[*_]*"""
_END = re.compile(rf"(?P<mark>[.!?\u2026]+){_CLOSE}\s+(?={_OPEN}(?P<next>[A-Z0-9]))")
_CLOSED = re.compile(rf"[.!?\u2026]{_CLOSE}$")
_LAST_WORD = re.compile(r"[\w.]+$")
_ABBREVIATIONS = frozenset(
    (
        *("mr", "mrs", "messrs", "mme", "mlle", "dr", "st", "rev", "hon", "prof", "jr", "sr", "esq"),
        *("capt", "col", "gen", "lieut", "lt", "maj", "sergt", "sgt"),
        *("vol", "vols", "chap", "ch", "fig", "figs", "eds", "pp", "p", "cf", "vs", "viz", "ib", "ibid", "op", "cit", "i.e", "e.g"),
        *("a.m", "p.m", "b.c", "a.d", "u.s", "mt", "ft", "inc", "ltd", "corp", "dept", "approx"),
        *("jan", "feb", "aug", "sept", "oct", "nov", "dec"),
    )
)
_NUMBER = frozenset(("no", "nos"))  # "No. 5", but "No. He stayed."
_HEADER = re.compile(r"(?:chapter|book|part|volume|section|letter|act|scene|canto|appendix)\s+(?:[ivxlcdm]+|\d+|the)\b", re.IGNORECASE)
_PLAIN_WORD = re.compile(r"\b[a-z]{2,}\b")
_TABLE = re.compile(r"\||\.{4}|_{3}|={2}|-{4}|\*{3}|\t|\d\s+\d+\s+\d")


def count_tokens(text: str) -> int:
    """An estimate that needs no tokenizer: every word and every punctuation mark counts one."""
    return len(_TOKEN.findall(text))


def split_sentences(text: str) -> list[str]:
    """The sentences of ``text`` that have 10 to 64 tokens (:func:`count_tokens`), in order, with white space folded.

    Paragraphs are parted by blank lines; a sentence never crosses one. Titles, chapter headings, tables, lines of numbers and whatever
    does not end with a mark are left out.
    """
    found: list[str] = []
    for paragraph in _PARAGRAPH.split(text):
        folded = " ".join(paragraph.split())
        if len(folded) >= HEADER_CHARACTERS or not _HEADER.match(folded):
            found.extend(sentence for sentence in cut_sentences(folded) if _is_prose(sentence))
    return found


def cut_sentences(paragraph: str) -> Iterator[str]:
    start = 0
    for end in _END.finditer(paragraph):
        if end["mark"] == "." and _abbreviates(paragraph, end.start(), end["next"]):
            continue
        yield paragraph[start : end.end()].rstrip()
        start = end.end()
    if start < len(paragraph):
        yield paragraph[start:]


def _abbreviates(paragraph: str, dot: int, following: str) -> bool:
    """Whether the full stop at ``dot`` belongs to an abbreviation ('Mr.') or an initial ('J. S. Bach', but not '... and I.')."""
    word = _LAST_WORD.search(paragraph, max(0, dot - 12), dot)
    if word is None:
        return False
    text = word[0].lower()
    if len(text) == 1 and word[0].isupper() and text != "i":
        return True
    return text in _ABBREVIATIONS or (text in _NUMBER and following.isdigit())


def _is_prose(sentence: str) -> bool:
    # A token has at least one character, and words this long do not fill a sentence: most rejects never reach the token count.
    if not 2 * MIN_TOKENS <= len(sentence) <= 12 * MAX_TOKENS or not _CLOSED.search(sentence):
        return False
    if _HEADER.match(sentence) or _TABLE.search(sentence):
        return False
    tokens = count_tokens(sentence)
    return MIN_TOKENS <= tokens <= MAX_TOKENS and len(_PLAIN_WORD.findall(sentence)) >= PLAIN_SHARE * tokens
