"""The tools of an index for agents, by the Model Context Protocol (MCP): `search`, and `answer` if there is a reader.

An agent asks over standard input and output (:func:`run_stdio`), or at /mcp of the HTTP server (:class:`Agents`).
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

import anyio
from fastapi.exceptions import RequestValidationError
from mcp.server.lowlevel import Server
from mcp.server.stdio import stdio_server
from mcp.server.transport_security import TransportSecuritySettings
from mcp.shared.exceptions import MCPError
from mcp.types import INVALID_PARAMS, CallToolResult, ListToolsResult, TextContent, Tool, ToolAnnotations
from pydantic import BaseModel, ValidationError
from starlette.routing import BaseRoute

from qrag_jax import __version__
from qrag_jax.config.parse import unknown
from qrag_jax.retrieve.places import place
from qrag_jax.retrieve.types import Step
from qrag_jax.rundir.early import SIGNALS
from qrag_jax.rundir.log import Interrupted, say
from qrag_jax.serve.bridge import Bridge, Hear
from qrag_jax.serve.request import Found, Request
from qrag_jax.serve.schema import AnswerRequest, AnswerResponse, SearchRequest, SearchResponse
from qrag_jax.serve.searching import USUAL_BUDGET
from qrag_jax.serve.service import Service

PATH = "/mcp"
PAUSE = 0.3  # seconds in which the last answers reach the client
SEARCH = "Search the documents in several steps; each step reads what was found before. Gives passages with their places."
ANSWER = "Search the documents, and answer from the passages found, with numbered citations. Says so if they hold no answer."
Tell = Callable[[Exception, list[str]], str]
"""What the client is told of an error, in one line, given the fields that a tool takes."""


@dataclass(frozen=True)
class _Tool:
    takes: type[SearchRequest]
    gives: type[BaseModel]
    about: str
    run: Callable[[Service, Any, Request, Hear[Step]], BaseModel]

    def described(self, name: str) -> Tool:
        return Tool(
            name=name,
            description=self.about,
            input_schema=self.takes.model_json_schema(),
            output_schema=self.gives.model_json_schema(mode="serialization"),
            annotations=ToolAnnotations(read_only_hint=True, open_world_hint=False),
        )


def _search(service: Service, body: SearchRequest, request: Request, hear: Hear[Step]) -> SearchResponse:
    for one in service.stream(**body.model_dump(), request=request):
        if isinstance(one, Found):
            return SearchResponse.of(one)
        hear(one)
    raise AssertionError("a search ends with what it found")


def _answer(service: Service, body: AnswerRequest, request: Request, hear: Hear[Step]) -> AnswerResponse:
    return AnswerResponse.of(service.answer(**body.model_dump(), hear_step=hear, request=request))


def make_server(service: Service, bridge: Bridge, tell: Tell) -> Server:
    """The server of the tools of ``service``, which ``bridge`` calls. What is asked wrongly is told in the result, for its model."""
    tools = {"search": _Tool(SearchRequest, SearchResponse, SEARCH, _search)}
    if service.reader is not None:
        tools["answer"] = _Tool(AnswerRequest, AnswerResponse, ANSWER, _answer)

    async def list_tools(context: Any, params: Any) -> ListToolsResult:
        return ListToolsResult(tools=[tool.described(name) for name, tool in tools.items()])

    async def call_tool(context: Any, params: Any) -> CallToolResult:
        if (tool := tools.get(params.name)) is None:
            raise MCPError(INVALID_PARAMS, str(unknown("name", params.name, tools, " tool")))
        try:
            found = await _called(service, bridge, tool, params.arguments or {}, context)
        except Exception as error:
            line = " ".join(tell(error, list(tool.takes.model_fields)).split())
            return CallToolResult(content=[TextContent(type="text", text=line)], is_error=True)
        text = TextContent(type="text", text=found.model_dump_json())
        return CallToolResult(content=[text], structured_content=found.model_dump(mode="json"))

    return Server("qrag", version=__version__, title="qrag", on_list_tools=list_tools, on_call_tool=call_tool)


async def _called(service: Service, bridge: Bridge, tool: _Tool, arguments: Mapping[str, Any], context: Any) -> BaseModel:
    """What a tool gives. Each step of the search is reported as progress; if the client cancels, the request costs nothing more."""
    try:
        body = tool.takes.model_validate(arguments)
    except ValidationError as error:
        raise RequestValidationError([{**one, "loc": ("body", *one["loc"])} for one in error.errors()]) from error
    total = body.budget or min(USUAL_BUDGET, service.budget)

    def run(request: Request, hear: Hear[Step | BaseModel]) -> Step | BaseModel:
        return tool.run(service, body, request, hear)

    events = bridge.events(run)
    async with aclosing(events):  # type: ignore[type-var]
        async for event in events:
            if not isinstance(event, Step):
                return event
            await context.session.report_progress(event.number + 1, total, place(event.pick))
    raise AssertionError("a call ends with a result")


class Agents:
    """The tools at :data:`PATH` of an HTTP application: its ``routes``, which work inside :meth:`running`.

    No session is kept, so that a client goes on when the server is started again. Host, origin and key are those of the application.
    """

    def __init__(self, service: Service, bridge: Bridge, tell: Tell) -> None:
        self._server = make_server(service, bridge, tell)
        # The application's own guard checks hosts and origins.
        open_to_all = TransportSecuritySettings(enable_dns_rebinding_protection=False)
        app = self._server.streamable_http_app(streamable_http_path=PATH, stateless_http=True, transport_security=open_to_all)
        self.routes: list[BaseRoute] = app.routes

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with self._server.session_manager.run():
            yield


def run_stdio(service: Service, tell: Tell) -> None:
    """Serves one client over standard input and output until it closes them, or until SIGTERM or Ctrl-C, and answers what was accepted.

    Nothing but the protocol is written to standard output. Raises Interrupted after Ctrl-C.
    """
    server = make_server(service, Bridge(service), tell)
    asked: list[int] = []

    def ask(number: int, frame: FrameType | None) -> None:
        if asked:
            raise KeyboardInterrupt("stopped at once; some requests were not answered")
        asked.append(number)

    async def serve() -> None:
        async with stdio_server() as (read, write):
            await server.run(read, write, server.create_initialization_options())

    # A thread of its own, since nothing ends its reading of standard input.
    thread = threading.Thread(target=anyio.run, args=(serve,), name="stdio", daemon=True)
    old = {number: signal.signal(number, ask) for number in SIGNALS}
    try:
        thread.start()
        say("an agent may ask over standard input")
        while thread.is_alive() and not asked:
            thread.join(0.1)
        done = service.stop(service.limits.seconds)
        if asked:
            time.sleep(PAUSE)
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
    say("stopped; " + ("every accepted request was answered" if done else "some requests were not answered in time"))
    if signal.SIGINT in asked:
        raise Interrupted("stopped by Ctrl-C")
