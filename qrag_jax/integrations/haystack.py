"""Haystack components. They hold only paths and settings, so a pipeline with them can be written to YAML and read again."""

import asyncio
from typing import Any

from qrag_jax.integrations import Index, Retriever, identity, load, metadata, missing
from qrag_jax.integrations.answers import Answerer, cited_metadata

try:
    from haystack import Document, GeneratedAnswer, component, default_from_dict, default_to_dict
except ImportError as error:
    raise missing("haystack-ai") from error


@component
class QRAGRetriever:
    """Chunks picked in several steps, in document order; the score of a document is its Q when it was picked.

    ``retriever_dir``: a run directory or an export folder. ``index_dir``: a folder written by ``Index``. Both are opened by
    :meth:`warm_up`, which a pipeline calls by itself. ``budget``, ``beam``, ``stop`` and ``filter`` are those of
    :meth:`qrag_jax.Retriever.search`.
    ``meta`` are the metadata of the document and the fields of :class:`~qrag_jax.retrieve.types.Pick`.
    """

    def __init__(self, retriever_dir: str, index_dir: str, budget: int = 4, beam: int = 1, stop: bool = False, filter: Any = None) -> None:
        self.retriever_dir = retriever_dir
        self.index_dir = index_dir
        self.budget = budget
        self.beam = beam
        self.stop = stop
        self.filter = filter
        self._opened: tuple[Retriever, Index] | None = None

    def to_dict(self) -> dict[str, Any]:
        names = ("retriever_dir", "index_dir", "budget", "beam", "stop", "filter")
        return default_to_dict(self, **{name: getattr(self, name) for name in names})

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "QRAGRetriever":
        return default_from_dict(cls, data)

    def warm_up(self) -> None:
        """Opens both folders, once. Raises ValueError when one of them is not what it should be."""
        if self._opened is None:
            self._opened = load(self.retriever_dir, self.index_dir)

    @component.output_types(documents=list[Document])
    def run(self, query: str, budget: int | None = None, filter: Any = None) -> dict[str, list[Document]]:
        """Raises ValueError on an empty query, or a budget below 1."""
        self.warm_up()
        assert self._opened is not None
        retriever, index = self._opened
        budget, filter = self.budget if budget is None else budget, self.filter if filter is None else filter
        picks = retriever.search(query, index, budget, beam=self.beam, stop=self.stop, filter=filter)
        documents = [Document(id=identity(pick), content=pick.text, score=pick.q, meta=metadata(pick)) for pick in picks]
        return {"documents": documents}

    @component.output_types(documents=list[Document])
    async def run_async(self, query: str, budget: int | None = None, filter: Any = None) -> dict[str, list[Document]]:
        """:meth:`run` in a thread."""
        return await asyncio.to_thread(self.run, query, budget, filter)


@component
class QRAGAnswerer:
    """Answers with citations; the documents of an answer are what it cites, by number.

    ``retriever_dir`` and ``index_dir`` are those of :class:`QRAGRetriever`; ``reader``: openai:URL,MODEL or flax:NAME. All three are opened
    by :meth:`warm_up`. ``budget``, ``mode``, ``beam``, ``stop``, ``filter`` and ``least_q`` are those of :meth:`qrag_jax.Retriever.answer`.
    """

    def __init__(self, retriever_dir: str, index_dir: str, reader: str, options: dict[str, Any] | None = None) -> None:
        self.retriever_dir = retriever_dir
        self.index_dir = index_dir
        self.reader = reader
        self.options = options
        self._answerer: Answerer | None = None

    def to_dict(self) -> dict[str, Any]:
        names = ("retriever_dir", "index_dir", "reader", "options")
        return default_to_dict(self, **{name: getattr(self, name) for name in names})

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "QRAGAnswerer":
        return default_from_dict(cls, data)

    def warm_up(self) -> None:
        """Opens the folders and the reader, once. Raises ValueError when one of them is not what it should be."""
        if self._answerer is None:
            self._answerer = Answerer.open(self.retriever_dir, self.index_dir, self.reader, **(self.options or {}))

    @component.output_types(answers=list[GeneratedAnswer])
    def run(self, query: str, options: dict[str, Any] | None = None) -> dict[str, list[GeneratedAnswer]]:
        """One answer. ``options`` are for this call, such as {"filter": ["year=2024"]}. Raises ValueError on an empty query."""
        self.warm_up()
        assert self._answerer is not None
        found = self._answerer(query, **(options or {}))
        documents = [
            Document(id=identity(one.pick), content=one.pick.text, score=one.pick.q, meta=cited_metadata(one)) for one in found.citations
        ]
        meta = {"found": found.found, "judge": found.judge, "removed": list(found.removed)}
        return {"answers": [GeneratedAnswer(data=found.text, query=query, documents=documents, meta=meta)]}
