"""What bAbI's sentences say (qa1 to qa5), and which of them answer a question: the labels of the official files, computed from the story.

- qa1 names the person's last move. qa2 names the last time the thing was taken (or dropped), and the carrier's last move after (before)
  it. qa3 names the last time it was taken or dropped, the carrier's last move to the place asked about, and the move before. qa4 names the
  relation, qa5 the last time the thing was given.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache, partial
from itertools import pairwise
from typing import NamedTuple

PLACES = ("bathroom", "bedroom", "garden", "hallway", "kitchen", "office")
THINGS = ("apple", "football", "milk")
PEOPLE = {"qa5": ("Bill", "Fred", "Jeff", "Mary")}
DEFAULT_PEOPLE = ("Daniel", "John", "Mary", "Sandra")
VERBS = {
    "move": ("moved", "went", "went back", "journeyed", "travelled"),
    "get": ("got", "took", "grabbed", "picked up"),
    "drop": ("dropped", "left", "discarded", "put down"),
    "give": ("gave", "handed", "passed"),
}
INVERSE = {"north": "south", "south": "north", "east": "west", "west": "east"}


class Event(NamedTuple):
    """The content of a fact: ``person`` moves to ``place``, or gets, drops or gives (to ``receiver``) ``thing``. In qa4 the action is a
    direction: ``place`` is north, south, east or west of ``other``."""

    action: str
    person: str = ""
    place: str = ""
    thing: str = ""
    receiver: str = ""
    other: str = ""


Label = tuple[str, tuple[int, ...]]
"""An answer, and the indices of the facts that it follows from."""
Asked = dict[str, str]
"""The words of a question: "person" -> "Mary"."""


def people(task: str) -> tuple[str, ...]:
    """The people of a task's stories."""
    return PEOPLE.get(task, DEFAULT_PEOPLE)


def find_facts(task: str, text: str) -> Iterator[tuple[int, int, Event]]:
    """The facts in ``text``, as (start, end, event), wherever they stand: other text may touch them without a space."""
    for match in _facts(task).finditer(text):
        (kind,) = (name for name in FACTS[task] if match[name])
        words = {name.removeprefix(f"{kind}_"): word for name, word in match.groupdict().items() if name.startswith(f"{kind}_")}
        yield match.start(), match.end(), Event(words.pop("direction", kind), **words)


def find_label(task: str, events: Sequence[Event], question: str, answer: str) -> Label | None:
    """The label of a question, given its answer; None if these facts do not give it. Raises ValueError on a question of another kind.

    A few questions of the official qa5 are answered by an earlier gift than the last one that fits; so the answer decides.
    """
    for template, labels in QUESTIONS[task].items():
        if match := re.fullmatch(_pattern(task, template), question.strip()):
            return next((label for label in labels(events, match.groupdict()) if label[0] == answer), None)
    raise ValueError(f"question {question!r}: not one of {task}; those are like {next(iter(QUESTIONS[task]))!r}")


# The rules; the simulator asks its questions by them --------------------------------------------------------------------------------


def moves(events: Sequence[Event], person: str, start: int, stop: int) -> list[int]:
    """Facts in which ``person`` moved, from ``start`` up to ``stop``, latest first."""
    return [i for i in range(stop - 1, start - 1, -1) if events[i].action == "move" and events[i].person == person]


def latest(events: Sequence[Event], thing: str, actions: tuple[str, ...], stop: int) -> int | None:
    """The last fact before ``stop`` with one of ``actions`` on ``thing``."""
    return next((i for i in range(stop - 1, -1, -1) if events[i].thing == thing and events[i].action in actions), None)


def place_of_person(events: Sequence[Event], person: str) -> Label | None:
    """qa1."""
    found = moves(events, person, 0, len(events))
    return (events[found[0]].place, (found[0],)) if found else None


def place_of_thing(events: Sequence[Event], thing: str) -> Label | None:
    """qa2."""
    last = latest(events, thing, ("get", "drop"), len(events))
    if last is None:
        return None
    carrier = events[last].person
    taken = events[last].action == "get"
    found = moves(events, carrier, last, len(events)) if taken else moves(events, carrier, 0, last)
    return (events[found[0]].place, (last, found[0])) if found else None


