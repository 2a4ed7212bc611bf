"""Answer metrics against literals derived by hand and a slow independent implementation."""

from __future__ import annotations

import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qrag_jax.data.babilong import simulator
from qrag_jax.evaluate.answers import (
    BABILONG_LABELS,
    answer_em,
    answer_f1,
    babilong_correct,
    normalize_answer,
    string_match_all,
    string_match_part,
)

PIECES = ["the", "a", "An", "cat", "Cat", "dog!", "yes", "no", "No.", "noanswer", "--", "1990", "u.s."]
TEXTS = st.lists(st.sampled_from(PIECES), max_size=6).map(" ".join) | st.text(max_size=20)


def slow_normal(text: str) -> list[str]:
    """Character by character: letters of words, with articles dropped by scanning word borders of the punctuation-free text."""
    kept = "".join(char for char in text.lower() if char not in string.punctuation)
    out, run = "", ""
    for char in kept + " ":
        if char.isalnum() or char == "_":
            run += char
        else:
            out += (" " if run in ("a", "an", "the") else run) + char
            run = ""
    return out.split()


def slow_f1(prediction: str, gold: str) -> float:
    ours, theirs = slow_normal(prediction), slow_normal(gold)
    whole = (["yes"], ["no"], ["noanswer"])
    if ours != theirs and (ours in whole or theirs in whole):
        return 0.0
    if not ours or not theirs:
        return float(ours == theirs)
    left, hits = list(theirs), 0
    for word in ours:
        if word in left:
            left.remove(word)
            hits += 1
    if not hits:
        return 0.0
    precision, recall = hits / len(ours), hits / len(theirs)
    return 2 * precision * recall / (precision + recall)


def test_normalisation_by_hand() -> None:
    assert normalize_answer("  The U.S.A.'s  best-known\tAnthem ") == "usas bestknown anthem"
    assert normalize_answer("an apple a day; the end") == "apple day end"
    assert normalize_answer("another theory") == "another theory"  # articles are whole words
    assert normalize_answer("“Ünder”") == "“ünder”"  # only ASCII punctuation goes, as in SQuAD's script


def test_em_and_f1_by_hand() -> None:
    assert answer_em("The Eiffel Tower!", ["eiffel tower"]) == 1.0
    assert answer_em("Eiffel", ["eiffel tower"]) == 0.0
    # {new, york, city} against {new, york}: precision 2/3, recall 1, F1 = 4/5.
    assert answer_f1("New York City", ["New York"]) == pytest.approx(0.8)
    # Words count as often as they occur: 1 of 3 and 1 of 1, so 2 * 1 / (3 + 1).
    assert answer_f1("no no never", ["never"]) == pytest.approx(0.5)
    assert answer_f1("Berlin", ["Paris"]) == 0.0
    # The best over the right answers: against "york" 2/(2+1), against "new york" 1.
    assert answer_f1("new york", ["york", "New York"]) == 1.0
    assert answer_em("new york", ["york", "New York"]) == 1.0


def test_yes_and_no_earn_no_part_credit() -> None:
    assert answer_f1("yes", ["yes it is"]) == 0.0
    assert answer_f1("no, it is not", ["no"]) == 0.0
    assert answer_f1("Yes.", ["yes"]) == 1.0
    # Only against that gold: the other one still counts, 2 * 1 / (2 + 1).
    assert answer_f1("yes indeed", ["yes", "indeed"]) == pytest.approx(2 / 3)


def test_nothing_left_after_normalisation() -> None:
    assert answer_f1("the", ["a"]) == answer_em("the", ["a"]) == 1.0
    assert answer_f1("", ["Paris"]) == answer_em("", ["Paris"]) == 0.0


@settings(deadline=None)
@given(TEXTS, TEXTS)
def test_f1_agrees_with_the_slow_one_and_is_symmetric(prediction: str, gold: str) -> None:
    assert normalize_answer(prediction).split() == slow_normal(prediction)
    assert answer_f1(prediction, [gold]) == pytest.approx(slow_f1(prediction, gold))
    assert answer_f1(prediction, [gold]) == answer_f1(gold, [prediction])


