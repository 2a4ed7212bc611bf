"""What Prometheus reads at /metrics."""

from __future__ import annotations

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from starlette.types import Scope

from qrag_jax.retrieve.batching import TOGETHER
from qrag_jax.serve.request import Answered
from qrag_jax.serve.service import Service

CONTENT_TYPE = CONTENT_TYPE_LATEST
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Metrics:
    """Counts requests, passes and answers of ``service``. No label holds anything that a client chooses."""

    def __init__(self, service: Service) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self._requests = Counter("qrag_requests", "Requests that were answered.", ("route", "status"), registry=registry)
        self._seconds = Histogram("qrag_request_seconds", "Time of a request.", ("route",), buckets=SECONDS, registry=registry)
        self._together = Histogram(
            "qrag_pass_questions", "Questions that shared a pass.", buckets=range(1, TOGETHER + 1), registry=registry
        )
        self._pass = Histogram("qrag_pass_seconds", "Time of a pass.", buckets=SECONDS, registry=registry)
        self._tokens = Counter("qrag_reader_tokens", "Tokens of the reader.", ("kind",), registry=registry)
        self._answers = Counter("qrag_answers", "Answers, by whether the documents held them.", ("found",), registry=registry)
        for name, text, read in (
            ("qrag_in_progress", "Requests that are accepted and not yet answered.", lambda: service.health().requests),
            ("qrag_ready", "1 if new questions are accepted.", lambda: service.health().ready),
            ("qrag_index_chunks", "Chunks that are searched.", lambda: len(service.index)),
            ("qrag_index_stale", "1 if the index on disk is not the one that is searched.", lambda: service.health().stale is not None),
        ):
            Gauge(name, text, registry=registry).set_function(read)
        service.searches.on_pass = self._passed

    def _passed(self, questions: int, seconds: float) -> None:
        self._together.observe(questions)
        self._pass.observe(seconds)

    def answered(self, scope: Scope, status: int, seconds: float) -> None:
        """A request was answered, or its client has gone."""
        route = getattr(scope.get("route"), "path", "other")
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def wrote(self, answered: Answered) -> None:
        answer = answered.answer
        self._answers.labels(str(answer.found).lower()).inc()
        self._tokens.labels("read").inc(answer.prompt_tokens or 0)
        self._tokens.labels("written").inc(answer.completion_tokens or 0)

    def page(self) -> bytes:
        return generate_latest(self.registry)
