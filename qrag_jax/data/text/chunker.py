"""Cuts a text into chunks, given as character ranges: sentences, sentences in parts, or sentences packed up to a budget of tokens.

Whole sentences may be longer than the budget of tokens; no other chunk is. Tokens are counted in the chunk as a whole: with a byte-level
tokenizer, they are not the sum of the tokens of its sentences. So every such chunk can be read whole, and every token of the text is in
one. Text without ends of sentences is broken at lines (of a table, a list, a program), then between words, then between characters. Time
is linear in the text, whatever it holds.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Literal, NamedTuple

from qrag_jax.data.text.sentences import Span, sentence_spans, stripped

ChunkBy = Literal["sentence", "parts", "tokens"]
CountTokens = Callable[[Sequence[str]], Sequence[int]]
"""Texts -> the number of tokens of each."""

CHARACTERS = 16
"""A chunk has at most this many characters per token of its budget; so no tokenizer gets a long text at once."""
FULLER = 1.1  # pieces of equal length differ in tokens, so they are made a bit shorter than the budget
JOINER = "\u200d"  # joins the characters before and after it into one sign

COMMAS = "\u3001\uff0c\uff1b\uff1a\u060c\u061b"  # of scripts that may put no space after them

_LINE = re.compile(r"[^\n]+")


class _Unit(NamedTuple):
    """A range that chunks are packed from. ``size``: its tokens, together with the white space before it unless it ``opens`` a chunk."""

    start: int
    end: int
    opens: bool
    size: int


def chunk_spans(text: str, count: CountTokens, max_tokens: int, by: ChunkBy = "tokens") -> list[Span]:
    """The ranges of the chunks of ``text``, in order; they hold every character that has a token. None is empty.

    By "tokens": consecutive sentences are packed up to ``max_tokens`` tokens. By "parts": each sentence is a chunk. In both, only a
    sentence that is longer than ``max_tokens`` is broken. The one chunk that may be longer is a single character of several tokens. By
    "sentence": each sentence is a chunk, however long.
    """
    sentences = sentence_spans(text)
    if by == "sentence":
        sizes = _sizes([text[start:end] for start, end in sentences], count, max_tokens)
        return [span for span, size in zip(sentences, sizes, strict=True) if size]
    units = _measured(text, sentences, [by == "parts"] * len(sentences), count, max_tokens)
    units = _broken(text, units, _lines, count, max_tokens)
    while any(unit.size > max_tokens and unit.end - unit.start > 1 for unit in units):
        units = _broken(text, units, _pieces, count, max_tokens)
    return list(_checked(text, _packed(units, max_tokens), count, max_tokens))


def _sizes(texts: Sequence[str], count: CountTokens, max_tokens: int) -> list[int]:
    """The tokens of each text; an estimate, above the budget, for those with too many characters."""
    longest = CHARACTERS * max_tokens
    counted = iter(count([text for text in texts if len(text) <= longest]))
    return [next(counted) if len(text) <= longest else -(-len(text) // CHARACTERS) for text in texts]


def _measured(text: str, spans: Sequence[Span], opens: Sequence[bool], count: CountTokens, max_tokens: int) -> list[_Unit]:
    """Units in order. One that does not fit into the budget together with the white space before it opens a chunk."""
    begins = [start if first else gap for (start, _), first, gap in zip(spans, opens, [0, *(end for _, end in spans)], strict=False)]
    sizes = _sizes([text[begin:end] for begin, (_, end) in zip(begins, spans, strict=True)], count, max_tokens)
    again = [i for i, size in enumerate(sizes) if size > max_tokens and not opens[i]]
    alone = dict(zip(again, _sizes([text[slice(*spans[i])] for i in again], count, max_tokens), strict=True))
    return [_Unit(*span, opens[i] or i in alone, alone.get(i, sizes[i])) for i, span in enumerate(spans)]


def _broken(
    text: str, units: Sequence[_Unit], cut: Callable[[str, _Unit, int], Sequence[Span]], count: CountTokens, max_tokens: int
) -> list[_Unit]:
    """The units with each that is too long replaced by its parts. The first part opens a chunk; the last may be followed by other units."""
    spans: list[Span] = []
    opens: list[bool] = []
    places: list[int] = []
    for place, unit in enumerate(units):
        if unit.size > max_tokens:
            parts = cut(text, unit, max_tokens)
            spans += parts
            opens += [True] + [False] * (len(parts) - 1)
            places += [place] * len(parts)
    if not spans:
        return list(units)
    parts_of: dict[int, list[_Unit]] = {}
    for place, part in zip(places, _measured(text, spans, opens, count, max_tokens), strict=True):
        parts_of.setdefault(place, []).append(part)
    return [part for place, unit in enumerate(units) for part in parts_of.get(place, [unit] if unit.size <= max_tokens else [])]


def _lines(text: str, unit: _Unit, max_tokens: int) -> list[Span]:
    return _stripped(text, (match.span() for match in _LINE.finditer(text, unit.start, unit.end)))


def _pieces(text: str, unit: _Unit, max_tokens: int) -> list[Span]:
    """Pieces of about equal length, which end at white space if there is any near, else after a comma, else between characters."""
    length = unit.end - unit.start
    number = min(length, max(2, int(FULLER * unit.size / max_tokens) + 1))
    reach = length // (2 * number)
    borders = {_border(text, unit.start, unit.start + length * i // number, reach) for i in range(1, number)}
    return _stripped(text, pairwise([unit.start, *sorted(borders), unit.end]))


def _stripped(text: str, spans: Iterator[Span]) -> list[Span]:
    return [span for first, last in spans if (span := stripped(text, first, last)) is not None]


def _border(text: str, start: int, place: int, reach: int) -> int:
    """The best place for a cut, after ``start`` and at most ``reach`` characters from ``place``: white space, or the place after a comma.

    Else it is ``place``, or if a character there belongs to the one before it (an accent, a vowel sign), the place of that one.
    """
    spaces = (text.rfind(" ", max(start + 1, place - reach), place + 1), text.find(" ", place, place + reach + 1))  # nearly always enough
    if max(spaces) >= 0:
        return min((at for at in spaces if at >= 0), key=lambda at: abs(at - place))
    near = [at for step in range(reach + 1) for at in (place - step, place + step) if start < at < len(text)]
    for found in (lambda at: text[at].isspace(), lambda at: text[at - 1] in COMMAS):
        if (border := next(filter(found, near), None)) is not None:
            return border
    for before in range(place, max(start, place - CHARACTERS), -1):
        if not (unicodedata.category(text[before]).startswith("M") or text[before] == JOINER or text[before - 1] == JOINER):
            return before
    return place


def _packed(units: Sequence[_Unit], max_tokens: int) -> list[Span]:
    chunks: list[Span] = []
    used = 0
    for unit in units:
        if chunks and not unit.opens and used + unit.size <= max_tokens and unit.end - chunks[-1][0] <= CHARACTERS * max_tokens:
            chunks[-1] = (chunks[-1][0], unit.end)
            used += unit.size
        else:
            chunks.append((unit.start, unit.end))
            used = unit.size
    return chunks


def _checked(text: str, chunks: Sequence[Span], count: CountTokens, max_tokens: int) -> Iterator[Span]:
    """The chunks that have tokens. One that is longer than the sum of its units is halved until it is not."""
    sizes: dict[Span, int] = {}
    fresh = list(chunks)
    halves: dict[Span, list[Span]] = {}
    while fresh:
        sizes |= zip(fresh, _sizes([text[start:end] for start, end in fresh], count, max_tokens), strict=True)
        halves |= {span: _halves(text, *span) for span in fresh if sizes[span] > max_tokens and span[1] - span[0] > 1}
        fresh = [half for span in fresh for half in halves.get(span, [])]
    stack = list(reversed(chunks))
    while stack:
        span = stack.pop()
        if span in halves:
            stack += reversed(halves[span])
        elif sizes[span]:
            yield span


def _halves(text: str, start: int, end: int) -> list[Span]:
    border = _border(text, start, (start + end) // 2, (end - start - 1) // 2)
    return _stripped(text, iter([(start, border), (border, end)]))
