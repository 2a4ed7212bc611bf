"""Spans of questions, as the SDK's exporter in memory has them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from starlette.testclient import TestClient

from qrag_jax.__main__ import main
from qrag_jax.serve import tracing
from qrag_jax.serve.app import make_app
from qrag_jax.serve.guard import Access
from qrag_jax.serve.limits import Limits
from qrag_jax.serve.tracing import TracedService
from tests.support.index import small_retriever
from tests.support.serving import QUESTION, TEXTS, SlowReader, build


@pytest.fixture(scope="module")
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture(scope="module")
def service(exporter: InMemorySpanExporter, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TracedService]:
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    retriever = small_retriever()
    index = build(retriever, tmp_path_factory.mktemp("tracing") / "index")
    reader, tracer = SlowReader("In the ", "garden [1]."), provider.get_tracer("test")
    with TracedService(index, retriever, reader, Limits(budget=2), ("multi",), tracer=tracer) as service:
        yield service


def spans(exporter: InMemorySpanExporter) -> list[tuple[str, str | None, ReadableSpan]]:
    """Each span that has ended since the last call, with its name and that of the one above it, in the order in which they began."""
    found = sorted(exporter.get_finished_spans(), key=lambda span: (span.start_time, span.name != "qrag.question", span.name))
    exporter.clear()
    names = {span.context.span_id: span.name for span in found}
    return [(span.name, names.get(span.parent.span_id) if span.parent else None, span) for span in found]


def test_a_search_has_a_span_for_each_step_and_its_parts(service: TracedService, exporter: InMemorySpanExporter) -> None:
    steps = service.search(QUESTION, budget=2).steps
    found = spans(exporter)
    assert sorted((name, above) for name, above, _ in found) == sorted(
        [("qrag.question", None), *[("qrag.step", "qrag.question")] * 2, *[("qrag.embed", "qrag.step"), ("qrag.scan", "qrag.step")] * 2]
    )
    question = found[0][2]
    assert dict(question.attributes or {}) == {
        "qrag.budget": 2,
        "qrag.mode": "multi",
        "qrag.stop": False,
        "qrag.chunks": tuple(step.pick.chunk for step in steps),
        "qrag.seconds": pytest.approx(sum(step.seconds for step in steps)),
        "qrag.index.chunks": len(service.index),
    }
    told = [dict(span.attributes or {}) for name, _, span in found if name == "qrag.step"]
    assert [(one["qrag.step"], one["qrag.chunk"]) for one in told] == [(step.number, step.pick.chunk) for step in steps]
    assert all(span.start_time <= span.end_time for *_, span in found)


def test_an_answer_has_a_span_of_its_reader(service: TracedService, exporter: InMemorySpanExporter) -> None:
    service.answer(QUESTION, budget=1)
    found = spans(exporter)
    (reader,) = [span for name, above, span in found if (name, above) == ("qrag.reader", "qrag.question")]
    assert dict(reader.attributes or {}) == {
        "gen_ai.request.model": "slow",
        "gen_ai.usage.input_tokens": 10,
        "gen_ai.usage.output_tokens": 2,
    }
    assert (found[0][2].attributes or {})["qrag.found"] is True
    assert [name for name, *_ in found].count("qrag.question") == 1


def test_texts_are_in_spans_only_if_they_are_asked_for(
    service: TracedService, exporter: InMemorySpanExporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    def held() -> str:
        service.answer(QUESTION, budget=2)
        return " ".join(span.to_json() for *_, span in spans(exporter))

    texts = ["Mary", "garden", *(one.text[:12] for one in TEXTS)]
    assert not [text for text in texts if text in held()]
    monkeypatch.setattr(service, "_texts", True)
    told = held()
    assert QUESTION in told
    assert "In the garden [1]." in told
    assert '"qrag.text"' in told


def test_a_refused_question_is_an_error_and_over_http_too(service: TracedService, exporter: InMemorySpanExporter) -> None:
    with pytest.raises(ValueError, match="no document has that"):
        service.search(QUESTION, filter=["year=1900"])
    [(_, _, span)] = spans(exporter)
    assert (span.status.is_ok, span.status.description, (span.attributes or {})["error.type"]) == (False, None, "ValueError")
    with TestClient(make_app(service, Access()), base_url="http://localhost") as client:
        assert client.post("/search", json={"question": QUESTION, "budget": 1}).status_code == 200
    assert "qrag.question" in [name for name, *_ in spans(exporter)]


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(ValueError, match=r"otel: spans need the package opentelemetry.*pip install 'qrag-jax\[otel\]'"):
        tracing.send_spans()
    assert main(["serve", str(tmp_path), "--otel", "on"]) == 64
    assert "off, spans, texts" in capsys.readouterr().err.replace("'", "").replace("|", ", ")
