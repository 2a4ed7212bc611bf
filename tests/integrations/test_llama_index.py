"""The adapter for LlamaIndex."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest

from qrag_jax import Retriever
from tests.integrations.conftest import CHUNKS, INDEX, QUESTIONS, RUN, Calls, same


def test_llama_index_nodes(llama_index: Any, counted: Calls) -> None:
    from llama_index.core.schema import MetadataMode

    text = " ".join(CHUNKS)
    adapter = llama_index.QRAGRetriever(counted, text, budget=3)
    nodes = adapter.retrieve(QUESTIONS[0])
    picks = counted.search(QUESTIONS[0], text, 3)
    assert [node.score for node in nodes] == pytest.approx([pick.q for pick in picks], abs=1e-5)
    assert all(same(node.node.metadata, pick) for node, pick in zip(nodes, picks, strict=True))
    assert [text[node.node.start_char_idx : node.node.end_char_idx] for node in nodes] == [node.text for node in nodes]
    assert [node.node.get_content(MetadataMode.LLM) for node in nodes] == [pick.text for pick in picks]
    counted.threads.clear()
    awaited = asyncio.run(adapter.aretrieve(QUESTIONS[0]))
    assert [node.node_id for node in awaited] == [node.node_id for node in nodes]
    assert counted.threads
    assert threading.get_ident() not in counted.threads


def test_llama_index_shows_a_prompt_the_source_alone(llama_index: Any, folder: Path) -> None:
    from llama_index.core.schema import MetadataMode

    nodes = llama_index.QRAGRetriever.from_pretrained(folder / RUN, folder / INDEX, budget=2).retrieve(QUESTIONS[0])
    assert [node.node.metadata["source"] for node in nodes] == ["story.txt"] * 2
    assert [node.node.get_content(MetadataMode.LLM) for node in nodes] == [f"source: story.txt\n\n{node.text}" for node in nodes]


def test_llama_index_errors(llama_index: Any, retriever: Retriever) -> None:
    with pytest.raises(ValueError, match="question"):
        llama_index.QRAGRetriever(retriever, CHUNKS).retrieve(" ")
    with pytest.raises(ValueError, match="budget = 0"):
        llama_index.QRAGRetriever(retriever, CHUNKS, budget=0).retrieve("Who?")
