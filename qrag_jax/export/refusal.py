"""When the answer to a question is "not in the documents", as it is stored with a trained retriever."""

from __future__ import annotations

import math
from dataclasses import dataclass

from qrag_jax.config.parse import LARGEST, require


@dataclass(frozen=True)
class Refusal:
    """If the Q of no pick reaches ``least_q``, the documents do not hold an answer.

    It was chosen on ``questions`` validation questions, each asked to documents of up to ``chunks`` chunks with its supporting chunks
    (``answerable``: the share that was refused nevertheless) and without them (``unanswerable``: the share that was refused, rightly).
    """

    least_q: float
    answerable: float
    unanswerable: float
    questions: int
    chunks: int

    def __post_init__(self) -> None:
        require(math.isfinite(self.least_q), "least_q", self.least_q, "a finite number")
        for name in ("answerable", "unanswerable"):
            value = getattr(self, name)
            require(0 <= value <= 1, name, value, "in 0..1")
        for name in ("questions", "chunks"):
            value = getattr(self, name)
            require(1 <= value <= LARGEST, name, value, f"in 1..{LARGEST:,}")

    def __str__(self) -> str:
        return (
            f"Q {self.least_q:.3f}; on {self.questions} validation questions in up to {self.chunks:,} chunks, it refuses "
            f"{self.answerable:.1%} with and {self.unanswerable:.1%} without the supporting chunks"
        )
