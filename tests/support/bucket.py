"""A Google Cloud Storage server on this machine, in memory, for the tests that need a bucket."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from typing import Any

import pytest
from gcp_storage_emulator.server import create_server

BUCKET = "some-bucket"


@contextmanager
def bucket_server() -> Iterator[str]:
    """The gs:// URL of the server's only bucket. gcsfs finds the server by the environment, here and in processes started meanwhile."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with create_server("127.0.0.1", port, True, BUCKET), pytest.MonkeyPatch.context() as patch:
        patch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{port}")
        yield f"gs://{BUCKET}"


class Forbidding(BaseHTTPRequestHandler):
    """Answers like Google's server to a user without access."""

    def do_POST(self) -> None:
        content = b'{"error": {"code": 403, "message": "somebody does not have storage.objects.create access"}}'
        self.send_response(403)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args: Any) -> None:
        pass
