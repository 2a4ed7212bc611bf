"""Runs the application on a socket until it is told to stop, and then answers what it has accepted."""

from __future__ import annotations

import ipaddress
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import uvicorn
from starlette.types import ASGIApp

from qrag_jax.rundir.early import SIGNALS
from qrag_jax.rundir.log import Interrupted, say
from qrag_jax.serve.service import Service

PAUSE = 0.3  # seconds in which requests that are on their way still get an answer, at least that the server is stopping
IDLE = 5  # seconds that a connection is kept without a request


def bind(host: str, port: int) -> socket.socket:
    """A socket of that address, on which nothing listens yet. Raises ValueError if it cannot be used."""
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        found = socket.socket(family)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
    except socket.gaierror as error:
        raise ValueError(f"host = {host!r}: no such address ({error.strerror}); give a name or an address of this machine") from None
    except OSError as error:
        raise ValueError(f"port = {port}: {host} port {port} cannot be used ({error.strerror}); choose another --port or --host") from None
    return found


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches that address. Raises ValueError if there is no such address."""
    try:
        found = {entry[4][0] for entry in socket.getaddrinfo(host, None)}
    except socket.gaierror as error:
        raise ValueError(f"host = {host!r}: no such address ({error.strerror}); give a name or an address of this machine") from None
    return all(ipaddress.ip_address(str(one).partition("%")[0]).is_loopback for one in found)


def address(bound: socket.socket, host: str) -> str:
    """The address to type into a browser."""
    shown = f"[{host}]" if ":" in host else host
    return f"http://{shown}:{bound.getsockname()[1]}"


class _Server(uvicorn.Server):
    """uvicorn, which leaves signals to :func:`run` and stops when ``service`` has answered what it accepted."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service
        self.asked: int | None = None  # the signal
        self._since = 0.0

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    def ask(self, number: int, frame: FrameType | None) -> None:
        """The handler of signals: the first one asks to stop, and a second one ends the process at once."""
        if self.asked is not None:
            raise KeyboardInterrupt("stopped at once; some requests were not answered")
        self.asked = number

    async def on_tick(self, counter: int) -> bool:
        if self.asked is not None and not self.should_exit:
            if not self._since:
                self._since = time.monotonic()
                if left := self._service.health().requests:
                    say(f"stopping: {left} requests are still being answered")
            done, waited = self._service.stop(0), time.monotonic() - self._since
            self.should_exit = (done and waited >= PAUSE) or waited > self._service.limits.seconds + PAUSE
        return await super().on_tick(counter)


def run(app: ASGIApp, service: Service, bound: socket.socket) -> None:
    """Serves until SIGTERM or Ctrl-C, then answers every accepted request, and returns, or raises Interrupted after Ctrl-C."""
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
    server = _Server(config, service)
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
