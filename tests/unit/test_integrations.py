"""The adapters, inside the frameworks they are for: an untrained retriever, since what is tested is what arrives and in which order."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import pytest

os.environ.setdefault("HAYSTACK_TELEMETRY_ENABLED", "False")

from qrag_jax import Retriever
from qrag_jax.export import write_export
from qrag_jax.models.pretrained import scratch_backbone
from qrag_jax.retrieve.index import Index
from qrag_jax.retrieve.results import Pick
from tests.conftest import ROOT
from tests.helpers import SMALL, small_learner, small_tokenizer

NAMES = ("Mary", "John", "Daniel", "Sandra", "Fred", "Bill")
CHUNKS = tuple(f"{name} went to the {place}." for name in NAMES for place in ("garden", "kitchen"))
QUESTIONS = ["Where is Mary?", "Where is the milk?", "Where was John before the garden?"]
RUN, INDEX = "runs/babilong-qa2-tiny", "story.index"  # as in the guide


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory and an index, where the guide has them."""
    folder = tmp_path_factory.mktemp("integrations")
    tokenizer = small_tokenizer()
    write_export(
        folder / RUN / "export",
        config=SMALL,
        backbone=scratch_backbone(SMALL.model, tokenizer.vocab_size),
        params=small_learner()[1].params,
        tokenizer=tokenizer,
        threshold=None,
        step=0,
        rows=[],
    )
    (folder / "story.txt").write_text(" ".join(CHUNKS), encoding="utf-8")
    Index.build(Retriever.from_pretrained(folder / RUN), folder / "story.txt", folder / INDEX)
    return folder


@pytest.fixture(scope="module")
def retriever(folder: Path) -> Retriever:
    return Retriever.from_pretrained(folder / RUN)


class Calls(Retriever):
    """Records the questions of each pass, and the threads they ran in."""

    def __init__(self, inner: Retriever) -> None:
        self.__dict__.update(inner.__dict__)
        self.passes: list[list[str]] = []
        self.threads: set[int] = set()

    def search_batch(self, questions: Sequence[str], *args: Any, **options: Any) -> list[list[Pick]]:
        self.passes.append(list(questions))
        self.threads.add(threading.get_ident())
        return super().search_batch(questions, *args, **options)


@pytest.fixture
def counted(retriever: Retriever) -> Calls:
    return Calls(retriever)


def same(found: dict[str, Any], pick: Pick) -> bool:
    """Metadata against a pick of another search: everything to the letter, Q to float32 rounding."""
    exact = {name: getattr(pick, name) for name in ("chunk", "position", "start", "end", "source")}
    return {name: found[name] for name in exact} == exact and found["q"] == pytest.approx(pick.q, abs=1e-5) and "text" not in found


# LangChain


@pytest.fixture
def langchain() -> Any:
    pytest.importorskip("langchain_core", reason="needs langchain-core")
    from qrag_jax.integrations import langchain

    return langchain


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


# LlamaIndex


@pytest.fixture
def llama_index() -> Any:
    pytest.importorskip("llama_index.core", reason="needs llama-index-core")
    from qrag_jax.integrations import llama_index

    return llama_index


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
    with pytest.raises(ValueError, match="budget = 13"):
        llama_index.QRAGRetriever(retriever, CHUNKS, budget=13).retrieve("Who?")


# Haystack


@pytest.fixture
def haystack() -> Any:
    pytest.importorskip("haystack", reason="needs haystack-ai")
    from qrag_jax.integrations import haystack

    return haystack


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


@pytest.mark.parametrize("framework", ["langchain", "llama_index", "haystack"])
@pytest.mark.parametrize(("options", "named"), [({"beam": 0}, "beam = 0"), ({"stop": True}, "threshold")])
def test_options_reach_the_search(
    framework: str, options: dict[str, Any], named: str, folder: Path, request: pytest.FixtureRequest
) -> None:
    adapter = request.getfixturevalue(framework).QRAGRetriever
    paths = str(folder / RUN), str(folder / INDEX)
    built = adapter(*paths, **options) if framework == "haystack" else adapter.from_pretrained(*paths, **options)
    with pytest.raises(ValueError, match=named):
        getattr(built, {"langchain": "invoke", "llama_index": "retrieve", "haystack": "run"}[framework])("Who?")


@pytest.mark.parametrize("framework", ["langchain", "llama_index", "haystack"])
def test_an_index_of_another_model_is_refused(
    framework: str, folder: Path, retriever: Retriever, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    adapter = request.getfixturevalue(framework).QRAGRetriever
    params = jax.tree.map(lambda leaf: leaf * 0.5, retriever.params)
    Index.build(Retriever(retriever.config, retriever.embedder, params, retriever.tokenizer), CHUNKS, tmp_path / INDEX)
    paths = str(folder / RUN), str(tmp_path / INDEX)
    with pytest.raises(ValueError, match="was built with model"):
        adapter(*paths).warm_up() if framework == "haystack" else adapter.from_pretrained(*paths)


# The guide, and life without the frameworks


def snippets() -> Iterator[Any]:
    text = (ROOT / "docs" / "integrations.md").read_text(encoding="utf-8")
    for snippet in re.findall(r"```python\n(.*?)```", text, re.S):
        yield pytest.param(snippet, id=re.search(r"qrag_jax\.integrations\.(\w+)", snippet)[1])


@pytest.mark.parametrize("snippet", tuple(snippets()))
def test_the_guide_runs_as_written(
    snippet: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], request: pytest.FixtureRequest
) -> None:
    request.getfixturevalue(request.node.callspec.id)  # skips without the framework
    monkeypatch.chdir(folder)
    exec(compile(snippet, "docs/integrations.md", "exec"), {})
    assert "went to the" in capsys.readouterr().out


def test_without_a_framework_its_adapter_says_what_to_install() -> None:
    script = """
import sys
for name in ("langchain_core", "pydantic", "llama_index", "haystack"):
    sys.modules[name] = None  # an import of it fails from here on
import qrag_jax, qrag_jax.retrieve.retriever, importlib
for name in ("langchain", "llama_index", "haystack"):
    try:
        importlib.import_module(f"qrag_jax.integrations.{name}")
    except ImportError as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert [line.split(":")[0].rsplit(" ", 1)[1] for line in lines] == ["langchain-core", "llama-index-core", "haystack-ai"]
    assert all(line.endswith("pip install qrag-jax[integrations]") for line in lines)
