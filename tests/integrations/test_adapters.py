"""The common part of all adapters, their guide, and the behaviour if a framework is not installed."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import pytest

from qrag_jax import Retriever
from qrag_jax.retrieve.index import Index
from tests.conftest import ROOT
from tests.integrations.conftest import CHUNKS, INDEX, RUN
from tests.support.http import completion, stub_server


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


def snippets() -> Iterator[Any]:
    text = (ROOT / "docs" / "integrations.md").read_text(encoding="utf-8")
    for snippet in re.findall(r"```python\n(.*?)```", text, re.S):
        name = re.search(r"qrag_jax\.integrations\.(\w+)", snippet)[1]
        yield pytest.param(snippet, id=name if "import QRAGRetriever" in snippet else f"{name}-answers")


@pytest.mark.parametrize("snippet", tuple(snippets()))
def test_the_guide_runs_as_written(
    snippet: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], request: pytest.FixtureRequest
) -> None:
    request.getfixturevalue(request.node.callspec.id.partition("-")[0])  # skips without the framework
    monkeypatch.chdir(folder)
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    with stub_server(lambda user, n: completion("Mary went to the garden [1].")) as server:
        exec(compile(snippet, "docs/integrations.md", "exec"), {"reader": f"openai:{server.url},stub"})
    assert "went to the" in capsys.readouterr().out


@pytest.mark.processes
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
    assert all(line.endswith("pip install 'qrag-jax[integrations]'") for line in lines)
