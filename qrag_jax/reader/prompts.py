"""Prompts for a frozen reader: the task, examples as earlier turns, the retrieved chunks, the question, the form of the answer.

The wording is our own. BabiLong's own prompts ask for a whole sentence in qa1 to qa3; here all five tasks ask for one word, which
BabiLong's rule scores in the same way. Neither lists possible answers. The people, things and places of the examples are not answers of the
benchmark, so an answer copied from an example never counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from qrag_jax.config import benchmarks
from qrag_jax.reader.protocol import Prompt
from qrag_jax.rundir.printable import printable


@dataclass(frozen=True)
class Template:
    """``form``: the form of the answer, at the end of the prompt. ``examples``: (text, question, answer)."""

    instruction: str
    form: str
    examples: tuple[tuple[str, str, str], ...] = ()


AMONG_OTHERS = (
    "You are given pieces of a long document, in its order. A few of its sentences are facts about {about}; the others do not matter."
)
CARRIED = "A thing moves with the person who carries it, and stays where it is put down."
ONE_PLACE = "Answer with one word, the name of the place, and nothing else."

BABILONG = {
    "qa1": Template(
        f"{AMONG_OTHERS.format(about='where people go')} A person is in the place that the last fact about them names.",
        ONE_PLACE,
        (
            ("Peter journeyed to the cellar. Anna went to the attic. Peter moved to the library.", "Where is Peter?", "library"),
            ("Anna travelled to the harbour. Anna went back to the stable. Ruth moved to the attic.", "Where is Anna?", "stable"),
        ),
    ),
    "qa2": Template(
        f"{AMONG_OTHERS.format(about='where people go and what they take and leave')} {CARRIED}",
        ONE_PLACE,
        (
            ("Anna went to the cellar. Anna took the lamp there. Anna moved to the attic.", "Where is the lamp?", "attic"),
            (
                "Peter moved to the stable. Peter got the rope there. Peter discarded the rope. Peter went to the harbour.",
                "Where is the rope?",
                "stable",
            ),
        ),
    ),
    "qa3": Template(
        f"{AMONG_OTHERS.format(about='where people go and what they take and leave')} {CARRIED} "
        "Find the places the thing has been in, one after the other; the answer is the place right before the one asked about.",
        ONE_PLACE,
        (
            (
                "Peter picked up the rope. Peter journeyed to the stable. Peter travelled to the harbour.",
                "Where was the rope before the harbour?",
                "stable",
            ),
            (
                "Anna went to the cellar. Anna got the lamp. Ruth moved to the library. Anna moved to the attic. Anna left the lamp. "
                "Anna went to the library.",
                "Where was the lamp before the attic?",
                "cellar",
            ),
        ),
    ),
    "qa4": Template(
        f"{AMONG_OTHERS.format(about='which place lies north, south, east or west of which')} "
        "If one place is north of another, the other is south of it; so with east and west.",
        ONE_PLACE,
        (
            ("The library is north of the cellar. The attic is south of the cellar.", "What is north of the cellar?", "library"),
            ("The stable is west of the harbour. The attic is east of the harbour.", "What is the harbour east of?", "stable"),
        ),
    ),
    "qa5": Template(
        f"{AMONG_OTHERS.format(about='what people take, leave and give to each other')} "
        "If a thing changed hands more than once, the question is about the last time.",
        "Answer with one word, the name of the person or of the thing, and nothing else.",
        (
            ("Anna took the lamp there. Anna handed the lamp to Peter.", "Who did Anna give the lamp to?", "Peter"),
            ("Ruth got the rope there. Ruth passed the rope to Anna. Peter went to the attic.", "What did Ruth give to Anna?", "rope"),
            ("Peter gave the lamp to Ruth. Ruth gave the lamp to Anna.", "Who gave the lamp?", "Ruth"),
        ),
    ),
}

NEEDLES = Template(
    "You are given pieces of a long document, in its order. Some of its sentences give a name a special magic value: a number, a word or a "
    "UUID. A name can have several values.",
    "Answer with every value asked for, exactly as it is written, separated by commas, and nothing else.",
)

TEXTS = Template(
    "You are given pieces of text. The answer follows from one of them or from several together; some may not matter.",
    "Answer with yes, with no, or with the shortest name, date, number or phrase that answers, and nothing else.",
)

TEMPLATES = {**{f"babilong-{task}": template for task, template in BABILONG.items()}, "needles": NEEDLES, "texts": TEXTS}
"""By their names in the table of benchmarks."""

NOTHING_GIVEN = "You are given a question without any text. Answer from what you know; if you do not know, guess."


def make_prompt(benchmark: str, task: str, question: str, chunks: Sequence[str]) -> Prompt:
    """The prompt of one question. ``chunks``: texts of the retrieved chunks, in document order. Their control
    characters are written as escapes.

    ``benchmark`` may be a mixture such as "hotpotqa:2+musique" of benchmarks that share a prompt; ``task`` matters if a benchmark's tasks
    have different prompts. Raises ValueError on an unknown benchmark or task, and without chunks (use :func:`closed_book`).
    """
    template = _template(benchmark, task)
    if isinstance(chunks, str) or not chunks:
        raise ValueError(f"chunks = {chunks!r}: must be a list of one or more texts; for a question without chunks, call closed_book")
    shots = tuple((_asked(text, example, template.form), answer) for text, example, answer in template.examples)
    return Prompt(template.instruction, _asked(printable("\n".join(chunks)), printable(question), template.form), shots)


def _asked(text: str, question: str, form: str) -> str:
    return f"Text:\n{text}\n\nQuestion: {question.strip()}\n{form}"


def closed_book(benchmark: str, task: str, question: str) -> Prompt:
    """The prompt with the question alone and the same form of answer, to see what a reader knows or guesses without retrieval."""
    return Prompt(NOTHING_GIVEN, f"Question: {printable(question.strip())}\n{_template(benchmark, task).form}")


def _template(benchmark: str, task: str) -> Template:
    return TEMPLATES[benchmarks.task(benchmark, task).prompt]
