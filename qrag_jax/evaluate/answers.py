"""Metrics of answers, on the host: SQuAD's EM and F1, BabiLong's accuracy, RULER's string match. Each function scores one question."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence

from qrag_jax.config import benchmarks
from qrag_jax.types import VALUES_SEPARATOR, QAExample

PUNCTUATION = str.maketrans("", "", string.punctuation)
ARTICLES = re.compile(r"\b(a|an|the)\b")
CLOSED = frozenset({"yes", "no", "noanswer"})
"""Answers that are right or wrong as a whole: no other answer shares credit with them."""

PLACES = frozenset({"bathroom", "bedroom", "garden", "hallway", "kitchen", "office"})
BABILONG_LABELS = {
    "qa1": PLACES,
    "qa2": PLACES,
    "qa3": PLACES,
    "qa4": PLACES,
    "qa5": frozenset({"bill", "fred", "jeff", "mary", "apple", "football", "milk"}),
}
"""All possible answers to the questions of a task, in lower case."""
ECHOES = re.compile(r"\.|<context>|<example>")


def normalize_answer(text: str) -> str:
    """Lower case, without ASCII punctuation and English articles, single spaces (SQuAD, Rajpurkar et al. 2016, evaluate-v1.1.py)."""
    return " ".join(ARTICLES.sub(" ", text.lower().translate(PUNCTUATION)).split())


def answer_em(prediction: str, golds: Sequence[str]) -> float:
    """1 if the prediction equals one of the right answers ``golds`` after normalisation, else 0. Raises ValueError without golds."""
    _check(golds, "golds")
    return float(normalize_answer(prediction) in {normalize_answer(gold) for gold in golds})


def answer_f1(prediction: str, golds: Sequence[str]) -> float:
    """F1 of the bags of normalised words, the best over ``golds``. Raises ValueError without golds.

    "yes", "no" and "noanswer" are right or wrong as a whole (HotpotQA, Yang et al. 2018, hotpot_evaluate_v1.py). If normalisation leaves
    no words on one side, F1 is 1 if it leaves none on the other either, and else 0 (SQuAD 2.0). So an EM of 1 means an F1 of 1.
    """
    _check(golds, "golds")
    return max(_f1(normalize_answer(prediction), normalize_answer(gold)) for gold in golds)


def _f1(prediction: str, gold: str) -> float:
    if prediction == gold:
        return 1.0
    if prediction in CLOSED or gold in CLOSED:
        return 0.0
    ours, theirs = Counter(prediction.split()), Counter(gold.split())
    return 2 * (ours & theirs).total() / (ours.total() + theirs.total())


def babilong_correct(prediction: str, target: str, question: str, task: str) -> bool:
    """BabiLong's rule (Kuratov et al. 2024, github.com/booydar/babilong, babilong/metrics.py), for qa1 to qa5.

    The prediction is cut at its first full stop (or at its first "<context>" or "<example>", after which a model invents more questions),
    but not at line ends. Labels of the task count if they occur in it, in any case and also inside words, and do not occur in the
    question. The prediction is correct if exactly the labels of the target count; a target "a,b" needs both. Raises ValueError for an
    unknown task and for a target that is no label of the task.
    """
    if task not in BABILONG_LABELS:
        raise ValueError(f"task = {task!r}: BabiLong's rule is known for {', '.join(BABILONG_LABELS)}")
    labels = BABILONG_LABELS[task]
    targets = {part.strip() for part in target.lower().split(",")}
    if not targets <= labels:
        raise ValueError(f"target = {target!r}: must be among the answers of {task}: {', '.join(sorted(labels))}")
    said, asked = ECHOES.split(prediction.lower(), maxsplit=1)[0], question.lower()
    return {label for label in labels if label in said and label not in asked} == targets


def string_match_all(prediction: str, references: Sequence[str]) -> float:
    """Fraction of ``references`` that occur in the prediction, in any case: RULER's score of needles (Hsieh et al. 2024)."""
    return sum(_contained(prediction, references)) / len(references)


def string_match_part(prediction: str, references: Sequence[str]) -> float:
    """1 if any of ``references`` occurs in the prediction, in any case, else 0: RULER's score of its question answering."""
    return float(any(_contained(prediction, references)))


def _contained(prediction: str, references: Sequence[str]) -> list[bool]:
    _check(references, "references")
    return [reference.lower() in prediction.lower() for reference in references]


def _check(answers: Sequence[str], name: str) -> None:
    if isinstance(answers, str) or not answers:
        raise ValueError(f"{name} = {answers!r}: must be a list of one or more right answers; leave out questions without one")


def score_answer(benchmark: str, task: str, prediction: str, example: QAExample) -> tuple[float, float | None]:
    """Answer EM and F1, by the benchmark's own rule. On BabiLong, EM is its accuracy; on RULER, the share of the values that the answer
    contains (RULER-QA: 1 for any of them); neither has an F1. Raises ValueError on an unknown benchmark or task."""
    return SCORERS[benchmarks.task(benchmark, task).scorer](task, prediction, example)


def _squad(task: str, prediction: str, example: QAExample) -> Score:
    golds = [example.answer, *example.aliases]
    return float(answer_em(prediction, golds)), answer_f1(prediction, golds)


Score = tuple[float, float | None]
SCORERS: dict[str, Callable[[str, str, QAExample], Score]] = {
    "squad": _squad,
    "babilong": lambda task, said, example: (float(babilong_correct(said, example.answer, example.question, task)), None),
    "all_values": lambda task, said, example: (string_match_all(said, example.answer.split(VALUES_SEPARATOR)), None),
    "any_value": lambda task, said, example: (string_match_part(said, [example.answer, *example.aliases]), None),
}
"""Name in the table of benchmarks -> (task, the reader's answer, the question) -> Answer EM and F1; F1 is None if the rule has none."""
