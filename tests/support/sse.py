"""A streamed chat completion, as an OpenAI-compatible server sends it."""

from __future__ import annotations

import json
from typing import Any

Streamed = tuple[int, dict[str, str], bytes]


def streamed(*pieces: str, finish: str | None = "stop", usage: dict[str, int] | None = None, done: bool = True) -> Streamed:
    """An action of :class:`~tests.support.http.StubServer`. ``done`` False: the stream ends in the middle."""
    base = {"id": "x", "object": "chat.completion.chunk", "created": 0, "model": "stub"}
    events: list[dict[str, Any]] = [
        base | {"choices": [{"index": 0, "delta": {"content": piece}, "finish_reason": None}]} for piece in pieces
    ]
    if done:
        events.append(base | {"choices": [{"index": 0, "delta": {}, "finish_reason": finish}]})
    if usage is not None:
        events.append(base | {"choices": [], "usage": usage})
    body = b"".join(b"data: " + json.dumps(event).encode() + b"\n\n" for event in events)
    return 200, {"Content-Type": "text/event-stream"}, body + (b"data: [DONE]\n\n" if done else b"")
