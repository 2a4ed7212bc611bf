"""Runs the service's blocking calls in threads, for an event loop: results, events as they come, and clients that leave."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, suppress
from typing import Any, Protocol, TypeVar, runtime_checkable

from starlette.requests import Request as HttpRequest
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from qrag_jax.serve.limits import Gone, Limits, TooLate
from qrag_jax.serve.request import Request

T = TypeVar("T")
Hear = Callable[[T], None]
GRACE = 2.0  # seconds after the deadline for the service to say so itself
SILENCE = 15.0  # seconds after which a stream without events shows that it is alive


@runtime_checkable
class Accepts(Protocol):
    """The part of a :class:`~qrag_jax.serve.service.Service` that a bridge uses."""

    limits: Limits

    def accept(self) -> AbstractContextManager[Request]: ...


class Bridge:
    """The threads in which calls of ``service`` run: one for each request that it accepts at once."""

    def __init__(self, service: Accepts) -> None:
        self.service = service
        self._threads = ThreadPoolExecutor(service.limits.requests, thread_name_prefix="request")

    async def events(self, work: Callable[[Request, Hear[T]], T]) -> AsyncIterator[T]:
        """Yields what ``work(request, hear)`` lets ``hear`` hear, and at the end what it returns; raises what it raises.

        A request is accepted before the first event. When the iteration ends, however it ends, the request costs nothing more. Raises
        Overloaded, Stopping or TooLate.
        """
        loop = asyncio.get_running_loop()
        told: asyncio.Queue[tuple[str, Any]] = asyncio.Queue()

        def tell(kind: str, value: Any) -> None:
            with suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(told.put_nowait, (kind, value))

        with ExitStack() as stack:
            request = stack.enter_context(self.service.accept())
            release = stack.pop_all().close

        def run() -> None:
            try:
                tell("result", work(request, lambda event: tell("event", event)))
            except BaseException as error:  # raised again below
                tell("error", error)
            finally:
                release()

        self._threads.submit(contextvars.copy_context().run, run)
        try:
            kind = ""
            while kind != "result":
                try:
                    kind, value = await asyncio.wait_for(told.get(), request.left + GRACE)
                except TimeoutError:
                    raise TooLate(request.seconds) from None
                if kind == "error":
                    raise value
                yield value
        finally:
            request.gone.set()

    async def result(self, http: HttpRequest, work: Callable[[Request], T]) -> T:
        """What ``work(request)`` returns. Raises Gone as soon as the client has left, and what :meth:`events` raises."""

        async def last() -> T:
            async for value in self.events(lambda request, hear: work(request)):
                return value
            raise AssertionError("no result")

        answer, left = asyncio.ensure_future(last()), asyncio.ensure_future(_left(http))
        try:
            await asyncio.wait((answer, left), return_when=asyncio.FIRST_COMPLETED)
            if not answer.done():
                raise Gone
            return answer.result()
        finally:
            for task in (answer, left):
                task.cancel()
            await asyncio.gather(answer, left, return_exceptions=True)

    def close(self) -> None:
        self._threads.shutdown(wait=False)


async def _left(http: HttpRequest) -> None:
    while (await http.receive())["type"] != "http.disconnect":
        pass


class EventStream(StreamingResponse):
    """Server-sent events. ``close`` is awaited at the end, also when the client has left."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncIterator[bytes], close: Callable[[], Any]) -> None:
        super().__init__(with_signs_of_life(events), headers={"X-Accel-Buffering": "no"})
        self._close = close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._close()


async def with_signs_of_life(events: AsyncIterator[bytes], silence: float | None = None) -> AsyncIterator[bytes]:
    """``events``, and a comment whenever there was none for ``silence`` seconds, so that no proxy takes the stream for dead."""
    coming = asyncio.ensure_future(anext(events, None))
    try:
        while True:
            await asyncio.wait((coming,), timeout=SILENCE if silence is None else silence)
            if not coming.done():
                yield b": waiting\n\n"
            elif (event := coming.result()) is None:
                return
            else:
                yield event
                coming = asyncio.ensure_future(anext(events, None))
    finally:
        coming.cancel()
        await asyncio.gather(coming, return_exceptions=True)


def sse(event: str, data: str) -> bytes:
    """One server-sent event; ``data`` is JSON, which has no line ends."""
    return f"event: {event}\ndata: {data}\n\n".encode()
