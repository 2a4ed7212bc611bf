"""What every request passes before it is answered: host, origin, key, size and time of its body; and what every response carries."""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from qrag_jax.config.secrets import redact
from qrag_jax.serve.metrics import Metrics

BODY = 65_536  # bytes of a request
BODY_SECONDS = 10.0
NO_KEY = frozenset({"/", "/docs", "/openapi.json", "/health", "/health/live"})
"""What is answered without a key: nothing of it comes from the documents."""
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
}


@dataclass(frozen=True)
class Access:
    """Who is answered. ``key``: None: anyone. ``hosts``: names under which the server may be asked, besides localhost and IP addresses.
    ``origins``: other sites whose pages may ask."""

    key: str | None = None
    hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()


class BadRequest(Exception):
    """A request that is refused before it is read."""

    def __init__(self, status: int, message: str, **headers: str) -> None:
        super().__init__(message)
        self.status, self.headers = status, headers


class Guard:
    """ASGI middleware around ``app``. ``leaving``: whether the server is stopping, so that connections are closed after their response."""

    def __init__(self, app: ASGIApp, access: Access, metrics: Metrics, leaving: Callable[[], bool]) -> None:
        self._app, self._access, self._metrics, self._leaving = app, access, metrics, leaving

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start, status = time.perf_counter(), 500

        async def sent(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                self._add_headers(scope, message)
            await send(message)

        try:
            self._check(scope)
            if scope["method"] == "OPTIONS" and self._origin(scope):
                await _respond(sent, 204, b"")
            else:
                await self._app(scope, await _whole_body(scope, receive), sent)
        except BadRequest as error:
            await _respond(sent, error.status, error_body(error.status, str(error)), **error.headers)
        finally:
            self._metrics.answered(scope, status, time.perf_counter() - start)

    def _check(self, scope: Scope) -> None:
        """Raises BadRequest unless the request may be answered."""
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        name = _host_name(host)
        if not (name == "localhost" or _is_address(name) or name in self._access.hosts):
            raise BadRequest(421, f"Host = {host[:100]!r}: must be localhost, an IP address, or a name given with --allow-host")
        origin = headers.get("origin")
        own = origin is None or (origin != "null" and urlsplit(origin).netloc == host)
        if not own and origin not in self._access.origins:
            raise BadRequest(403, f"Origin = {str(origin)[:100]!r}: pages of other sites may not ask; --allow-origin allows one")
        if scope["method"] == "POST" and headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise BadRequest(415, f"Content-Type = {headers.get('content-type', '')[:100]!r}: must be application/json")
        if scope["path"] not in NO_KEY and scope["method"] != "OPTIONS":
            self._check_key(headers)

    def _check_key(self, headers: Headers) -> None:
        if self._access.key is None:
            return
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), self._access.key.encode()):
            what = "is wrong" if given else "is missing"
            raise BadRequest(401, f"the key {what}: send the header Authorization: Bearer KEY", **{"WWW-Authenticate": "Bearer"})

    def _origin(self, scope: Scope) -> str | None:
        """The origin of the request, if it is one of another site that is allowed."""
        origin = Headers(scope=scope).get("origin")
        return origin if origin in self._access.origins else None

    def _add_headers(self, scope: Scope, message: Message) -> None:
        headers = MutableHeaders(scope=message)
        for name, value in HEADERS.items():
            headers.setdefault(name, value)
        if origin := self._origin(scope):
            headers["Access-Control-Allow-Origin"] = origin
            headers["Cross-Origin-Resource-Policy"] = "cross-origin"
            headers["Access-Control-Allow-Headers"] = "Authorization, Content-Type, Mcp-Protocol-Version, Mcp-Session-Id"
            headers["Access-Control-Allow-Methods"] = "GET, POST"
            headers["Access-Control-Max-Age"] = "600"
        if self._access.origins:
            headers.add_vary_header("Origin")
        if self._leaving():
            headers["Connection"] = "close"


def error_body(status: int, message: str) -> bytes:
    """The one form of errors. ``message`` in one line, without secrets."""
    return json.dumps({"status": status, "error": redact(" ".join(message.split()))}, ensure_ascii=False).encode()


def _host_name(host: str) -> str:
    """A Host header without its port, in lower case."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _is_address(name: str) -> bool:
    """No name that an attacker's DNS could point here."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


async def _whole_body(scope: Scope, receive: Receive) -> Receive:
    """A ``receive`` that gives the whole body at once. Raises BadRequest if it is too long or does not come in time."""
    length = Headers(scope=scope).get("content-length", "0")
    if not length.isdecimal() or int(length) > BODY:
        raise BadRequest(413, f"Content-Length = {length[:20]}: must be at most {BODY:,} bytes")
    body, more = b"", True
    try:
        async with asyncio.timeout(BODY_SECONDS):
            while more:
                message = await receive()
                if message["type"] != "http.request":
                    break
                body, more = body + message.get("body", b""), message.get("more_body", False)
                if len(body) > BODY:
                    raise BadRequest(413, f"the body is too long: at most {BODY:,} bytes are read")
    except TimeoutError:
        raise BadRequest(408, f"the body did not come within {BODY_SECONDS:g} s", Connection="close") from None
    pending: list[Message] = [{"type": "http.disconnect"} if more else {"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return pending.pop() if pending else await receive()

    return replay


async def _respond(send: Send, status: int, body: bytes, **headers: str) -> None:
    every = {"Content-Type": "application/json", "Content-Length": str(len(body)), **headers}
    raw = [(name.lower().encode(), value.encode()) for name, value in every.items()]
    await send({"type": "http.response.start", "status": status, "headers": raw})
    await send({"type": "http.response.body", "body": body})
