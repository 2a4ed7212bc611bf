"""Generated bAbI stories, qa1 to qa5, with the same distribution as the official files (Weston et al. 2015, arXiv 1502.05698).

The rules of the official stories were inferred from the files themselves:

- People and things begin at hidden places. A fact is drawn by rejection: a person, an action and a place are drawn uniformly until the
  action is possible. Nobody moves to their present place; things are taken where they lie and given to people in the same place.
- After every second fact a question is asked, if one is possible, until the story has five. It is about the person or thing of a fact
  drawn uniformly from the last five facts; nothing older is asked about.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain, repeat

import numpy as np

from qrag_jax.data.babilong.labels import (
    INVERSE,
    PLACES,
    THINGS,
    VERBS,
    Event,
    latest,
    people,
    place_of_person,
    place_of_thing,
    places_before,
)
from qrag_jax.data.babilong.stories import BABI_TASKS, BabiQuestion, Story, check_task
from qrag_jax.data.splits import SPLITS, Split, check_split, hashed_split

# An action is drawn in proportion to its count here; in the official qa5, giving is three to four times as likely as dropping.
ACTIONS = {
    "qa1": ("move",),
    "qa2": ("move", "get", "drop"),
    "qa3": ("move", "get", "drop"),
    "qa5": ("move", "get", "drop") * 2 + ("give",) * 7,
}
# How often "there" ends a sentence, as in "John took the milk there."
THERE = {"get": {"qa2": 1.0, "qa3": 0.2, "qa5": 1.0}, "drop": {"qa2": 0.2, "qa3": 0.2, "qa5": 0.2}}

QUESTIONS = {"qa1": 5, "qa2": 5, "qa3": 5, "qa4": 1, "qa5": 5}
"""Number of questions per story."""
QUESTION_EVERY = 2
WINDOW = 5
FEWEST_FACTS = {"qa1": 2, "qa2": 2, "qa3": 4, "qa4": 2, "qa5": 2}
"""Every question of the task, official or generated, has at least this many facts before it."""
OPENING = 4
"""The first facts of a story decide its split, so that a story of another split is abandoned early."""

DIRECTIONS = (("north", "south"), ("east", "west"))
SHARED_LAST = 2 / 3
"""qa4: how often a fact names the place that both facts share last ("The office is north of the SHARED.")."""
NUMBERS = 64  # random numbers fetched at a time


class _Draw:
    """Random choices. Numbers are fetched from the generator many at a time, since a single one costs almost as much."""

    def __init__(self, generator: np.random.Generator) -> None:
        self._number = chain.from_iterable(generator.random(NUMBERS).tolist() for _ in repeat(None)).__next__

    def below(self, n: int) -> int:
        return int(self._number() * n)

    def one(self, options: tuple[str, ...] | list[str]) -> str:
        return options[int(self._number() * len(options))]

    def happens(self, probability: float) -> bool:
        return self._number() < probability


def simulate_story(task: str, split: Split, seed: int, index: int, questions: int | None = None) -> Story:
    """Story ``index`` of a split: a pure function of its arguments. It ends with the last of its ``questions`` questions.

    Stories of two splits never begin with the same four facts (two in qa4), whatever the seeds: a hash of the opening decides its split,
    and openings of another split are drawn again.
    """
    check_task(task)
    check_split(split)
    if seed < 0 or index < 0:
        raise ValueError(f"seed = {seed}, index = {index}: both must be >= 0")
    count = QUESTIONS[task] if questions is None else questions
    if not 1 <= count <= QUESTIONS[task]:
        raise ValueError(f"questions = {count}: a story of {task} has 1..{QUESTIONS[task]}")
    attempt = 0
    while True:
        key = (seed, BABI_TASKS.index(task), SPLITS.index(split), index, attempt)
        draw = _Draw(np.random.default_rng(key))
        story = _relations(split, draw) if task == "qa4" else _Scene(task, draw).story(split, count)
        if story is not None:
            return story
        attempt += 1


class _Scene:
    """The world of qa1, qa2, qa3 and qa5, and the events so far."""

    def __init__(self, task: str, draw: _Draw) -> None:
        self.task = task
        self.draw = draw
        self.people = people(task)
        self.place = {name: draw.one(PLACES) for name in (*self.people, *THINGS)}
        self.holder: dict[str, str] = {}
        self.events: list[Event] = []

    def story(self, split: Split, count: int) -> Story | None:
        """A story up to its question ``count``, or None if its opening belongs to another split."""
        facts: list[str] = []
        questions: list[BabiQuestion] = []
        while len(questions) < count or len(facts) < OPENING:
            event = self._next_event()
            self._happen(event)
            facts.append(self._sentence(event))
            if len(facts) == OPENING and hashed_split("\n".join(facts)) != split:
                return None
            if len(facts) % QUESTION_EVERY == 0 and (question := self._question()):
                questions.append(question)
        return Story(tuple(facts), tuple(questions[:count]))

    def _next_event(self) -> Event:
        draw, place = self.draw, self.place
        while True:
            person, action = draw.one(self.people), draw.one(ACTIONS[self.task])
            if action == "move":
                if (target := draw.one(PLACES)) != place[person]:
                    return Event(action, person, place=target)
                continue
            if action == "get":
                things = [thing for thing in THINGS if thing not in self.holder and place[thing] == place[person]]
            else:
                things = [thing for thing in THINGS if self.holder.get(thing) == person]
            if not things:
                continue
            if action != "give":
                return Event(action, person, thing=draw.one(things))
            if near := [other for other in self.people if other != person and place[other] == place[person]]:
                return Event(action, person, thing=draw.one(things), receiver=draw.one(near))

    def _happen(self, event: Event) -> None:
        self.events.append(event)
        if event.action == "move":
            self.place[event.person] = event.place
            for thing, person in self.holder.items():
                if person == event.person:
                    self.place[thing] = event.place
        elif event.action == "drop":
            del self.holder[event.thing]
        else:
            self.holder[event.thing] = event.receiver or event.person

    def _sentence(self, event: Event) -> str:
        verb = self.draw.one(VERBS[event.action])
        if event.action == "move":
            return f"{event.person} {verb} to the {event.place}."
        if event.action == "give":
            return f"{event.person} {verb} the {event.thing} to {event.receiver}."
        there = " there" if self.draw.happens(THERE[event.action][self.task]) else ""
        return f"{event.person} {verb} the {event.thing}{there}."

    def _question(self) -> BabiQuestion | None:
        """A question about one of the last facts, drawn uniformly from the facts that allow a question."""
        recent = list(range(max(0, len(self.events) - WINDOW), len(self.events)))
        while recent:
            fact = recent.pop(self.draw.below(len(recent)))
            if found := _ASK[self.task](self, self.events[fact]):
                question, answer, support = found
                return BabiQuestion(question, answer, tuple(sorted(support)), len(self.events))
        return None


Asked = tuple[str, str, tuple[int, ...]] | None


def _ask_person(scene: _Scene, event: Event) -> Asked:
    label = place_of_person(scene.events, event.person)
    return None if label is None else (f"Where is {event.person}?", *label)


def _ask_thing(scene: _Scene, event: Event) -> Asked:
    label = None if event.action == "move" else place_of_thing(scene.events, event.thing)
    return None if label is None else (f"Where is the {event.thing}?", *label)


def _ask_earlier(scene: _Scene, event: Event) -> Asked:
    labels = {} if event.action == "move" else places_before(scene.events, event.thing)
    if not labels:
        return None
    place = scene.draw.one(list(labels))
    return f"Where was the {event.thing} before the {place}?", *labels[place]


def _ask_giving(scene: _Scene, event: Event) -> Asked:
    if event.action != "give":
        return None
    last = latest(scene.events, event.thing, ("give",), len(scene.events))
    assert last is not None
    giver, thing, receiver = scene.events[last].person, event.thing, scene.events[last].receiver
    form = scene.draw.below(6)
    if form < 2:
        # The official qa5 also asks this if the same two people exchanged another thing later: 22 questions have a wrong answer.
        if any((later.person, later.receiver) == (giver, receiver) for later in scene.events[last + 1 :]):
            return None
        return f"What did {giver} give to {receiver}?", thing, (last,)
    question, answer = (
        (f"Who gave the {thing}?", giver),
        (f"Who gave the {thing} to {receiver}?", giver),
        (f"Who received the {thing}?", receiver),
        (f"Who did {giver} give the {thing} to?", receiver),
    )[form - 2]
    return question, answer, (last,)


_ASK: dict[str, Callable[[_Scene, Event], Asked]] = {
    "qa1": _ask_person,
    "qa2": _ask_thing,
    "qa3": _ask_earlier,
    "qa5": _ask_giving,
}


def _relations(split: Split, draw: _Draw) -> Story | None:
    """qa4: three places in a row, two facts about the middle one, and one question about the place a fact names last."""
    places = list(PLACES)
    first, middle, last = (places.pop(draw.below(len(places))) for _ in range(3))
    forward, backward = DIRECTIONS[draw.below(2)]
    facts: list[tuple[str, str, str]] = []
    for outer, direction, inverse in ((first, forward, backward), (last, backward, forward)):
        facts.append((outer, direction, middle) if draw.happens(SHARED_LAST) else (middle, inverse, outer))
    if draw.below(2):
        facts.reverse()
    sentences = tuple(f"The {a} is {direction} of the {b}." for a, direction, b in facts)
    if hashed_split("\n".join(sentences)) != split:
        return None
    asked = draw.below(2)
    answer, direction, known = facts[asked]
    inverse = INVERSE[direction]
    question = f"What is {direction} of the {known}?" if draw.below(2) else f"What is the {known} {inverse} of?"
    return Story(sentences, (BabiQuestion(question, answer, (asked,), 2),))
