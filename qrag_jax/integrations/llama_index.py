"""A LlamaIndex retriever: any query engine can use it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from qrag_jax.integrations import identity, load, metadata, missing
from qrag_jax.integrations.answers import Answerer, cited_metadata
from qrag_jax.retrieve.filters import Filter
from qrag_jax.retrieve.retriever import Retriever, Source
from qrag_jax.retrieve.types import Pick

try:
    from llama_index.core.base.response.schema import Response
    from llama_index.core.bridge.pydantic import Field
    from llama_index.core.callbacks import CallbackManager
    from llama_index.core.query_engine import CustomQueryEngine
    from llama_index.core.retrievers import BaseRetriever
    from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode
    from pydantic import SkipValidation
except ImportError as error:
    raise missing("llama-index-core") from error


class QRAGRetriever(BaseRetriever):
    """Chunks picked in several steps, in document order; the score of a node is its Q when it was picked.

    ``source``, ``budget``, ``beam``, ``stop`` and ``filter`` are those of :meth:`qrag_jax.Retriever.search`: an ``Index``, the chunks of a
    document in order, a text (``str``), or a text file or folder (``Path``). The metadata of a node are those of its document and the
    fields of :class:`~qrag_jax.retrieve.types.Pick`; prompts and embeddings made from the node contain only its source.

    Raises ValueError on an empty question, or a budget below 1.
    """

    def __init__(
        self,
        retriever: Retriever,
        source: Source,
        *,
        budget: int = 4,
        beam: int = 1,
        stop: bool = False,
        filter: Filter | None = None,
        callback_manager: CallbackManager | None = None,
    ) -> None:
        super().__init__(callback_manager)
        self.retriever = retriever
        self.source = retriever.document(source)  # chunks and texts are embedded here, once
        self.budget = budget
        self.beam = beam
        self.stop = stop
        self.filter = filter

    @classmethod
    def from_pretrained(cls, retriever_dir: str | Path, index_dir: str | Path, **fields: Any) -> QRAGRetriever:
        """From a run directory or an export folder, and a folder written by ``Index``."""
        return cls(*load(retriever_dir, index_dir), **fields)

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        picks = self.retriever.search(query_bundle.query_str, self.source, self.budget, beam=self.beam, stop=self.stop, filter=self.filter)
        return [NodeWithScore(node=_node(pick), score=pick.q) for pick in picks]

    async def _aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return await asyncio.to_thread(self._retrieve, query_bundle)


class QRAGQueryEngine(CustomQueryEngine):
    """Answers with citations. The source nodes of a response are what its answer cites, by number; ``metadata["answer"]`` is the
    :class:`~qrag_jax.retrieve.answering.CitedAnswer`."""

    answerer: SkipValidation[Answerer] = Field(repr=False)

    @classmethod
    def from_pretrained(cls, retriever_dir: str | Path, index_dir: str | Path, reader: Any, **options: Any) -> QRAGQueryEngine:
        """From a run directory or an export folder, a folder written by ``Index``, and openai:URL,MODEL or flax:NAME."""
        return cls(answerer=Answerer.open(retriever_dir, index_dir, reader, **options))

    def custom_query(self, query_str: str) -> Response:
        answer = self.answerer(query_str)
        nodes = [NodeWithScore(node=_node(one.pick, cited_metadata(one)), score=one.pick.q) for one in answer.citations]
        return Response(response=answer.text, source_nodes=nodes, metadata={"answer": answer, "found": answer.found})


def _node(pick: Pick, fields: dict[str, Any] | None = None) -> TextNode:
    fields = metadata(pick) if fields is None else fields
    hidden = [name for name in fields if name != "source" or pick.source is None]
    return TextNode(
        id_=identity(pick),
        text=pick.text,
        start_char_idx=pick.start,
        end_char_idx=pick.end,
        metadata=fields,
        excluded_llm_metadata_keys=hidden,
        excluded_embed_metadata_keys=hidden,
    )
