"""The HTTP application: routes, errors in one form, and the pages for a browser."""

from __future__ import annotations

import json
import traceback
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp

from qrag_jax import __version__
from qrag_jax.config.parse import unknown
from qrag_jax.config.trees import parse_json
from qrag_jax.reader.protocol import ReaderError
from qrag_jax.retrieve.types import Step
from qrag_jax.rundir.log import Unreachable, say
from qrag_jax.serve import request as core
from qrag_jax.serve.bridge import Bridge, EventStream, Hear, sse
from qrag_jax.serve.guard import Access, Guard, error_body
from qrag_jax.serve.limits import Gone, Overloaded, Refused, Stopping, TooLate
from qrag_jax.serve.mcp import Agents
from qrag_jax.serve.metrics import CONTENT_TYPE, Metrics
from qrag_jax.serve.reference import page_policy, reference_page
from qrag_jax.serve.schema import (
    AnswerRequest,
    AnswerResponse,
    DocumentOut,
    DocumentsResponse,
    ErrorResponse,
    HealthResponse,
    SearchRequest,
    SearchResponse,
    StepOut,
)
from qrag_jax.serve.service import Service

ABOUT = """Searches an index in several steps, and answers with citations.

Errors have one form: `{"status": 422, "error": "budget = 99: must be at most 8, ..."}`. Status 429 and 503 come with `Retry-After`.
A stream is of server-sent events: `step` (a pick), `piece` (of an answer), `result` (the same object as without a stream), and `error`."""
ERRORS: dict[int | str, dict[str, Any]] = {
    401: {"model": ErrorResponse, "description": "The key is missing or wrong."},
    422: {"model": ErrorResponse, "description": "A field is wrong."},
    429: {"model": ErrorResponse, "description": "Too many requests at once."},
    503: {"model": ErrorResponse, "description": "The server is stopping."},
    504: {"model": ErrorResponse, "description": "The request took too long."},
}
STREAM: dict[int | str, dict[str, Any]] = {200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}}}
PAGE = Path(__file__).with_name("page.html")


class _JsonRoute(APIRoute):
    """A route whose body is read as strictly as every JSON of this package."""

    def get_route_handler(self) -> Callable[[Request], Any]:
        handle = super().get_route_handler()

        async def strictly(request: Request) -> Any:
            return await handle(_JsonRequest(request.scope, request.receive))

        return strictly


class _JsonRequest(Request):
    async def json(self) -> Any:
        try:
            return parse_json(await self.body())
        except ValueError as error:
            raise HTTPException(400, f"body: {error}") from error


def make_app(service: Service, access: Access) -> ASGIApp:
    """The application, ready for a server. ``service`` must have been started."""
    bridge, metrics = Bridge(service), Metrics(service)
    agents = Agents(service, bridge, told)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with agents.running():
            yield
        bridge.close()

    app = FastAPI(title="qrag", version=__version__, description=ABOUT, docs_url=None, redoc_url=None, lifespan=lifespan)
    app.router.route_class = _JsonRoute
    _add_errors(app)
    _add_questions(app, service, bridge, metrics)
    _add_pages(app, service, metrics, access)
    app.router.routes += agents.routes
    return Guard(app, access, metrics, leaving=lambda: not service.health().ready)


def _add_questions(app: FastAPI, service: Service, bridge: Bridge, metrics: Metrics) -> None:
    def search(body: SearchRequest, request: core.Request, hear: Hear[bytes]) -> SearchResponse:
        steps = service.stream(**body.model_dump(), request=request)
        for one in steps:
            if isinstance(one, core.Found):
                return SearchResponse.of(one)
            hear(_step(one))
        raise AssertionError("a search ends with what it found")

    def answer(body: AnswerRequest, request: core.Request, hear: Hear[bytes]) -> AnswerResponse:
        said = lambda piece: hear(sse("piece", json.dumps(piece, ensure_ascii=False)))
        found = service.answer(**body.model_dump(), hear_step=lambda step: hear(_step(step)), hear=said, request=request)
        metrics.wrote(found)
        return AnswerResponse.of(found)

    @app.post("/search", responses=ERRORS, summary="Search")
    async def _search(body: SearchRequest, http: Request) -> SearchResponse:
        return await bridge.result(http, lambda request: search(body, request, _ignore))

    @app.post("/search/stream", responses=ERRORS | STREAM, summary="Search, and send each step as it is made")
    async def _search_stream(body: SearchRequest) -> Response:
        return await _streamed(bridge, lambda request, hear: sse("result", search(body, request, hear).model_dump_json()))

    @app.post("/answer", responses=ERRORS, summary="Search, and answer with citations")
    async def _answer(body: AnswerRequest, http: Request) -> AnswerResponse:
        return await bridge.result(http, lambda request: answer(body, request, _ignore))

    @app.post("/answer/stream", responses=ERRORS | STREAM, summary="Answer, and send each step and each piece of the answer")
    async def _answer_stream(body: AnswerRequest) -> Response:
        return await _streamed(bridge, lambda request, hear: sse("result", answer(body, request, hear).model_dump_json()))


