"""Answers with citations in LangChain, LlamaIndex and Haystack."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qrag_jax import Retriever
from qrag_jax.retrieve.index import Index
from tests.integrations.conftest import INDEX, QUESTIONS, RUN
from tests.support.http import completion, stub_server

TEXT = "In the garden [2]."


@pytest.fixture
def reader(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    with stub_server(lambda user, n: completion("In the garden [2][9].")) as server:
        yield f"openai:{server.url},stub"


def second(retriever: Retriever, folder: Path, budget: int) -> int:
    """The chunk that citation 2 names: the second pick in document order."""
    return retriever.search(QUESTIONS[0], Index.open(folder / INDEX), budget)[1].chunk


def test_langchain_answers(langchain: Any, folder: Path, retriever: Retriever, reader: str) -> None:
    answerer = langchain.QRAGAnswerer.from_pretrained(folder / RUN, folder / INDEX, reader, budget=3)
    chain = answerer | (lambda answer: (answer.text, [one.pick.chunk for one in answer.citations], answer.removed))
    assert chain.invoke(QUESTIONS[0]) == (TEXT, [second(retriever, folder, 3)], (9,))
    assert len(answerer.invoke(QUESTIONS[0], budget=2).steps) == 2
    assert [answer[0] for answer in chain.batch(QUESTIONS[:2])] == [TEXT, TEXT]


def test_llama_index_answers(llama_index: Any, folder: Path, retriever: Retriever, reader: str) -> None:
    engine = llama_index.QRAGQueryEngine.from_pretrained(folder / RUN, folder / INDEX, reader, budget=3)
    response = engine.query(QUESTIONS[0])
    assert str(response) == TEXT
    (node,) = response.source_nodes
    assert (node.node.metadata["chunk"], node.node.metadata["citation"]) == (second(retriever, folder, 3), 2)
    assert response.metadata["answer"].removed == (9,)


def test_haystack_answers(haystack: Any, folder: Path, retriever: Retriever, reader: str) -> None:
    from haystack import Pipeline

    pipeline = Pipeline()
    pipeline.add_component("answerer", haystack.QRAGAnswerer(str(folder / RUN), str(folder / INDEX), reader, {"budget": 3}))
    again = Pipeline.loads(pipeline.dumps(), allowed_modules=["qrag_jax.integrations.haystack"])
    (answer,) = again.run({"answerer": {"query": QUESTIONS[0]}})["answerer"]["answers"]
    assert (answer.data, answer.meta) == (TEXT, {"found": True, "judge": None, "removed": [9]})
    (document,) = answer.documents
    assert (document.meta["chunk"], document.meta["citation"]) == (second(retriever, folder, 3), 2)
