"""OpenTelemetry spans of questions and their steps. They hold numbers, and texts only if that is asked for.

qrag.question            budget, mode, chunks, seconds; of an answer whether it was found and who said so
  qrag.step              number, chunk, Q, seconds
    qrag.embed qrag.scan the parts of the pass, which questions that came together share
  qrag.reader            model, tokens
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

from qrag_jax.reader.protocol import Answer, Prompt, Reader, StreamingReader
from qrag_jax.retrieve.batching import Part
from qrag_jax.retrieve.filters import Filter
from qrag_jax.retrieve.index import Index
from qrag_jax.retrieve.ranking import Mode
from qrag_jax.retrieve.retriever import Retriever
from qrag_jax.retrieve.types import Step
from qrag_jax.serve.limits import Limits
from qrag_jax.serve.request import Answered, Found, Request
from qrag_jax.serve.service import Service

try:
    from opentelemetry.trace import Span, StatusCode, Tracer, get_tracer_provider, set_span_in_context, set_tracer_provider
except ImportError as error:
    raise ValueError(f"otel: spans need the package {str(error.name).partition('.')[0]}: pip install 'qrag-jax[otel]'") from error

NAME = "qrag_jax"


def send_spans() -> Tracer:
    """Sends spans as the environment variables of OpenTelemetry say (OTEL_EXPORTER_OTLP_ENDPOINT, OTEL_SERVICE_NAME and others).

    Raises ValueError if the package for it is missing.
    """
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise ValueError(f"otel: spans need the package {error.name}: pip install 'qrag-jax[otel]'") from error
    provider = TracerProvider(
        resource=Resource.create({"service.name": os.environ.get("OTEL_SERVICE_NAME", "qrag")}), shutdown_on_exit=False
    )
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    set_tracer_provider(provider)  # that of other libraries here, such as MCP's
    atexit.register(provider.shutdown)  # sends what waits
    return get_tracer_provider().get_tracer(NAME)


class TracedService(Service):
    """A service whose questions leave spans with ``tracer``. ``texts``: also the question, the passages and the answer."""

    def __init__(
        self,
        index: Index,
        retriever: Retriever,
        reader: Reader | None = None,
        limits: Limits | None = None,
        modes: Sequence[Mode] = (),
        *,
        tracer: Tracer,
        texts: bool = False,
    ) -> None:
        super().__init__(index, retriever, reader, limits, modes)
        self._tracer, self._texts = tracer, texts
        self._spans: WeakKeyDictionary[Request, Span] = WeakKeyDictionary()
        self.searches.on_steps = self._stepped

    @contextmanager
    def _question(self, request: Request, question: str, budget: int, mode: Mode | None, stop: bool) -> Iterator[Span]:
        """The span of a question, as long as the block; what is raised in it is its status."""
        about: dict[str, Any] = {"qrag.budget": budget, "qrag.mode": mode or self.modes[0], "qrag.stop": stop}
        span = self._spans[request] = self._tracer.start_span("qrag.question", attributes=about | self._text("question", question))
        try:
            yield span
        except GeneratorExit:
            raise
        except BaseException as error:
            span.set_attribute("error.type", type(error).__name__)
            span.set_status(StatusCode.ERROR, str(error) if self._texts else None)
            raise
        finally:
            span.end()

    def _stream(
        self, question: str, budget: int, mode: Mode | None, filter: Filter | None, stop: bool, request: Request
    ) -> Iterator[Step | Found]:
        if request in self._spans:  # the search of an answer
            yield from self._told(self._spans[request], super()._stream(question, budget, mode, filter, stop, request))
            return
        with self._question(request, question, budget, mode, stop) as span:
            yield from self._told(span, super()._stream(question, budget, mode, filter, stop, request))

    def _told(self, span: Span, events: Iterator[Step | Found]) -> Iterator[Step | Found]:
        for event in events:
            if isinstance(event, Found):
                span.set_attribute("qrag.chunks", [step.pick.chunk for step in event.steps])
                span.set_attribute("qrag.seconds", sum(step.seconds for step in event.steps))
                span.set_attribute("qrag.index.chunks", event.chunks)
            yield event

    def _answer(
        self,
        question: str,
        reader: Reader,
        budget: int | None,
        mode: Mode | None,
        filter: Filter | None,
        stop: bool,
        least_q: float | None,
        hear_step: Callable[[Step], None] | None,
        hear: Callable[[str], None] | None,
        request: Request,
    ) -> Answered:
        with self._question(request, question, self._usual(budget), mode, stop) as span:
            traced = (_TracedStream if isinstance(reader, StreamingReader) else _TracedReader)(reader, self._tracer, span)
            found = super()._answer(question, traced, budget, mode, filter, stop, least_q, hear_step, hear, request)
            span.set_attribute("qrag.found", found.answer.found)
            span.set_attributes({} if found.answer.judge is None else {"qrag.judge": found.answer.judge})
            span.set_attributes(self._text("answer", found.answer.text))
            return found

    def _stepped(self, requests: Sequence[Request], found: Sequence[Sequence[Step]], parts: Sequence[Part]) -> None:
        for request, steps in zip(requests, found, strict=True):
            if request in self._spans and parts:
                for step in steps:
                    self._add_step(self._spans[request], step, parts)

    def _add_step(self, question: Span, step: Step, parts: Sequence[Part]) -> None:
        about: dict[str, Any] = {
            "qrag.step": step.number,
            "qrag.chunk": step.pick.chunk,
            "qrag.q": step.pick.q,
            "qrag.seconds": step.seconds,
        }
        about |= self._text("text", step.pick.text)
        span = self._tracer.start_span("qrag.step", set_span_in_context(question), attributes=about, start_time=parts[0].start)
        for part in parts:
            self._tracer.start_span(f"qrag.{part.name}", set_span_in_context(span), start_time=part.start).end(part.end)
        span.end(parts[-1].end)

    def _text(self, name: str, text: str) -> dict[str, str]:
        return {f"qrag.{name}": text} if self._texts else {}


class _TracedReader:
    """A reader whose calls are spans below ``question``."""

    def __init__(self, reader: Any, tracer: Tracer, question: Span) -> None:
        self.name, self._reader, self._tracer, self._above = reader.name, reader, tracer, set_span_in_context(question)

    def answer(self, prompts: Sequence[Prompt]) -> list[Answer]:
        with self._tracer.start_as_current_span("qrag.reader", self._above, record_exception=False) as span:
            answers = list(self._reader.answer(prompts))
            self._count(span, answers[0])
            return answers

    def _count(self, span: Span, answer: Answer) -> None:
        span.set_attribute("gen_ai.request.model", self.name)
        for name, tokens in (("input", answer.prompt_tokens), ("output", answer.completion_tokens)):
            if tokens is not None:
                span.set_attribute(f"gen_ai.usage.{name}_tokens", tokens)


class _TracedStream(_TracedReader):
    def stream(self, prompt: Prompt, hear: Callable[[str], None]) -> Answer:
        with self._tracer.start_as_current_span("qrag.reader", self._above, record_exception=False) as span:
            answer: Answer = self._reader.stream(prompt, hear)
            self._count(span, answer)
            return answer
