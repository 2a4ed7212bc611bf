"""Responses of OpenAI-compatible endpoints: the answer in one, or what failed."""

from __future__ import annotations

import email.utils
import json
import re
import time
from typing import Any

from qrag_jax.config.trees import parse_json
from qrag_jax.reader.protocol import Answer

REPLACED: dict[str, str | None] = {"max_tokens": "max_completion_tokens", "temperature": None, "stream_options": None}
"""Fields of a request that some models refuse, and what they take instead."""
NOT_TAKEN = ("unsupported", "not support", "unrecognized", "unknown", "not permitted", "not allowed", "deprecated", "extra inputs")
"""Words by which servers refuse a field."""
FINISHED = {"stop": "stop", "eos": "stop", "eos_token": "stop", "stop_sequence": "stop", "end_turn": "stop", "length": "length"}
"""Finish reasons of servers -> ours."""
TOO_LONG = (
    r"context[ _]length|context window|context size|maximum context|exceed_context|prompt is too long|input is too long|too many tokens"
)
"""What servers say of such a prompt."""
SHOWN = 500
"""Number of characters of a server's message that an error quotes."""


class Failure(Exception):
    """A request without an answer. ``final``: asking again would not help. ``wait``: seconds that the server asked to wait. ``too_long``:
    the prompt does not fit the model's context."""

    def __init__(
        self, reason: str, *, final: bool = False, wait: float = 0.0, advice: str = "read the server's log", too_long: bool = False
    ) -> None:
        super().__init__()
        self.reason, self.final, self.wait, self.advice, self.too_long = reason, final, wait, advice, too_long

    def __str__(self) -> str:
        return self.reason


def refused_as_too_long(response: Any) -> bool:
    """Whether a server refuses a prompt because it does not fit the model's context."""
    return response.status_code in (400, 413, 422) and re.search(TOO_LONG, response.text, re.IGNORECASE) is not None


def visible(text: str) -> str:
    """The part of an unfinished text that is no thought of the model: what follows its ``<think>`` block."""
    begun = text.lstrip()
    if not begun or "<think>".startswith(begun[:7]):
        return begun.partition("</think>")[2].lstrip() if begun.startswith("<think>") else ""
    return begun


def refused_field(response: Any) -> str | None:
    """The field of a request that a server's answer says it does not take; None if that is not what it says."""
    if response.status_code not in (400, 422):
        return None
    try:
        error = parse_json(response.content)
    except ValueError:
        return None
    error = error.get("error", error) if isinstance(error, dict) else error
    parts = error if isinstance(error, dict) else {}
    words = str(parts.get("message", error)).lower()
    if "unsupported" not in str(parts.get("code")) and not any(word in words for word in NOT_TAKEN):
        return None  # a message about a prompt that is too long names max_tokens too
    named = parts.get("param")
    return (
        named
        if isinstance(named, str) and named in REPLACED
        else next((name for name in REPLACED if re.search(rf"\b{name}\b", words)), None)
    )


def parse_answer(body: Any) -> Answer:
    """The answer of a chat completion. An empty text is an answer if the model finished; a missing text never is."""
    try:
        choice = body["choices"][0]
        text, finish = _joined(choice["message"]["content"]), choice.get("finish_reason")
    except (KeyError, IndexError, TypeError, AttributeError):
        raise Failure(f"a response without an answer: {json.dumps(body)[:SHOWN]}") from None
    if finish == "content_filter":
        raise Failure("the server's content filter stopped the answer", final=True, advice="use another model, or leave this question out")
    finish = FINISHED.get(finish) if isinstance(finish, str) else "stop" if finish is None and text else None
    if not isinstance(text, str | None) or finish is None:
        raise Failure(f"a response without an answer: {json.dumps(choice)[:SHOWN]}")
    thoughts, closed, rest = (text or "").partition("</think>")
    if closed:
        text = rest.lstrip()
    if finish == "length" and (not text or (not closed and thoughts.lstrip().startswith("<think>"))):
        raise Failure(
            "the model spent all its tokens on thinking", final=True, advice="raise max_new_tokens, or turn thinking off (extra_body)"
        )
    if text is None:
        raise Failure("a response without an answer: content = null")
    return Answer(text, _tokens(body, "prompt_tokens"), _tokens(body, "completion_tokens"), finish)


def _joined(content: Any) -> Any:
    """The text of a message that some servers give as a list of parts; a part without text, such as a thought, is left out."""
    if not isinstance(content, list):
        return content
    parts = [part if isinstance(part, str) else part.get("text") for part in content if isinstance(part, str) or _is_text(part)]
    return "".join(parts) if parts else None


def _is_text(part: Any) -> bool:
    return isinstance(part, dict) and part.get("type") in ("text", "output_text") and isinstance(part.get("text"), str)


def _tokens(body: dict[str, Any], name: str) -> int | None:
    """A token count from the response's usage; None if the server gives none."""
    usage = body.get("usage")
    count = usage.get(name) if isinstance(usage, dict) else None
    return count if type(count) is int and count >= 0 else None


def retry_after(value: str | None) -> float:
    """Seconds in a Retry-After header, given as a number or as a date (RFC 9110, 10.2.3); 0 without a valid header."""
    if value is None:
        return 0.0
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return 0.0