@settings(deadline=None)
@given(TEXTS, st.lists(TEXTS, min_size=1, max_size=3))
def test_em_implies_full_f1_and_f1_full_marks_need_the_same_words(prediction: str, golds: list[str]) -> None:
    if answer_em(prediction, golds):
        assert answer_f1(prediction, golds) == 1.0
    full = any(sorted(slow_normal(prediction)) == sorted(slow_normal(gold)) for gold in golds)
    assert (answer_f1(prediction, golds) == 1.0) == full
    assert answer_em(prediction, [*golds, prediction]) == 1.0


@pytest.mark.parametrize("metric", [answer_em, answer_f1, string_match_all, string_match_part])
@pytest.mark.parametrize("golds", [[], "Paris"])
def test_without_right_answers_there_is_no_score(metric, golds) -> None:
    with pytest.raises(ValueError, match="list of one or more right answers"):
        metric("Paris", golds)


@pytest.mark.parametrize(
    ("prediction", "correct"),
    [
        ("bathroom", True),
        ("  The most recent location of Mary is the BATHROOM. She was in the kitchen before.", True),  # only the first sentence counts
        ("bathroom or kitchen", False),  # two labels
        ("kitchen", False),
        ("She is in the bath room", False),
        ("", False),
        ("I do not know. Perhaps the bathroom.", False),
        ("bathroom\n\n<example>\nWhere is John? kitchen", True),
        ("bathroom <context> kitchen", True),
        ("bathroom\nkitchen", False),  # a line end cuts nothing
        ("bathrooms", True),  # inside words too
    ],
)
def test_babilong_rule_by_hand(prediction: str, correct: bool) -> None:
    assert babilong_correct(prediction, "bathroom", "Where is Mary? ", "qa1") is correct


def test_babilong_labels_of_the_question_do_not_count() -> None:
    said = "Before the kitchen the apple was in the garden"
    assert babilong_correct(said, "garden", "Where was the apple before the kitchen? ", "qa3")
    assert not babilong_correct(said, "garden", "Where was the apple before the hallway? ", "qa3")
    # Of Fred, apple and Bill, the question names Bill.
    assert not babilong_correct("Fred gave the apple to Bill", "Fred", "Who gave something to Bill?", "qa5")
    assert babilong_correct("Fred gave the apple to Bill", "Fred", "Who gave the apple to Bill?", "qa5")


def test_babilong_several_targets_are_all_needed() -> None:
    asked = "What did Fred give away?"
    assert babilong_correct("milk and apple", "apple,milk", asked, "qa5")
    assert not babilong_correct("milk", "apple,milk", asked, "qa5")
    assert not babilong_correct("milk, apple, football", "apple,milk", asked, "qa5")


def test_babilong_bad_input() -> None:
    with pytest.raises(ValueError, match=r"task = 'qa21'.*qa1, qa2"):
        babilong_correct("kitchen", "kitchen", "Where?", "qa21")
    with pytest.raises(ValueError, match=r"target = 'cellar': must be among the answers of qa1: bathroom"):
        babilong_correct("cellar", "cellar", "Where?", "qa1")


@pytest.mark.parametrize("task", sorted(BABILONG_LABELS))
def test_generated_questions_accept_their_own_answer_and_no_other(task: str) -> None:
    for index in range(4):
        for question in simulator.simulate_story(task, "test", 0, index).questions:
            assert babilong_correct(question.answer, question.answer, question.question, task)
            for other in BABILONG_LABELS[task] - {question.answer.lower()}:
                assert not babilong_correct(other, question.answer, question.question, task)


def test_official_answers_are_labels(shared_data) -> None:
    for task, labels in BABILONG_LABELS.items():
        (path,) = (shared_data / "babi" / "en-10k").glob(f"{task}_*_test.txt")
        answers = {line.split("\t")[1].lower() for line in path.read_text().splitlines() if "\t" in line}
        assert answers == labels


def test_string_match_by_hand() -> None:
    said = "The numbers are 8030041, 2361641 and 01F35EFE."
    assert string_match_all(said, ["8030041", "2361641", "01f35efe"]) == 1.0
    assert string_match_all(said, ["8030041", "9999999", "2361641", "7777777"]) == 0.5
    assert string_match_part(said, ["9999999", "2361641"]) == 1.0
    assert string_match_part(said, ["9999999"]) == 0.0
