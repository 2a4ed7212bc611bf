"""Which regular expressions may take exponential time on some text, decided without running them.

A repeated group is safe if at each point of a match at most one of its characters can come next, in one way. The characters of the group
are positions, and ``follow`` lists which positions may come after which (Glushkov 1961), once for each way. If no two entries of a list can
match the same character, then a text has one way through the group, and an engine that tries all ways is not slow because of it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

POSITIONS = 2000  # of a pattern, with its counted repetitions written out; one with more is called slow
RANGE = 256  # characters of a range in [...] that are written out
CONTROLS = {"r": "\r", "n": "\n", "t": "\t", "f": "\f", "v": "\v", "a": "\a", "e": "\x1b", "0": "\0"}
_OPENING = re.compile(r"\((?:\?(?:[a-wyz-]*:|<?[=!]|>|<\w+>|[a-wyz-]+(?=\))))?")
_QUANTIFIER = re.compile(r"([*+?])[?+]?|\{(\d+)\}\??|\{(\d*),(\d*)\}\??")
_HEX = re.compile(r"\\(?:x\{([0-9a-fA-F]{1,6})\}|x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4}))")

Characters = frozenset[str] | str | None
"""What a position matches: some characters, a class such as "s" or "S" (its complement), or anything (None)."""


class _Slow(Exception):
    """The pattern may take exponential time, or has something that is not understood here."""


class _Part(NamedTuple):
    """A part of a pattern: the positions at which it may begin and end, one entry for each way, and whether it matches the empty text."""

    first: tuple[int, ...] = ()
    last: tuple[int, ...] = ()
    empty: bool = True


def backtracks_exponentially(pattern: str) -> bool:
    """Whether a repeated group of a regular expression may match one text in several ways, as in (a*)*, (a|a)* and (aa?)*.

    It is cautious: two parts that cannot be compared, such as most classes of characters, count as the same, and a call of a group, as in
    \\g<1>, counts as slow. A repetition of single characters outside groups, as in a*a*, is not looked at: it takes polynomial time.
    """
    try:
        _Pattern(pattern).parse()
    except (_Slow, RecursionError):
        return True
    return False


class _Pattern:
    def __init__(self, text: str) -> None:
        self.text, self.at = text, 0
        self.sets: list[Characters] = []
        self.follow: list[list[int]] = []

    def parse(self) -> None:
        while self.at < len(self.text):
            self._branches()
            self.at += 1  # a closing bracket without an opening one

    def _branches(self) -> _Part:
        parts = [self._sequence()]
        while self.text[self.at : self.at + 1] == "|":
            self.at += 1
            parts.append(self._sequence())
        first, last = (tuple(place for part in parts for place in getattr(part, name)) for name in ("first", "last"))
        return _Part(first, last, any(part.empty for part in parts))

    def _sequence(self) -> _Part:
        whole = _Part()
        while self.at < len(self.text) and self.text[self.at] not in "|)":
            whole = self._joined(whole, self._repeated())
        return whole

    def _joined(self, one: _Part, two: _Part) -> _Part:
        for place in one.last:
            self.follow[place] += two.first
        first = one.first + (two.first if one.empty else ())
        return _Part(first, two.last + (one.last if two.empty else ()), one.empty and two.empty)

    def _repeated(self) -> _Part:
        begin, before = self.at, len(self.sets)
        part = self._atom()
        group = self.text[begin] == "("
        while quantifier := _QUANTIFIER.match(self.text, self.at):
            least, most = _bounds(quantifier)
            part = self._times(part, begin, self.at, least, most)
            if group and most not in (0, 1):
                self._check(part, before)
            self.at, group = quantifier.end(), True  # a quantifier after a quantifier repeats the whole
        return part

    def _times(self, part: _Part, begin: int, end: int, least: int, most: int | None) -> _Part:
        """``part``, which is text ``begin`` to ``end``, repeated: copies in a row; without a limit, the last of them is a loop."""
        if part.empty and part.first and most not in (0, 1):
            raise _Slow
        if most == 0:
            return _Part()
        copies = [part, *(self._copy(begin, end) for _ in range(1, max(least, most or 1)))]
        if most is None:
            for place in copies[-1].last:
                self.follow[place] += copies[-1].first
        whole = _Part()
        for number, copy in reversed(list(enumerate(copies))):
            whole = self._joined(copy, whole)
            whole = whole._replace(empty=whole.empty or number >= least)
        return whole

    def _copy(self, begin: int, end: int) -> _Part:
        whole, self.text, self.at = self.text, self.text[:end], begin
        part = self._repeated()
        self.text = whole
        return part

    def _atom(self) -> _Part:
        character = self.text[self.at]
        if character == "(":
            return self._group()
        if character == "[":
            return self._position(self._class())
        if character == "\\":
            return self._escape()
        self.at += 1
        if character in "^$":
            return _Part()
        return self._position(None if character == "." else frozenset(character.casefold()))

    def _position(self, characters: Characters, empty: bool = False) -> _Part:
        if len(self.sets) == POSITIONS:
            raise _Slow
        self.sets.append(characters)
        self.follow.append([])
        place = (len(self.sets) - 1,)
        return _Part(place, place, empty)

    def _group(self) -> _Part:
        opening = _OPENING.match(self.text, self.at)
        assert opening
        if opening[0] == "(" and self.text[self.at + 1 : self.at + 2] == "?":
            raise _Slow
        self.at = opening.end()
        inner = self._branches()
        self.at += 1
        return _Part() if opening[0][-1] in "=!" else inner

    def _escape(self) -> _Part:
        if code := _HEX.match(self.text, self.at):
            self.at = code.end()
            number = int(code[1] or code[2] or code[3], 16)
            return self._position(frozenset(chr(number).casefold()) if number < 0x110000 else None)
        letter = self.text[self.at + 1 : self.at + 2]
        self.at += 2
        if letter in ("g", ""):
            raise _Slow
        if letter in "bBAzZGK":
            return _Part()
        if letter in "123456789k":
            return self._position(None, empty=True)
        if letter in "pPhHRXNOyY":
            if named := re.compile(r"\{[^}]*\}").match(self.text, self.at):
                self.at = named.end()
            return self._position(None)
        return self._position(letter if letter in "sSwWdD" else frozenset(CONTROLS.get(letter, letter).casefold()))

    def _class(self) -> Characters:
        """The characters of [...]; None for one with classes, a negation or a set inside."""
        inner = re.compile(r"\[(\^?)(\]?(?:\\.|\[:\^?\w+:\]|[^\[\]\\])*)\]", re.DOTALL).match(self.text, self.at)
        if inner is None:
            self._skip_class()
            return None
        self.at = inner.end()
        found = set()
        if inner[1] or "[" in inner[2] or "&&" in inner[2]:
            return None
        for low, high in re.findall(r"(\\.|.)(?:-(\\.|[^\]]))?", inner[2], re.DOTALL):
            ends = [_literal(part) for part in (low, high or low)]
            if None in ends or not 0 <= ord(str(ends[1])) - ord(str(ends[0])) < RANGE:
                return None
            found |= {chr(code).casefold() for code in range(ord(str(ends[0])), ord(str(ends[1])) + 1)}
        return frozenset(found)

    def _skip_class(self) -> None:
        """Skips a set with sets inside."""
        depth = 0
        while self.at < len(self.text):
            depth += {"[": 1, "]": -1}.get(self.text[self.at], 0)
            self.at += 2 if self.text[self.at] == "\\" else 1
            if not depth:
                return
        raise _Slow

    def _check(self, part: _Part, before: int) -> None:
        """Raises _Slow if two ways lead on somewhere in a repeated group, whose positions are those from ``before`` on."""
        for ways in (part.first, *self.follow[before:]):
            if any(self._overlap(a, b) for a, b in combinations([way for way in ways if way >= before], 2)):
                raise _Slow

    def _overlap(self, a: int, b: int) -> bool:
        one, two = self.sets[a], self.sets[b]
        if one is None or two is None:
            return True
        if isinstance(one, str) and isinstance(two, str):
            return not (one != two and one.lower() == two.lower())
        if isinstance(one, str):
            one, two = two, one
        if isinstance(two, str):
            return any(re.match(rf"\{two}", character) for character in one)
        return not frozenset(one).isdisjoint(two)


def _bounds(quantifier: Sequence[str] | re.Match[str]) -> tuple[int, int | None]:
    """The least and the largest number of times; None: no limit."""
    if quantifier[1]:
        return {"*": (0, None), "+": (1, None), "?": (0, 1)}[quantifier[1]]
    if quantifier[2]:
        return _count(quantifier[2]), _count(quantifier[2])
    return _count(quantifier[3] or "0"), _count(quantifier[4]) if quantifier[4] else None


def _count(digits: str) -> int:
    if len(digits) > 4:
        raise _Slow
    return int(digits)


def _literal(part: str) -> str | None:
    """The character that a part of [...] stands for; None for a class."""
    if not part.startswith("\\"):
        return part
    return None if part[1] in "sSwWdDpPhHRXxucCMbkg" else CONTROLS.get(part[1], part[1])
