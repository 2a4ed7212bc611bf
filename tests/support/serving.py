"""A served index of a few documents, and readers for it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from qrag_jax import Index, Retriever, Text
from qrag_jax.reader.protocol import Answer, Prompt

TEXTS = [
    Text("Mary went to the garden. Mary took the milk.", "a.pdf", {"page": 3, "year": 2024}),
    Text("John slept in the office. <script>alert(1)</script>", "b.html", {"heading": "Rest", "year": 2023}),
    Text("Sandra moved to the hallway. Daniel left. Nobody saw him.", "c.txt"),
]
QUESTION = "Where is Mary?"


def build(retriever: Retriever, place: Path) -> Index:
    return Index.build(retriever, TEXTS, place)


class SlowReader:
    """Writes its ``pieces`` one by one; before each it waits for ``go``, if that is not None."""

    name = "slow"

    def __init__(self, *pieces: str, go: threading.Semaphore | None = None) -> None:
        self.pieces, self.go = pieces, go
        self.prompts: list[Prompt] = []
        self.written = 0

    def answer(self, prompts: Sequence[Prompt]) -> list[Answer]:
        return [self.stream(prompt, lambda piece: None) for prompt in prompts]

    def stream(self, prompt: Prompt, hear: Callable[[str], None]) -> Answer:
        self.prompts.append(prompt)
        for piece in self.pieces:
            if self.go is not None:
                self.go.acquire(timeout=20)
            self.written += 1
            hear(piece)
        return Answer("".join(self.pieces), 10, len(self.pieces), "stop")
