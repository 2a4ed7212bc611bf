"""Rewards from a reader's answers, by hand."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from qrag_jax.reader.answer_reward import AnswerReward
from qrag_jax.reader.protocol import Answer, Prompt, ReaderError
from qrag_jax.types import QAExample

EXAMPLE = QAExample("q", "Where is Mary?", ("Noise.", "Mary went to the garden.", "Mary moved to the office."), "office", (2,))


class Parrot:
    """Says the last word of the last chunk it is shown."""

    name = "parrot"

    def __init__(self) -> None:
        self.asked = 0

    def answer(self, prompts: Sequence[Prompt]) -> list[Answer]:
        self.asked += len(prompts)
        texts = [prompt.user.split("\n\nQuestion:")[0] for prompt in prompts]
        return [Answer(text.split()[-1].rstrip("."), None, None, "stop") for text in texts]


def exact(task: str, prediction: str, example: QAExample) -> float:
    return float(prediction == example.answer)


def test_the_step_that_answers_is_rewarded_once() -> None:
    reader = Parrot()
    reward = AnswerReward(reader, "babilong", exact)
    # Prefixes of [0, 2, 1]: {0} says "Noise", {0, 2} "office", {0, 1, 2} "office" again, which earns nothing more.
    # Prefixes of [2, 1, 0]: {2} "office" at once.
    found = reward([EXAMPLE, EXAMPLE], np.array([[0, 2, 1], [2, 1, 0]]), "qa1")
    np.testing.assert_array_equal(found, [[0, 1, 0], [1, 0, 0]])
    assert reader.asked == 5, "sets {0}, {0, 2}, {0, 1, 2} and {2}, {1, 2}: the whole set is asked once, whatever its order"
    reward([EXAMPLE], np.array([[1, 2, 0]]), "qa1")
    assert reader.asked == 6, "only {1} is new"


def test_graded_scores_add_up_to_the_best() -> None:
    score = {"Noise": 0.25, "garden": 0.75, "office": 0.5}
    reward = AnswerReward(Parrot(), "babilong", lambda task, prediction, example: score[prediction])
    # Shown in document order: {0} 0.25, {0, 1} 0.75, {0, 1, 2} 0.5 which is no better.
    np.testing.assert_allclose(reward([EXAMPLE], np.array([[0, 1, 2]]), "qa1"), [[0.25, 0.5, 0.0]])


def test_an_outage_is_no_reward() -> None:
    class Down(Parrot):
        def answer(self, prompts: Sequence[Prompt]) -> list[Answer]:
            raise ReaderError("down")

    with pytest.raises(ReaderError, match="down"):
        AnswerReward(Down(), "babilong", exact)([EXAMPLE], np.array([[0, 2]]), "qa1")
