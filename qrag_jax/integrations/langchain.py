"""A LangChain retriever: any runnable chain can start with it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qrag_jax.integrations import identity, load, metadata, missing
from qrag_jax.integrations.answers import Answerer
from qrag_jax.retrieve.answering import CitedAnswer
from qrag_jax.retrieve.retriever import Retriever, Source
from qrag_jax.retrieve.types import Pick

try:
    from langchain_core.callbacks import AsyncCallbackManagerForRetrieverRun, CallbackManagerForRetrieverRun
    from langchain_core.documents import Document
    from langchain_core.retrievers import BaseRetriever
    from langchain_core.runnables import Runnable, RunnableConfig
    from pydantic import ConfigDict, Field, SkipValidation
except ImportError as error:
    raise missing("langchain-core") from error

Found = dict[str, list[Pick]]
Configs = RunnableConfig | list[RunnableConfig] | None


class QRAGRetriever(BaseRetriever):
    """Chunks picked in several steps, in document order.

    ``source``, ``budget``, ``beam``, ``stop`` and ``filter`` are those of :meth:`qrag_jax.Retriever.search`: an ``Index``, the chunks of a
    document in order, a text (``str``), or a text file or folder (``Path``). ``invoke`` and ``batch`` (and their async forms) also take a
    ``budget`` and a ``filter`` for one call. The metadata of a document are its own and the fields of
    :class:`~qrag_jax.retrieve.types.Pick`.

    Raises ValueError on an empty question, or a budget below 1.
    """

    model_config = ConfigDict(extra="forbid")

    retriever: Retriever = Field(repr=False)
    source: SkipValidation[Source] = Field(repr=False)
    budget: int = 4
    beam: int = 1
    stop: bool = False
    filter: Any = None

    def model_post_init(self, context: Any) -> None:
        """Chunks and texts are embedded here, once."""
        super().model_post_init(context)
        self.source = self.retriever.document(self.source)

    @classmethod
    def from_pretrained(cls, retriever_dir: str | Path, index_dir: str | Path, **fields: Any) -> QRAGRetriever:
        """From a run directory or an export folder, and a folder written by ``Index``."""
        retriever, index = load(retriever_dir, index_dir)
        return cls(retriever=retriever, source=index, **fields)

    def _get_relevant_documents(
        self,
        query: str,
        *,
        run_manager: CallbackManagerForRetrieverRun,
        budget: int | None = None,
        filter: Any = None,
        found: Found | None = None,
    ) -> list[Document]:
        return self._documents(query, budget, filter, found)

    async def _aget_relevant_documents(
        self,
        query: str,
        *,
        run_manager: AsyncCallbackManagerForRetrieverRun,
        budget: int | None = None,
        filter: Any = None,
        found: Found | None = None,
    ) -> list[Document]:
        return await asyncio.to_thread(self._documents, query, budget, filter, found)

    def batch(
        self,
        inputs: list[str],
        config: Configs = None,
        *,
        return_exceptions: bool = False,
        budget: int | None = None,
        filter: Any = None,
        **kwargs: Any,
    ) -> list[Any]:
        """Documents for each question, or with ``return_exceptions`` its exception. One pass over the source serves all questions; each
        question still has its own run, with its configuration and callbacks."""
        found = self._search_together(inputs, budget, filter)
        return super().batch(inputs, config, return_exceptions=return_exceptions, budget=budget, filter=filter, found=found, **kwargs)

    async def abatch(
        self,
        inputs: list[str],
        config: Configs = None,
        *,
        return_exceptions: bool = False,
        budget: int | None = None,
        filter: Any = None,
        **kwargs: Any,
    ) -> list[Any]:
        """:meth:`batch`, searching in a thread."""
        found = await asyncio.to_thread(self._search_together, inputs, budget, filter)
        return await super().abatch(
            inputs, config, return_exceptions=return_exceptions, budget=budget, filter=filter, found=found, **kwargs
        )

    def _search_together(self, questions: Sequence[str], budget: int | None, filter: Any) -> Found:
        """The picks of each question. A question that is missing here is searched in its own run, which then reports its error."""
        usable = [question for question in dict.fromkeys(questions) if question.strip()]
        if len(usable) < 2:
            return {}
        budget, filter = self.budget if budget is None else budget, self.filter if filter is None else filter
        try:
            return dict(
                zip(
                    usable,
                    self.retriever.search_batch(usable, self.source, budget, beam=self.beam, stop=self.stop, filter=filter),
                    strict=True,
                )
            )
        except ValueError:
            return {}

    def _documents(self, question: str, budget: int | None, filter: Any, found: Found | None) -> list[Document]:
        picks = (found or {}).get(question)
        if picks is None:
            budget, filter = self.budget if budget is None else budget, self.filter if filter is None else filter
            picks = self.retriever.search(question, self.source, budget, beam=self.beam, stop=self.stop, filter=filter)
        return [Document(page_content=pick.text, id=identity(pick), metadata=metadata(pick)) for pick in picks]


class QRAGAnswerer(Runnable[str, CitedAnswer]):
    """A question in, a :class:`~qrag_jax.retrieve.answering.CitedAnswer` out: the first part of any chain.

    ``answerer`` holds the retriever, the index and the reader; the keyword arguments of ``invoke`` are those of
    :meth:`qrag_jax.Retriever.answer`, for one call.
    """

    def __init__(self, answerer: Answerer) -> None:
        self.answerer = answerer

    @classmethod
    def from_pretrained(cls, retriever_dir: str | Path, index_dir: str | Path, reader: Any, **options: Any) -> QRAGAnswerer:
        """From a run directory or an export folder, a folder written by ``Index``, and openai:URL,MODEL or flax:NAME."""
        return cls(Answerer.open(retriever_dir, index_dir, reader, **options))

    def invoke(self, input: str, config: RunnableConfig | None = None, **kwargs: Any) -> CitedAnswer:
        return self._call_with_config(lambda question: self.answerer(question, **kwargs), input, config)