def _add_pages(app: FastAPI, service: Service, metrics: Metrics, access: Access) -> None:
    listed = lru_cache(maxsize=1)(lambda version: DocumentOut.all(service.documents()))
    page = PAGE.read_text(encoding="utf-8")

    @app.get("/documents", responses=ERRORS, summary="The documents of the index")
    async def _documents(offset: Annotated[int, Query(ge=0)] = 0, limit: Annotated[int, Query(ge=1, le=1000)] = 100) -> DocumentsResponse:
        version = service.index.version
        every = listed(version)
        return DocumentsResponse(total=len(every), documents=every[offset : offset + limit], version=version)

    @app.get("/health", responses={503: {"model": HealthResponse, "description": "Not ready."}}, summary="Whether questions are accepted")
    async def _health(response: Response) -> HealthResponse:
        health = HealthResponse.of(service, access.key is not None)
        response.status_code = 200 if health.ready else 503
        return health

    @app.get("/health/live", responses={503: {"model": HealthResponse, "description": "Not alive."}}, summary="Whether the server works")
    async def _live(response: Response) -> HealthResponse:
        health = HealthResponse.of(service, access.key is not None)
        response.status_code = 200 if health.live else 503
        return health

    @app.get("/metrics", responses={200: {"content": {"text/plain": {}}}}, summary="Figures for Prometheus")
    async def _metrics() -> Response:
        return Response(metrics.page(), media_type=CONTENT_TYPE)

    @app.get("/", include_in_schema=False)
    async def _page() -> Response:
        return Response(page, media_type="text/html", headers={"Content-Security-Policy": page_policy(page)})

    @app.get("/docs", include_in_schema=False)
    async def _docs() -> Response:
        shown = reference_page(app.openapi())
        return Response(shown, media_type="text/html", headers={"Content-Security-Policy": page_policy(shown)})


async def _streamed(bridge: Bridge, work: Callable[[core.Request, Hear[bytes]], bytes]) -> Response:
    """The events of ``work``. What is wrong before the first one is an ordinary error."""
    events = bridge.events(work)
    first = await anext(events)

    async def every() -> AsyncIterator[bytes]:
        yield first
        try:
            async for event in events:
                yield event
        except Exception as error:  # the response has begun
            status, message, _ = describe(error)
            yield sse("error", error_body(status, message).decode())

    return EventStream(every(), events.aclose)  # type: ignore[attr-defined]


def _step(step: Step) -> bytes:
    return sse("step", StepOut.of(step).model_dump_json())


def _ignore(event: bytes) -> None:
    pass


def describe(error: Exception) -> tuple[int, str, dict[str, str]]:
    """Status, line and headers of an error. What a client must not see is said on the server."""
    if isinstance(error, Overloaded):
        return 429, str(error), {"Retry-After": str(error.wait)}
    if isinstance(error, Stopping):
        return 503, str(error), {"Retry-After": "5"}
    if isinstance(error, (Refused, ValueError)):
        return {TooLate: 504, Gone: 499}.get(type(error), 422), str(error), {}
    if isinstance(error, ReaderError):
        say(str(error))
        return 502, "the reader did not answer; the server's output says why", {}
    if isinstance(error, Unreachable):
        say(str(error))
        return 503, "the database of the vectors did not answer; the server's output says why", {"Retry-After": "5"}
    say("".join(traceback.format_exception(error)))
    return 500, "a fault of the server; its output says which", {}


def told(error: Exception, known: list[str]) -> str:
    """The line of an error, for clients that take no status. ``known``: the fields of what was asked."""
    return fault(error, known) if isinstance(error, RequestValidationError) else describe(error)[1]


def _add_errors(app: FastAPI) -> None:
    async def refuse(_: Request, error: Exception) -> Response:
        status, message, headers = describe(error)
        return Response(error_body(status, message), status, headers, media_type="application/json")

    async def refuse_fields(http: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        taken = AnswerRequest if http.url.path.startswith("/answer") else SearchRequest
        return Response(error_body(422, fault(error, list(taken.model_fields))), 422, media_type="application/json")

    async def refuse_http(_: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        told = {404: "no such address; / is the page, /docs lists the others", 405: "this address does not take that method; see /docs"}
        message = told.get(error.status_code, str(error.detail))
        return Response(error_body(error.status_code, message), error.status_code, error.headers, media_type="application/json")

    for kind in (Refused, ValueError, Unreachable, Exception):
        app.add_exception_handler(kind, refuse)
    app.add_exception_handler(RequestValidationError, refuse_fields)
    app.add_exception_handler(HTTPException, refuse_http)


def fault(error: RequestValidationError, known: list[str]) -> str:
    """The first fault of a request in one line: the field, its value, and what it must be. ``known``: the fields of its body."""
    first = error.errors()[0]
    name = str(next(iter(first["loc"][1:]), "body"))
    if first["type"] == "extra_forbidden":
        return str(unknown("body", name, known, " field"))
    if first["type"] == "missing":
        return f"{name} is missing: send a JSON object with it, such as {{'question': 'Where is the milk?'}}"
    return f"{name} = {str(repr(first['input']))[:200]}: {first['msg'].replace('Input should be', 'must be')}"
