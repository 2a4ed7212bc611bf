"""What the three adapters of answers share: a retriever, a source and a reader that are opened once."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qrag_jax.integrations import load, metadata
from qrag_jax.reader.make import open_reader
from qrag_jax.reader.protocol import Reader
from qrag_jax.retrieve.answering import Citation, CitedAnswer
from qrag_jax.retrieve.retriever import Retriever, Source


@dataclass(frozen=True)
class Answerer:
    """Answers questions from one source. ``options`` are those of :meth:`qrag_jax.Retriever.answer`, such as budget, mode and filter."""

    retriever: Retriever
    source: Source
    reader: Reader
    options: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def open(cls, retriever_dir: str | Path, index_dir: str | Path, reader: Reader | str, **options: Any) -> Answerer:
        """From a run directory or an export folder, a folder written by ``Index``, and openai:URL,MODEL or flax:NAME."""
        return cls(*load(retriever_dir, index_dir), open_reader(reader) if isinstance(reader, str) else reader, options)

    def __call__(self, question: str, **options: Any) -> CitedAnswer:
        return self.retriever.answer(question, self.source, reader=self.reader, **{**self.options, **options})


def cited_metadata(citation: Citation) -> dict[str, Any]:
    """The metadata of a citation: those of its pick, its number in the answer, and its place."""
    return {**metadata(citation.pick), "citation": citation.number, "place": citation.place}
