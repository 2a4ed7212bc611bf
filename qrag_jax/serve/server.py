"""Runs the application on a socket until it is told to stop, and then answers what it has accepted."""

from __future__ import annotations

import ipaddress
import logging
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from qrag_jax.rundir.early import SIGNALS
from qrag_jax.rundir.log import Interrupted, say
from qrag_jax.serve.service import Service

PAUSE = 0.3  # seconds in which requests that are on their way still get an answer, at least that the server is stopping
IDLE = 5  # seconds that a connection is kept without a request


def bind(host: str, port: int) -> socket.socket:
    """A socket of that address, on which nothing listens yet. Raises ValueError if it cannot be used."""
    family, *_, place = _addresses(host, port)[0]
    found = socket.socket(family)
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(place)
    except OSError as error:
        found.close()
        raise ValueError(f"port = {port}: {host} port {port} cannot be used ({error.strerror}); choose another --port or --host") from None
    return found


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches that address. Raises ValueError if there is no such address."""
    found = {str(entry[4][0]).partition("%")[0] for entry in _addresses(host, None)}
    return all(ipaddress.ip_address(one).is_loopback for one in found)


def _addresses(host: str, port: int | None) -> list[Any]:
    try:
        return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (socket.gaierror, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ValueError(f"host = {host!r}: no such address ({reason}); give a name or an address of this machine") from None


def address(bound: socket.socket, host: str) -> str:
    """The address to type into a browser."""
    shown = f"[{host}]" if ":" in host else host
    return f"http://{shown}:{bound.getsockname()[1]}"


class _Server(uvicorn.Server):
    """uvicorn, which leaves signals to :func:`run` and stops when ``service`` has answered what it accepted."""

    def __init__(self, config: uvicorn.Config, service: Service, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._service, self._ready = service, ready
        self.asked: int | None = None  # the signal
        self._since = self._closed = 0.0

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._ready()

    def ask(self, number: int, frame: FrameType | None) -> None:
        """The handler of signals: the first one asks to stop, and a second one ends the process at once."""
        if self.asked is not None:
            logging.getLogger("uvicorn.error").disabled = True  # it would log the traceback of what is broken off here
            raise KeyboardInterrupt("stopped at once; some requests were not answered")
        self.asked = number

    async def on_tick(self, counter: int) -> bool:
        if self.asked is not None and not self.should_exit:
            self._leave()
        return await super().on_tick(counter)

    def _leave(self) -> None:
        """Refuses new requests; closes the port when the accepted ones are answered; ends when no request is on its way any more."""
        now = time.monotonic()
        if not self._since:
            self._since = now
            if left := self._service.health().requests:
                say(f"stopping: {left} requests are still being answered")
        done = self._service.stop(0) and now - self._since >= PAUSE
        if not self._closed and (done or now - self._since > self._service.limits.seconds + PAUSE):
            self._closed = now
            for server in self.servers:
                server.close()
        elif self._closed:
            self.should_exit = not self.server_state.connections or now - self._closed >= PAUSE


def run(app: ASGIApp, service: Service, bound: socket.socket, ready: Callable[[], None]) -> None:
    """Serves until SIGTERM or Ctrl-C, then answers every accepted request, and returns, or raises Interrupted after Ctrl-C.

    ``ready`` is called as soon as clients can connect.
    """
    config = uvicorn.Config(
        app,
        http="h11",
        ws="none",
        loop="asyncio",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=IDLE,
        timeout_graceful_shutdown=IDLE,
    )
    server = _Server(config, service, ready)
    old = {number: signal.signal(number, server.ask) for number in SIGNALS}
    try:
        server.run([bound])
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
    left = service.health().requests
    say("stopped; " + (f"{left} requests were not answered in time" if left else "every accepted request was answered"))
    if server.asked == signal.SIGINT:
        raise Interrupted("stopped by Ctrl-C")
