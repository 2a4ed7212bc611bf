"""The adapter for Haystack."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from qrag_jax import Retriever, Text
from qrag_jax.retrieve.index import Index
from tests.integrations.conftest import INDEX, QUESTIONS, RUN, same


def test_haystack_pipeline_survives_yaml(haystack: Any, folder: Path, retriever: Retriever) -> None:
    from haystack import Pipeline
    from haystack.components.builders import PromptBuilder

    pipeline = Pipeline()
    pipeline.add_component("retriever", haystack.QRAGRetriever(str(folder / RUN), str(folder / INDEX), budget=3))
    template = "{% for document in documents %}{{ document.content }}|{% endfor %}"
    pipeline.add_component("prompt", PromptBuilder(template, required_variables=["documents"]))
    pipeline.connect("retriever.documents", "prompt.documents")
    again = Pipeline.loads(pipeline.dumps(), allowed_modules=["qrag_jax.integrations.haystack"])
    assert again.dumps() == pipeline.dumps()
    index = Index.open(folder / INDEX)
    for budget in (3, 2):
        asked = {"retriever": {"query": QUESTIONS[0]} | ({"budget": budget} if budget != 3 else {})}
        picks = retriever.search(QUESTIONS[0], index, budget)
        for which in (pipeline, again):
            answer = which.run(asked, include_outputs_from={"retriever"})
            documents = answer["retriever"]["documents"]
            assert answer["prompt"]["prompt"] == "".join(f"{pick.text}|" for pick in picks)
            assert [document.score for document in documents] == pytest.approx([pick.q for pick in picks], abs=1e-5)
            assert all(same(document.meta, pick) for document, pick in zip(documents, picks, strict=True))


def test_haystack_filters(haystack: Any, folder: Path, retriever: Retriever, tmp_path: Path) -> None:
    texts = [Text(f"Mary went to the garden. {name} slept.", f"{name}.txt", {"year": year}) for name, year in (("John", 1), ("Fred", 2))]
    Index.build(retriever, texts, tmp_path / "index")
    component = haystack.QRAGRetriever(str(folder / RUN), str(tmp_path / "index"), filter={"year": 1})
    again = haystack.QRAGRetriever.from_dict(component.to_dict())
    for which, options, source in ((component, {}, "John.txt"), (again, {}, "John.txt"), (component, {"filter": ["year=2"]}, "Fred.txt")):
        documents = which.run(QUESTIONS[0], **options)["documents"]
        assert [document.meta["source"] for document in documents] == [source] * 2
    with pytest.raises(ValueError, match="filter year=3: no document has that"):
        component.run(QUESTIONS[0], filter={"year": 3})


def test_haystack_opens_nothing_before_it_is_used(haystack: Any, folder: Path) -> None:
    broken = haystack.QRAGRetriever(str(folder / "absent"), str(folder / INDEX))
    assert haystack.QRAGRetriever.from_dict(broken.to_dict()).retriever_dir == broken.retriever_dir
    with pytest.raises(ValueError, match="absent"):
        broken.warm_up()
    component = haystack.QRAGRetriever(str(folder / RUN), str(folder / INDEX), budget=2)
    awaited = asyncio.run(component.run_async(QUESTIONS[0]))
    assert awaited == component.run(QUESTIONS[0])
    with pytest.raises(ValueError, match="question"):
        component.run(" ")
    with pytest.raises(ValueError, match="budget = 0"):
        component.run("Who?", budget=0)
