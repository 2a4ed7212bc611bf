"""Agents: the tools, asked with the client of the official SDK, in memory, over HTTP and over standard input and output."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import httpx2
import pytest
from mcp import Client, MCPError
from mcp.client.stdio import StdioServerParameters, stdio_client
from mcp.client.streamable_http import streamable_http_client

from qrag_jax.__main__ import main
from qrag_jax.serve.app import make_app, told
from qrag_jax.serve.bridge import Bridge
from qrag_jax.serve.guard import Access
from qrag_jax.serve.limits import Limits
from qrag_jax.serve.mcp import PATH, make_server
from qrag_jax.serve.service import Service
from tests.support.index import small_retriever, write_small_export
from tests.support.serving import QUESTION, SlowReader, build


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    retriever = small_retriever()
    index = build(retriever, tmp_path_factory.mktemp("mcp") / "index")
    with Service(index, retriever, SlowReader("In the ", "garden [1]."), Limits(budget=3), ("bm25",)) as service:  # compiles nothing
        yield service


def asked(service: Service, name: str, **arguments: Any) -> tuple[Any, list[tuple[float, float | None, str | None]]]:
    """What a tool gives, and what it reports on the way."""
    steps: list[tuple[float, float | None, str | None]] = []

    async def hear(*step: Any) -> None:
        steps.append(step)

    async def ask() -> Any:
        async with Client(make_server(service, Bridge(service), told)) as client:
            return await client.call_tool(name, arguments, progress_callback=hear)

    return anyio.run(ask), steps


def test_tools_are_described(service: Service) -> None:
    async def listed() -> Any:
        async with Client(make_server(service, Bridge(service), told)) as client:
            return (await client.list_tools()).tools

    search, answer = anyio.run(listed)
    assert (search.name, answer.name) == ("search", "answer")
    assert search.input_schema["required"] == ["question"]
    assert set(answer.input_schema["properties"]) == {"question", "budget", "mode", "filter", "stop", "least_q"}
    assert all("description" in one for one in answer.input_schema["properties"].values())
    assert search.output_schema["properties"]["steps"]["items"] == {"$ref": "#/$defs/StepOut"}
    assert search.annotations.read_only_hint


def test_a_search_gives_structured_passages_and_reports_its_steps(service: Service) -> None:
    result, steps = asked(service, "search", question=QUESTION, budget=2)
    found = result.structured_content
    assert not result.is_error
    assert json.loads(result.content[0].text) == found
    direct = service.search(QUESTION, budget=2)
    assert [one["chunk"] for one in found["steps"]] == [step.pick.chunk for step in direct.steps]
    assert [(number, total, where) for number, total, where in steps] == [(i + 1, 2, found["steps"][i]["place"]) for i in range(2)]


def test_an_answer_has_citations(service: Service) -> None:
    found = asked(service, "answer", question=QUESTION)[0].structured_content
    assert (found["text"], found["found"], found["citations"][0]["number"]) == ("In the garden [1].", True, 1)
    nothing = asked(service, "answer", question="zebra")[0].structured_content
    assert (nothing["found"], nothing["judge"]) == (False, "search")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "question is missing"),
        ({"question": "Who?", "budget": 99}, "budget = 99: must be at most 3"),
        ({"question": "Who?", "budget": "2"}, "budget = '2': must be a valid integer"),
        ({"question": "Who?", "bugdet": 2}, "did you mean 'budget'?"),
        ({"question": "x" * 3000}, "must be a text of at most 2,000 characters"),
        ({"question": "Who?", "filter": ["year=1900"]}, "no document has that"),
    ],
)
def test_what_is_wrong_is_told_to_the_model_in_one_line(service: Service, arguments: dict[str, Any], message: str) -> None:
    result, _ = asked(service, "search", **arguments)
    assert result.is_error
    assert message in result.content[0].text
    assert "\n" not in result.content[0].text


def test_an_unknown_tool_is_an_error_of_the_protocol(service: Service) -> None:
    with pytest.raises(BaseException) as caught:  # noqa: PT011  (a group of exceptions)
        asked(service, "serach")
    error = caught.value
    while isinstance(error, BaseExceptionGroup):
        (error,) = error.exceptions
    assert isinstance(error, MCPError)
    assert "did you mean 'search'?" in str(error)


def test_the_tools_over_http_need_the_key_of_the_server(service: Service) -> None:
    app: Any = make_app(service, Access(key="k" * 16))

    async def ask() -> Any:
        keyed = {"Authorization": f"Bearer {'k' * 16}"}
        async with app._app.router.lifespan_context(app._app), httpx2.AsyncClient(transport=httpx2.ASGITransport(app)) as http:
            refused = await http.post(f"http://127.0.0.1{PATH}", json={"jsonrpc": "2.0", "id": 1, "method": "tools/list"})
            http.headers.update(keyed)
            async with Client(streamable_http_client(f"http://127.0.0.1{PATH}", http_client=http)) as client:
                return refused, await client.call_tool("search", {"question": QUESTION, "budget": 1})

    refused, result = anyio.run(ask)
    assert (refused.status_code, refused.json()["error"][:18]) == (401, "the key is missing")
    assert len(result.structured_content["steps"]) == 1


@pytest.mark.parametrize("option", [["--port", "9000"], ["--public"], ["--allow-host", "a"]])
def test_standard_input_has_no_address(option: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", str(tmp_path), "--mcp", "stdio", *option]) == 64
    assert f"{option[0]} = " in (line := capsys.readouterr().err)
    assert "left out with --mcp stdio" in line


@pytest.mark.slow
@pytest.mark.quick
@pytest.mark.processes
def test_the_command_over_standard_input_and_output(tmp_path: Path) -> None:
    """Standard output is the protocol alone; SIGTERM ends the command with exit code 0 although nobody closes its input."""
    write_small_export(tmp_path / "run/export")
    (tmp_path / "a.txt").write_text("Mary went to the garden. John slept in the office.")
    assert main(["index", "build", str(tmp_path / "a.txt"), str(tmp_path / "index"), "--retriever", str(tmp_path / "run")]) == 0
    words = ["-m", "qrag_jax", "serve", str(tmp_path / "index"), "--mcp", "stdio"]

    async def ask() -> Any:
        with (tmp_path / "log").open("w") as log:
            async with Client(stdio_client(StdioServerParameters(command=sys.executable, args=words), errlog=log)) as client:
                return await client.call_tool("search", {"question": QUESTION, "budget": 2})

    assert len(anyio.run(ask).structured_content["steps"]) == 2
    assert "every accepted request was answered" in (tmp_path / "log").read_text()

    async def end() -> tuple[int, bytes]:
        async with await anyio.open_process([sys.executable, *words], stdin=-1, stdout=-1, stderr=-1) as process:
            assert process.stderr is not None
            assert process.stdout is not None
            heard = b""
            while b"an agent may ask" not in heard:
                heard += await process.stderr.receive()
            process.send_signal(signal.SIGTERM)
            return await process.wait(), b"".join([piece async for piece in process.stdout])

    assert anyio.run(end) == (0, b"")
