"""Questions and states as they are read: what is refused, and what is said of those that are longer than the encoders read."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from qrag_jax.models.tokenizer import TextTokenizer
from qrag_jax.retrieve.sources import check_encodable
from qrag_jax.rl.env import StateLayout


def check_questions(questions: Sequence[str], tokenizer: TextTokenizer, longest: int) -> str | None:
    """Raises ValueError on a question that is no text; the line to say if some have more than ``longest`` tokens, special ones included."""
    for question in questions:
        if not isinstance(question, str):
            raise ValueError(f"question = {question!r}: must be a text (str)")
        if not question.strip():
            raise ValueError("question is empty")
        check_encodable(question, "question")
    room = tokenizer.room(longest)
    sizes = [len(ids) for ids in tokenizer.lookup(questions)]
    if (most := max(sizes, default=0)) <= room:
        return None
    which = "the question is" if len(sizes) == 1 else f"{sum(size > room for size in sizes):,} of {len(sizes):,} questions are"
    return (
        f"cut: {which} longer than the {room} tokens that the retriever reads; up to {most - room} tokens at the end are not read: "
        "ask a shorter question"
    )


def state_lengths(asked: Int[np.ndarray, "P Lq"], rows: Int[np.ndarray, "P T Lc"], layout: StateLayout) -> Int[np.ndarray, " P"]:
    """The tokens of each state, of the token rows of its question and of its picks, before it is cut."""
    inside = np.minimum(np.maximum((rows >= 0).sum(-1) - layout.prefix, 0), layout.chunk_tokens)
    return (asked >= 0).sum(-1) + inside.sum(-1)


def cut_states(lengths: Int[np.ndarray, " P"], tokens: int) -> str | None:
    """The line to say if a state of one of these lengths is longer than the ``tokens`` that are read."""
    longest = int(lengths.max())
    if longest <= tokens:
        return None
    return (
        f"a state (the question and the picks so far) of {longest} tokens was cut to the {tokens} that the retriever reads: "
        "its last picks are read in part or not at all; ask for fewer picks (a lower budget)"
    )
