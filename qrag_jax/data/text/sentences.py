"""Splits text into sentences, by rules. Training haystacks and users' documents use this same splitter.

:func:`sentence_spans` returns ranges in the unchanged text. There are two sets of :class:`Rules`: ``BOOKS`` for the English prose of
haystacks, and ``DOCUMENTS`` for text in any language, with lists, headings and tables.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

Span = tuple[int, int]
"""Index of the first character, and the index after the last."""

MIN_TOKENS, MAX_TOKENS = 10, 64
PLAIN_SHARE = 0.4
"""Smallest share of lower-case words among the tokens of prose."""
HEADER_CHARACTERS = 200
"""A paragraph that is shorter than this and begins like "Chapter 3." is a heading, even if it seems to hold sentences."""

_ABBREVIATIONS = frozenset(
    (
        *("mr", "mrs", "messrs", "mme", "mlle", "dr", "st", "rev", "hon", "prof", "jr", "sr", "esq"),
        *("capt", "col", "gen", "lieut", "lt", "maj", "sergt", "sgt"),
        *("vol", "vols", "chap", "ch", "fig", "figs", "eds", "pp", "p", "cf", "vs", "viz", "ib", "ibid", "op", "cit", "i.e", "e.g"),
        *("a.m", "p.m", "b.c", "a.d", "u.s", "mt", "ft", "inc", "ltd", "corp", "dept", "approx"),
        *("jan", "feb", "aug", "sept", "oct", "nov", "dec"),
    )
)
_MORE_ABBREVIATIONS = frozenset(
    (
        *("al", "eq", "eqs", "refs", "sec", "univ", "bros", "cmdr", "gov", "sen"),
        *("bzw", "ca", "d.h", "evtl", "ggf", "hrsg", "inkl", "nr", "u.a", "vgl", "z.b"),
        *("dra", "n\u00fam", "p\u00e1g", "sra", "srta", "uds"),
        *("\u0433\u0433", "\u0440\u0438\u0441", "\u0441\u0442\u0440", "\u0442.\u0435", "\u0442.\u043a", "\u0443\u043b"),
    )
)
"""Of other languages and of science. None is also a common word that could end a sentence."""
_NUMBER = frozenset(("no", "nos"))  # "No. 5", but "No. He stayed."
_LONGEST = 12  # number of characters to look at before a full stop; every abbreviation is shorter

_MARKS = r".!?\u2026"
_CLOSE = r"""["'\u201d\u2019)\]*_]"""
_CLOSE_WIDE = r"""["'\u201d\u2019)\]*_\u300d\u300f\uff09\u3011\u300b]"""
_OPEN = r"""["'\u201c\u2018(\[*_]"""
_WIDE = "".join(
    (
        "\u3002\uff01\uff1f\uff61",  # Chinese and Japanese
        "\u0964\u0965",  # the danda of Hindi, Bengali and others
        "\u061f\u06d4",  # Arabic question mark, Urdu full stop
        "\u0589\u1362\u1367\u1368\u0f0d\u0f0e\u104b\u17d4\u17d5",  # Armenian, Ethiopic, Tibetan, Burmese, Khmer
    )
)


@dataclass(frozen=True)
class Rules:
    """What ends a sentence, apart from the end of its paragraph.

    A run of the marks . ! ? … ends a sentence if white space follows (closing quotes and brackets may come first) and if the next
    character, after opening quotes and brackets, is in the regular-expression class ``begins``. A run that holds a mark of ``wide`` needs
    nothing after it. Lower-case letters begin a sentence only in a paragraph without capitals. A full stop after one of ``abbreviations``
    or after an initial ends no sentence. With ``layout``, a heading, a table row and a list item are sentences of their own, whatever
    their marks, and the number of an item or the "z." of "z. B." ends none.
    """

    begins: str
    wide: str = ""
    abbreviations: frozenset[str] = _ABBREVIATIONS
    layout: bool = False

    @cached_property
    def end(self) -> re.Pattern[str]:
        """Matches a possible end with the white space after it. ``mark`` and ``next`` are None after a wide mark.

        Takes linear time: a match can begin only at the first mark of a run (the lookbehind), and there is no backtracking (possessive
        quantifiers), so a character is read at most once as a mark, as a closing quote, as white space and as an opening quote.
        """
        marks = _MARKS + self.wide
        spaced = rf"(?P<mark>[{_MARKS}]++){_CLOSE}*+\s++(?={_OPEN}*+(?P<next>{self.begins}))"
        wide = rf"|[{_MARKS}]*+[{self.wide}][{marks}]*+{_CLOSE_WIDE}*+\s*+" if self.wide else ""
        return re.compile(rf"(?<![{marks}])(?:{spaced}{wide})")


BOOKS = Rules(begins="[A-Z0-9]")
"""Rules for English prose. Training haystacks are cut by them, so changing them changes the benchmark."""
DOCUMENTS = Rules(
    begins=rf"[^.,;:!?\u2026{_WIDE}\uff1f)\]}}\u2013\u2014]",
    wide=_WIDE,
    abbreviations=_ABBREVIATIONS | _MORE_ABBREVIATIONS,
    layout=True,
)
"""Rules for a user's documents: letters of any script and signs such as £, # or - begin a sentence; marks that only continue one do not."""

_EMPTY_LINE = re.compile(r"\n[^\S\n]*+\n\s*+")
_LAYOUT = re.compile(
    r"^[^\S\n]*+(?:(?P<row>\#{1,6}[^\S\n]|\||```|~~~|[^\t\n]++\t++\S)|(?:[-*+\u2022\u2023\u25aa>]|\(?\d{1,3}[.)])[^\S\n])", re.MULTILINE
)
"""The beginning of a line that is a sentence of its own (``row``: a heading, a table row, a fence of code), or of a list item or a
quotation, which may go on in the next line."""
_ITEM = re.compile(r"\s*+\(?(?:\d{1,3}(?:\.\d{1,3}){0,4}|[A-Za-z]|[ivxIVX]{1,5})\Z")
_ONE_LETTER = re.compile(r"\s*+\w\.")
_LAST_WORD = re.compile(r"[\w.]+\Z")


def sentence_spans(text: str, rules: Rules = DOCUMENTS) -> list[Span]:
    """The ranges of the sentences of ``text``, in order and without the white space around them.

    Every character that is not white space is in exactly one sentence. An empty line ends a sentence. Takes linear time.
    """
    ends = {gap.start() for gap in _EMPTY_LINE.finditer(text)}
    rows: set[int] = set()
    if rules.layout:
        for line in _LAYOUT.finditer(text):
            ends.add(line.start())
            if line["row"] is not None:
                rows.add(line.start())
                ends.add(text.find("\n", line.end()) % (len(text) + 1))  # -1, the last line, becomes the end of the text
    found: list[Span] = []
    for start, end in pairwise([0, *sorted(ends), len(text)]):
        if start in rows:
            found += [] if (span := stripped(text, start, end)) is None else [span]
        else:
            found += _in_paragraph(text, start, end, rules)
    return found


def stripped(text: str, start: int, stop: int) -> Span | None:
    """The range of ``text[start:stop].strip()``; None if that is empty."""
    piece = text[start:stop]
    body = piece.lstrip()
    start += len(piece) - len(body)
    return (start, start + len(body.rstrip())) if body else None


def _in_paragraph(text: str, start: int, stop: int, rules: Rules) -> Iterator[Span]:
    begin = start
    capitals: bool | None = None  # computed when first needed
    for end in rules.end.finditer(text, start, stop):
        if end["mark"] is not None:
            if end["next"].islower():
                if capitals is None:
                    paragraph = text[start:stop]
                    capitals = paragraph != paragraph.lower()
                if capitals:
                    continue
            if end["mark"] == "." and _abbreviates(text, end.start(), end["next"], rules.abbreviations):
                continue
            if rules.layout and end["mark"] == "." and _counts(text, begin, end.start()):
                continue
        if (span := stripped(text, begin, end.end())) is not None:
            yield span
        begin = end.end()
    if (span := stripped(text, begin, stop)) is not None:
        yield span


def _abbreviates(text: str, dot: int, following: str, abbreviations: frozenset[str]) -> bool:
    """Whether the full stop at ``dot`` belongs to an abbreviation ('Mr.') or an initial ('J. S. Bach', but not '... and I.')."""
    word = _LAST_WORD.search(text, max(0, dot - _LONGEST), dot)
    if word is None:
        return False
    lower = word[0].lower()
    if len(lower) == 1 and word[0].isupper() and lower != "i":
        return True
    return lower in abbreviations or (lower in _NUMBER and following.isdigit())


def _counts(text: str, begin: int, dot: int) -> bool:
    """Whether the full stop at ``dot`` belongs to the number of a list item that begins at ``begin``, or to a letter before another one."""
    if dot - begin <= _LONGEST and _ITEM.match(text, begin, dot):
        return True
    return dot > 0 and text[dot - 1].islower() and not text[max(0, dot - 2)].isalnum() and _ONE_LETTER.match(text, dot + 1) is not None


# The prose of a haystack: doubtful sentences are dropped, not repaired ---------------------------------------------------------------

_TOKEN = re.compile(r"\w+|[^\w\s]")
_PARAGRAPH = re.compile(r"\n[ \t]*\n")
_CLOSED = re.compile(rf"[{_MARKS}]{_CLOSE}*$")
_HEADER = re.compile(r"(?:chapter|book|part|volume|section|letter|act|scene|canto|appendix)\s+(?:[ivxlcdm]+|\d+|the)\b", re.IGNORECASE)
_PLAIN_WORD = re.compile(r"\b[a-z]{2,}\b")
_TABLE = re.compile(r"\||\.{4}|_{3}|={2}|-{4}|\*{3}|\t|\d\s+\d+\s+\d")


def count_tokens(text: str) -> int:
    """An estimate without a tokenizer: each word and each punctuation mark counts as one token."""
    return len(_TOKEN.findall(text))


def split_sentences(text: str) -> list[str]:
    """The sentences of ``text`` that have 10 to 64 tokens (:func:`count_tokens`), in order, with white space folded.

    Blank lines separate paragraphs, and a sentence never crosses one. Titles, chapter headings, tables, lines of numbers and text that does
    not end with a mark are left out.
    """
    found: list[str] = []
    for paragraph in _PARAGRAPH.split(text):
        folded = " ".join(paragraph.split())
        if len(folded) >= HEADER_CHARACTERS or not _HEADER.match(folded):
            found.extend(sentence for sentence in cut_sentences(folded) if _is_prose(sentence))
    return found


def cut_sentences(paragraph: str) -> Iterator[str]:
    """All sentences of English prose, by the rules ``BOOKS``."""
    return (paragraph[start:end] for start, end in sentence_spans(paragraph, BOOKS))


def _is_prose(sentence: str) -> bool:
    # A token has at least one character, and a sentence rarely has 12 per token, so most rejects need no token count.
    if not 2 * MIN_TOKENS <= len(sentence) <= 12 * MAX_TOKENS or not _CLOSED.search(sentence):
        return False
    if _HEADER.match(sentence) or _TABLE.search(sentence):
        return False
    tokens = count_tokens(sentence)
    return MIN_TOKENS <= tokens <= MAX_TOKENS and len(_PLAIN_WORD.findall(sentence)) >= PLAIN_SHARE * tokens
