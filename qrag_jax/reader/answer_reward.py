"""Rewards from a frozen reader: its answers rate the chunks that an episode has picked (future work in the paper)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float, Int

from qrag_jax.reader.prompts import make_prompt
from qrag_jax.reader.protocol import Reader
from qrag_jax.types import QAExample

Score = Callable[[str, str, QAExample], float]
"""(task, the reader's answer, the question) -> a score in [0, 1]."""


class AnswerReward:
    """The reward of a step is the improvement of the best answer score so far; an episode earns at most 1 in total.

    With an exact-match score this is the support-fact reward, with "the reader answers correctly" instead of "all supporting chunks are
    picked". A question is asked only once with the same set of chunks.
    """

    def __init__(self, reader: Reader, benchmark: str, score: Score) -> None:
        self.reader, self.benchmark, self.score = reader, benchmark, score
        self._known: dict[tuple[str, frozenset[int]], float] = {}

    def __call__(self, examples: Sequence[QAExample], picked: Int[np.ndarray, "B T"], task: str) -> Float[np.ndarray, "B T"]:
        """Raises ReaderError if the reader cannot be reached: a missing answer never gets a score."""
        budget = picked.shape[1]
        sets = [
            # An empty pick, of a document with fewer chunks than the budget, adds nothing.
            [(example.id, frozenset(i for i in row[: t + 1].tolist() if i < len(example.chunks))) for t in range(budget)]
            for example, row in zip(examples, picked, strict=True)
        ]
        questions = {example.id: example for example in examples}
        fresh = [key for key in dict.fromkeys(key for row in sets for key in row) if key not in self._known]
        prompts = [
            make_prompt(self.benchmark, task, questions[name].question, [questions[name].chunks[i] for i in sorted(chunks)])
            for name, chunks in fresh
        ]
        for key, answer in zip(fresh, self.reader.answer(prompts) if prompts else [], strict=True):
            self._known[key] = self.score(task, answer.text, questions[key[0]])
        best = np.maximum.accumulate([[self._known[key] for key in row] for row in sets], axis=1)
        return np.diff(best, axis=1, prepend=0.0).astype(np.float32)
