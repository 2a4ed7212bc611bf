"""An untrained retriever (these tests look only at which chunks arrive, and in which order), and the frameworks, if installed."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("HAYSTACK_TELEMETRY_ENABLED", "False")

from qrag_jax import Retriever
from qrag_jax.export.folder import Export, write_export
from qrag_jax.models.pretrained import scratch_backbone
from qrag_jax.retrieve.index import Index
from qrag_jax.retrieve.types import Pick
from tests.support.small import SMALL, small_learner, small_tokenizer

NAMES = ("Mary", "John", "Daniel", "Sandra", "Fred", "Bill")
CHUNKS = tuple(f"{name} went to the {place}." for name in NAMES for place in ("garden", "kitchen"))
QUESTIONS = ["Where is Mary?", "Where is the milk?", "Where was John before the garden?"]
RUN, INDEX = "runs/babilong-qa2-tiny", "story.index"  # as in the guide


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory and an index, with the paths that the guide uses."""
    folder = tmp_path_factory.mktemp("integrations")
    tokenizer = small_tokenizer()
    backbone = scratch_backbone(SMALL.model, tokenizer.vocab_size)
    write_export(folder / RUN / "export", Export(SMALL, backbone, small_learner()[1].params, tokenizer, "mean"))
    (folder / "story.txt").write_text(" ".join(CHUNKS), encoding="utf-8")
    Index.build(Retriever.from_pretrained(folder / RUN), folder / "story.txt", folder / INDEX)
    return folder


@pytest.fixture(scope="session")
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
    """Compares metadata with a pick of another search: all fields exactly, Q up to float32 rounding."""
    exact = {name: getattr(pick, name) for name in ("chunk", "position", "start", "end", "source")}
    return {name: found[name] for name in exact} == exact and found["q"] == pytest.approx(pick.q, abs=1e-5) and "text" not in found


@pytest.fixture
def langchain() -> Any:
    pytest.importorskip("langchain_core", reason="needs langchain-core")
    from qrag_jax.integrations import langchain

    return langchain


@pytest.fixture
def llama_index() -> Any:
    pytest.importorskip("llama_index.core", reason="needs llama-index-core")
    from qrag_jax.integrations import llama_index

    return llama_index


@pytest.fixture
def haystack() -> Any:
    pytest.importorskip("haystack", reason="needs haystack-ai")
    from qrag_jax.integrations import haystack

    return haystack
