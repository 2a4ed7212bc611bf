"""A chat-completion server on loopback that misbehaves as a test tells it to."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


def completion(content: Any, finish: str | None = "stop", usage: dict[str, int] | None = None) -> dict[str, Any]:
    choice = {"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": content}}
    body = {"id": "x", "object": "chat.completion", "created": 0, "model": "stub", "choices": [choice]}
    return body if usage is None else body | {"usage": usage}


class StubServer(ThreadingHTTPServer):
    """``script``: what to do with the n-th request of a prompt (n from 0): ``script(user, n)`` gives one of

    a dict (a JSON body), an int (a status), (status, headers) or (status, headers, body), bytes (a raw JSON-typed body), "hang" (no
    response until the server ends), or "cut" (the connection closes in the middle of the body).
    """

    daemon_threads = True
    block_on_close = False

    def __init__(self, script: Callable[[str, int], Any]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.script = script
        self.lock = threading.Lock()
        self.requests: list[dict[str, Any]] = []
        self.in_flight = self.most_in_flight = 0
        self.released = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def users(self) -> list[str]:
        return [request["messages"][-1]["content"] for request in self.requests]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignores clients that have closed the connection: tests do that on purpose."""


class Handler(BaseHTTPRequestHandler):
    server: StubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: Any) -> None:
        pass

    def do_POST(self) -> None:
        server = self.server
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        request["path"], request["key"] = self.path, self.headers["Authorization"]
        user = request["messages"][-1]["content"]
        with server.lock:
            n = server.users().count(user)
            server.requests.append(request)
            server.in_flight += 1
            server.most_in_flight = max(server.most_in_flight, server.in_flight)
        try:
            action = server.script(user, n)
        finally:
            with server.lock:
                server.in_flight -= 1
        if action == "hang":
            server.released.wait()
            self.close_connection = True
            return
        status, headers, body = 200, {}, b'{"error": {"message": "as ordered"}}'
        if isinstance(action, dict):
            body = json.dumps(action).encode()
        elif isinstance(action, int):
            status = action
        elif isinstance(action, tuple):
            status, headers, *rest = action
            body = rest[0] if rest else body
        elif isinstance(action, bytes):
            body = action
        self.send_response(status)
        length = len(body) + (100 if action == "cut" else 0)
        for name, value in ({"Content-Type": "application/json", "Content-Length": str(length)} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)
        self.close_connection = action == "cut"


@contextmanager
def stub_server(script: Callable[[str, int], Any]) -> Iterator[StubServer]:
    server = StubServer(script)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.released.set()
        server.shutdown()
        server.server_close()
        thread.join()
