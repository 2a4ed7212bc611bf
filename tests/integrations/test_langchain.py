"""The adapter for LangChain."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from qrag_jax import Retriever
from qrag_jax.retrieve.index import Index
from qrag_jax.retrieve.types import Pick
from tests.integrations.conftest import CHUNKS, INDEX, QUESTIONS, RUN, Calls, same


@pytest.fixture
def runs(langchain: Any) -> Any:
    """A handler that records (event, question or error, tags)."""
    from langchain_core.callbacks import BaseCallbackHandler

    class Runs(BaseCallbackHandler):
        def __init__(self) -> None:
            self.seen: list[tuple[str, Any]] = []

        def on_retriever_start(self, serialized: Any, query: str, *, tags: list[str] | None = None, **_: Any) -> None:
            self.seen.append(("start", (query, tuple(tags or ()))))

        def on_retriever_end(self, documents: Any, **_: Any) -> None:
            self.seen.append(("end", len(documents)))

        def on_retriever_error(self, error: BaseException, **_: Any) -> None:
            self.seen.append(("error", type(error)))

    return Runs()


def check_documents(documents: Any, picks: list[Pick]) -> None:
    assert [document.page_content for document in documents] == [pick.text for pick in picks]
    assert all(same(document.metadata, pick) for document, pick in zip(documents, picks, strict=True))


def test_langchain_gives_the_picks_in_document_order(langchain: Any, retriever: Retriever) -> None:
    adapter = langchain.QRAGRetriever(retriever=retriever, source=CHUNKS, budget=3)
    documents = adapter.invoke(QUESTIONS[0])
    check_documents(documents, retriever.search(QUESTIONS[0], CHUNKS, 3))
    assert [document.metadata["chunk"] for document in documents] == sorted(document.metadata["chunk"] for document in documents)
    assert len(adapter.invoke(QUESTIONS[0], budget=5)) == 5


def test_ids_belong_to_chunks_not_to_questions(langchain: Any, retriever: Retriever) -> None:
    adapter = langchain.QRAGRetriever(retriever=retriever, source=CHUNKS[:4], budget=4)
    ids = [[document.id for document in documents] for documents in map(adapter.invoke, QUESTIONS[:2])]
    assert ids[0] == ids[1]
    assert len(set(ids[0])) == 4
    other = langchain.QRAGRetriever(retriever=retriever, source=CHUNKS[3::-1], budget=4)
    assert not {document.id for document in other.invoke(QUESTIONS[0])} & set(ids[0])


def test_langchain_searches_in_a_thread_when_awaited(langchain: Any, counted: Calls) -> None:
    adapter = langchain.QRAGRetriever(retriever=counted, source=CHUNKS, budget=3)

    async def ask() -> tuple[Any, Any]:
        return await adapter.ainvoke(QUESTIONS[0]), await adapter.abatch(QUESTIONS)

    one, many = asyncio.run(ask())
    assert counted.passes == [QUESTIONS[:1], QUESTIONS]
    assert threading.get_ident() not in counted.threads
    check_documents(one, counted.search(QUESTIONS[0], CHUNKS, 3))
    for question, documents in zip(QUESTIONS, many, strict=True):
        check_documents(documents, counted.search(question, CHUNKS, 3))


def test_langchain_batch_is_one_pass_and_a_run_each(langchain: Any, counted: Calls, runs: Any) -> None:
    adapter = langchain.QRAGRetriever(retriever=counted, source=CHUNKS, budget=3)
    asked = [*QUESTIONS, QUESTIONS[0]]
    configs = [{"callbacks": [runs], "tags": [f"tag {i}"], "max_concurrency": 1} for i in range(len(asked))]
    found = adapter.batch(asked, configs)
    assert counted.passes == [QUESTIONS]
    expected = [event for i, question in enumerate(asked) for event in (("start", (question, (f"tag {i}",))), ("end", 3))]
    assert runs.seen == expected
    for question, documents in zip(asked, found, strict=True):
        check_documents(documents, counted.search(question, CHUNKS, 3))
    assert [len(documents) for documents in adapter.batch(QUESTIONS, budget=2)] == [2, 2, 2]
    assert adapter.batch([]) == []


def test_a_question_that_fails_in_a_batch_fails_in_its_own_run(langchain: Any, counted: Calls, runs: Any) -> None:
    adapter = langchain.QRAGRetriever(retriever=counted, source=CHUNKS, budget=3)
    asked = [QUESTIONS[0], "  ", QUESTIONS[1]]
    config = {"callbacks": [runs], "max_concurrency": 1}
    first, blank, last = adapter.batch(asked, config, return_exceptions=True)
    assert [event for event, _ in runs.seen] == ["start", "end", "start", "error", "start", "end"]
    assert counted.passes == [[QUESTIONS[0], QUESTIONS[1]], ["  "]]
    assert isinstance(blank, ValueError)
    assert len(first) == len(last) == 3
    with pytest.raises(ValueError, match="question"):
        adapter.batch(asked)
    errors = asyncio.run(adapter.abatch(QUESTIONS, budget=99, return_exceptions=True))
    assert ["budget = 99" in str(error) for error in errors] == [True] * 3


def test_langchain_chain(langchain: Any, counted: Calls) -> None:
    adapter = langchain.QRAGRetriever(retriever=counted, source=CHUNKS, budget=2)
    chain = adapter | (lambda documents: " ".join(document.page_content for document in documents))
    expected = [" ".join(pick.text for pick in counted.search(question, CHUNKS, 2)) for question in QUESTIONS]
    assert chain.invoke(QUESTIONS[0]) == expected[0]
    counted.passes.clear()
    assert chain.batch(QUESTIONS) == expected
    assert counted.passes == [QUESTIONS]


def test_two_threads_ask_at_once(langchain: Any, retriever: Retriever) -> None:
    adapter = langchain.QRAGRetriever(retriever=retriever, source=CHUNKS, budget=3)
    start = threading.Barrier(2)

    def ask(question: str) -> list[Any]:
        start.wait()
        return [adapter.invoke(question) for _ in range(3)]

    with ThreadPoolExecutor(2) as threads:
        answers = list(threads.map(ask, QUESTIONS[:2]))
    for question, found in zip(QUESTIONS, answers, strict=False):
        for documents in found:
            check_documents(documents, retriever.search(question, CHUNKS, 3))


@pytest.mark.parametrize(
    ("question", "budget", "named"), [("", 2, "question"), (" \n", 2, "question"), ("Who?", 13, "budget = 13"), ("Who?", 0, "budget = 0")]
)
def test_what_the_retriever_refuses_reaches_the_caller(
    question: str, budget: int, named: str, langchain: Any, retriever: Retriever
) -> None:
    with pytest.raises(ValueError, match=named):
        langchain.QRAGRetriever(retriever=retriever, source=CHUNKS, budget=budget).invoke(question)
    with pytest.raises(ValueError, match=named):
        langchain.QRAGRetriever(retriever=retriever, source=CHUNKS).invoke(question, budget=budget)


def test_langchain_refuses_unknown_fields_and_binds_budgets(langchain: Any, retriever: Retriever) -> None:
    with pytest.raises(ValueError, match="bugdet"):
        langchain.QRAGRetriever(retriever=retriever, source=CHUNKS, bugdet=2)
    adapter = langchain.QRAGRetriever(retriever=retriever, source=CHUNKS)
    assert [len(documents) for documents in adapter.bind(budget=2).with_config(tags=["two"]).batch(QUESTIONS)] == [2, 2, 2]


def test_langchain_from_folders(langchain: Any, folder: Path, retriever: Retriever) -> None:
    adapter = langchain.QRAGRetriever.from_pretrained(folder / RUN, folder / INDEX, budget=2)
    check_documents(adapter.invoke(QUESTIONS[0]), retriever.search(QUESTIONS[0], Index.open(folder / INDEX), 2))
