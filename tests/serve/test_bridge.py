"""From threads to an event loop: events in order, clients that leave, deadlines, and streams that show that they are alive."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from qrag_jax.serve import bridge as bridge_module
from qrag_jax.serve.bridge import Bridge, EventStream, sse, with_signs_of_life
from qrag_jax.serve.limits import Gone, Limits, TooLate
from qrag_jax.serve.request import Request


class Accepting:
    """The part of a service that a bridge uses."""

    def __init__(self, seconds: float = 20.0) -> None:
        self.limits = Limits(requests=2, seconds=seconds)
        self.open = 0
        self.last: Request | None = None

    @contextmanager
    def accept(self) -> Iterator[Request]:
        self.open += 1
        self.last = Request(self.limits.seconds)
        try:
            yield self.last
        finally:
            self.open -= 1


async def closed(accepting: Accepting) -> None:
    for _ in range(400):
        if not accepting.open:
            return
        await asyncio.sleep(0.01)
    raise AssertionError("the request is still open")


def waits(request: Request, hear: Any) -> str:
    """Works until nobody waits for it."""
    hear("begun")
    assert request.gone.wait(20)
    return "never seen"


def test_events_come_in_order_and_errors_are_raised() -> None:
    accepting = Accepting()
    bridge = Bridge(accepting)

    def works(request: Request, hear: Any) -> str:
        hear("a")
        hear("b")
        return "c"

    def fails(request: Request, hear: Any) -> str:
        hear("a")
        raise ValueError("as ordered")

    async def run() -> None:
        assert [event async for event in bridge.events(works)] == ["a", "b", "c"]
        events = bridge.events(fails)
        assert await anext(events) == "a"
        with pytest.raises(ValueError, match="as ordered"):
            await anext(events)
        await closed(accepting)

    asyncio.run(run())


def test_a_reader_of_events_that_leaves_ends_the_work() -> None:
    accepting = Accepting()

    async def run() -> None:
        events = Bridge(accepting).events(waits)
        assert await anext(events) == "begun"
        assert accepting.open == 1
        await events.aclose()  # type: ignore[attr-defined]
        await closed(accepting)

    asyncio.run(run())


@pytest.mark.parametrize("streamed", [False, True])
def test_a_client_that_closes_its_connection_ends_the_work(streamed: bool) -> None:
    accepting, left = Accepting(), threading.Event()

    async def receive() -> dict[str, str]:
        while not left.is_set():
            await asyncio.sleep(0.01)
        return {"type": "http.disconnect"}

    class Http:
        def __init__(self) -> None:
            self.receive = receive

    async def run() -> None:
        bridge = Bridge(accepting)
        if streamed:
            events = bridge.events(lambda request, hear: waits(request, lambda event: hear(sse("step", '"x"'))).encode())
            sent: list[Any] = []

            async def send(message: Any) -> None:
                sent.append(message)
                left.set()

            await EventStream(events, events.aclose)({"type": "http", "asgi": {"spec_version": "2.3"}}, receive, send)  # type: ignore[attr-defined]
            assert sent[0]["status"] == 200
        else:
            asyncio.get_running_loop().call_later(0.05, left.set)
            with pytest.raises(Gone):
                await bridge.result(Http(), lambda request: waits(request, lambda event: None))  # type: ignore[arg-type]
        await closed(accepting)

    asyncio.run(run())


def test_work_that_takes_too_long_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bridge_module, "GRACE", 0.05)
    accepting, release = Accepting(seconds=0.05), threading.Event()

    async def run() -> None:
        with pytest.raises(TooLate, match=r"seconds = 0\.05: the request was not answered within that time"):
            await anext(Bridge(accepting).events(lambda request, hear: release.wait(20)))
        assert accepting.open == 1  # it counts as long as it works
        release.set()
        await closed(accepting)

    asyncio.run(run())


def test_a_silent_stream_shows_that_it_is_alive() -> None:
    async def events() -> AsyncIterator[bytes]:
        yield sse("step", "1")
        await asyncio.sleep(0.15)
        yield sse("result", "2")

    async def run() -> list[bytes]:
        return [event async for event in with_signs_of_life(events(), 0.05)]

    first, *alive, last = asyncio.run(run())
    assert (first, last) == (b"event: step\ndata: 1\n\n", b"event: result\ndata: 2\n\n")
    assert set(alive) == {b": waiting\n\n"}
