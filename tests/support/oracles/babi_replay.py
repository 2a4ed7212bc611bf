"""An independent replay of bAbI facts: answer and support of a question, derived from the sentences alone.

Shares no code with the library, and is written the slow, obvious way. Every official file and every generated story must agree with it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

MOVE = re.compile(r"(\w+) (?:went back|went|moved|journeyed|travelled) to the (\w+)\.")
GET = re.compile(r"(\w+) (?:got|took|grabbed|picked up) the (\w+)(?: there)?\.")
DROP = re.compile(r"(\w+) (?:dropped|left|discarded|put down) the (\w+)(?: there)?\.")
GIVE = re.compile(r"(\w+) (?:gave|handed|passed) the (\w+) to (\w+)\.")
RELATION = re.compile(r"The (\w+) is (north|south|east|west) of the (\w+)\.")
OPPOSITE = {"north": "south", "south": "north", "east": "west", "west": "east"}

Answer = tuple[str, tuple[int, ...]]


def parse(sentence: str) -> tuple[str, ...]:
    """('move', person, place), ('get' | 'drop', person, thing), ('give', person, thing, receiver) or ('relation', a, direction, b)."""
    for name, pattern in (("move", MOVE), ("get", GET), ("drop", DROP), ("give", GIVE), ("relation", RELATION)):
        if match := pattern.fullmatch(sentence):
            return (name, *match.groups())
    raise AssertionError(f"not a bAbI sentence: {sentence!r}")


def is_fact(sentence: str) -> bool:
    return any(pattern.fullmatch(sentence) for pattern in (MOVE, GET, DROP, GIVE, RELATION))


def solve(facts: Sequence[str], question: str) -> Answer:
    """The answer and the ascending indices of the facts that support it."""
    events = [parse(sentence) for sentence in facts]
    for pattern, rule in (
        (r"Where is (?!the )(\w+)\?", where_is_person),
        (r"Where is the (\w+)\?", where_is_thing),
        (r"Where was the (\w+) before the (\w+)\?", where_was_thing),
        (r"What is (\w+) of the (\w+)\?", what_is_of),
        (r"What is the (\w+) (\w+) of\?", what_is_it_of),
    ):
        if match := re.fullmatch(pattern, question):
            answer, support = rule(events, *match.groups())
            return answer, tuple(sorted(support))
    return who_gave_what(events, question)


def check_possible(facts: Sequence[str]) -> None:
    """Replays qa1, qa2, qa3 and qa5 facts and asserts that nothing impossible happens, as far as the places are known."""
    place: dict[str, str] = {}
    lying: dict[str, str | None] = {}
    holder: dict[str, str] = {}
    for event in map(parse, facts):
        person = event[1]
        if event[0] == "move":
            assert place.get(person) != event[2], f"{person} is already there: {event}"
            place[person] = event[2]
        elif event[0] == "get":
            assert event[2] not in holder, f"held by {holder.get(event[2])}: {event}"
            assert lying.get(event[2]) is None or place.get(person) in (None, lying[event[2]]), f"is elsewhere: {event}"
            holder[event[2]] = person
        elif event[0] == "drop":
            assert holder.pop(event[2], None) == person, f"not held: {event}"
            lying[event[2]] = place.get(person)
        else:
            assert holder.get(event[2]) == person, f"not held: {event}"
            assert event[3] != person, f"given to oneself: {event}"
            places = {place.get(person), place.get(event[3])} - {None}
            assert len(places) < 2, f"not in the same place: {event}"
            holder[event[2]] = event[3]


def where_is_person(events: list[tuple[str, ...]], person: str) -> Answer:
    moves = [i for i, event in enumerate(events) if event[:2] == ("move", person)]
    return events[moves[-1]][2], (moves[-1],)


def where_is_thing(events: list[tuple[str, ...]], thing: str) -> Answer:
    """Held: where its holder moved last since taking it. Dropped: where the dropper had moved last."""
    last = touched(events, thing)[-1]
    person = events[last][1]
    if events[last][0] == "get":
        moves = [i for i in range(last + 1, len(events)) if events[i][:2] == ("move", person)]
    else:
        moves = [i for i in range(last) if events[i][:2] == ("move", person)]
    return events[moves[-1]][2], (last, moves[-1])


def where_was_thing(events: list[tuple[str, ...]], thing: str, place: str) -> Answer:
    """Follows the thing through the story; the answer is where it was before it came to ``place`` for the last time."""
    stays: list[tuple[str, int]] = []  # where the thing was carried to, and by which fact
    found: tuple[tuple[str, int], tuple[str, int]] | None = None
    holder = None
    for i, event in enumerate(events):
        if event[0] == "move" and event[1] == holder:
            stays.append((event[2], i))
            if len(stays) > 1 and event[2] == place:
                found = (stays[-2], stays[-1])
        elif event[0] == "get" and event[2] == thing:
            holder, stays = event[1], []
        elif event[0] == "drop" and event[2] == thing:
            holder = None
    assert found, f"the {thing} never came to the {place}"
    before, arrival = found
    return before[0], (touched(events, thing)[-1], arrival[1], before[1])


def touched(events: list[tuple[str, ...]], thing: str) -> list[int]:
    return [i for i, event in enumerate(events) if event[0] in ("get", "drop") and event[2] == thing]


def what_is_of(events: list[tuple[str, ...]], direction: str, known: str) -> Answer:
    """'What is north of the K?': X from 'The X is north of the K.' or from 'The K is south of the X.'"""
    hits = [(e[1], i) for i, e in enumerate(events) if e[2:] == (direction, known)]
    hits += [(e[3], i) for i, e in enumerate(events) if e[1:3] == (known, OPPOSITE[direction])]
    assert len(hits) == 1, f"{len(hits)} places are {direction} of the {known}"
    return hits[0][0], (hits[0][1],)


def what_is_it_of(events: list[tuple[str, ...]], known: str, direction: str) -> Answer:
    """'What is the K north of?' asks for X with 'K north of X', that is, for what is south of K."""
    return what_is_of(events, OPPOSITE[direction], known)


def who_gave_what(events: list[tuple[str, ...]], question: str) -> Answer:
    """The latest giving that fits the question."""
    for pattern, asked, known in (  # positions in ('give', giver, thing, receiver)
        (r"What did (\w+) give to (\w+)\?", 2, (1, 3)),
        (r"Who gave the (\w+) to (\w+)\?", 1, (2, 3)),
        (r"Who did (\w+) give the (\w+) to\?", 3, (1, 2)),
        (r"Who gave the (\w+)\?", 1, (2,)),
        (r"Who received the (\w+)\?", 3, (2,)),
    ):
        if match := re.fullmatch(pattern, question):
            fits = [i for i, e in enumerate(events) if e[0] == "give" and tuple(e[k] for k in known) == match.groups()]
            return events[fits[-1]][asked], (fits[-1],)
    raise AssertionError(f"not a bAbI question: {question!r}")