def places_before(events: Sequence[Event], thing: str) -> dict[str, Label]:
    """qa3: each place to which the thing was carried -> the label of "Where was the thing before that place?"."""
    last = latest(events, thing, ("get", "drop"), len(events))
    taken = None if last is None else latest(events, thing, ("get",), last + 1)
    if last is None or taken is None:
        return {}
    route = moves(events, events[last].person, taken, len(events) if last == taken else last)
    found: dict[str, Label] = {}
    for arrival, before in pairwise(route):
        found.setdefault(events[arrival].place, (events[before].place, (last, arrival, before)))
    return found


def relations(events: Sequence[Event], direction: str, place: str) -> Iterator[Label]:
    """qa4: what is in this direction of the place."""
    for i, event in enumerate(events):
        if (event.action, event.other) == (direction, place):
            yield event.place, (i,)
        elif (INVERSE[event.action], event.place) == (direction, place):
            yield event.other, (i,)


def gifts(events: Sequence[Event], asked: Asked, wanted: str) -> Iterator[Label]:
    """qa5: the field ``wanted`` of the gifts that fit, the latest first."""
    for i in range(len(events) - 1, -1, -1):
        if events[i].action == "give" and all(getattr(events[i], name) == word for name, word in asked.items()):
            yield getattr(events[i], wanted), (i,)


def _one(label: Label | None) -> tuple[Label, ...]:
    return () if label is None else (label,)


# The sentences ----------------------------------------------------------------------------------------------------------------------

_MOVE, _GET, _DROP = "{person} {moves} to the {place}.", "{person} {gets} the {thing}{there}.", "{person} {drops} the {thing}{there}."
FACTS = {
    "qa1": {"move": _MOVE},
    "qa2": {"move": _MOVE, "get": _GET, "drop": _DROP},
    "qa3": {"move": _MOVE, "get": _GET, "drop": _DROP},
    "qa4": {"relation": "The {place} is {direction} of the {other}."},
    "qa5": {"move": _MOVE, "get": _GET, "drop": _DROP, "give": "{person} {gives} the {thing} to {receiver}."},
}
"""Task -> kind of fact -> its sentence."""
QUESTIONS: dict[str, dict[str, Callable[[Sequence[Event], Asked], Iterable[Label]]]] = {
    "qa1": {"Where is {person}?": lambda events, asked: _one(place_of_person(events, asked["person"]))},
    "qa2": {"Where is the {thing}?": lambda events, asked: _one(place_of_thing(events, asked["thing"]))},
    "qa3": {
        "Where was the {thing} before the {place}?": lambda events, asked: _one(places_before(events, asked["thing"]).get(asked["place"]))
    },
    "qa4": {
        "What is {direction} of the {place}?": lambda events, asked: relations(events, asked["direction"], asked["place"]),
        "What is the {place} {direction} of?": lambda events, asked: relations(events, INVERSE[asked["direction"]], asked["place"]),
    },
    "qa5": {
        "What did {person} give to {receiver}?": partial(gifts, wanted="thing"),
        "Who gave the {thing}?": partial(gifts, wanted="person"),
        "Who gave the {thing} to {receiver}?": partial(gifts, wanted="person"),
        "Who received the {thing}?": partial(gifts, wanted="receiver"),
        "Who did {person} give the {thing} to?": partial(gifts, wanted="receiver"),
    },
}
"""Task -> question -> its possible labels, the best first."""


def _pattern(task: str, template: str, prefix: str = "") -> str:
    """A regular expression for a sentence; its groups are the fields of :class:`Event`, with a prefix, and ``direction``."""
    words = {
        "person": people(task),
        "receiver": people(task),
        "place": PLACES,
        "other": PLACES,
        "thing": THINGS,
        "direction": tuple(INVERSE),
    }
    # A longer verb is tried first: "went back" before "went".
    verbs = {f"{action}s": f"(?:{'|'.join(sorted(VERBS[action], key=len, reverse=True))})" for action in VERBS}
    groups = {name: f"(?P<{prefix}{name}>{'|'.join(choices)})" for name, choices in words.items()}
    return re.sub(r"[.?]", r"\\\g<0>", template).format_map({**groups, **verbs, "there": "(?: there)?"})


@cache
def _facts(task: str) -> re.Pattern[str]:
    return re.compile("|".join(f"(?P<{kind}>{_pattern(task, template, f'{kind}_')})" for kind, template in FACTS[task].items()))
