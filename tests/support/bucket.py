"""A Google Cloud Storage server on this machine, in memory, for the tests that need a bucket."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager

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
