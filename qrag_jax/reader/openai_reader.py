"""A reader behind an OpenAI-compatible endpoint: OpenAI itself, vLLM, llama.cpp's server, Ollama, and others."""

from __future__ import annotations

import json
import math
import os
import queue
import random
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, cast

from qrag_jax.config.secrets import clean_key, holds_credentials, redact
from qrag_jax.config.trees import parse_json
from qrag_jax.reader.cache import ResponseCache
from qrag_jax.reader.protocol import Answer, Prompt, ReaderError, RefusedAsTooLong
from qrag_jax.reader.responses import REPLACED, SHOWN, Failure, parse_answer, refused_as_too_long, refused_field, retry_after, visible
from qrag_jax.rundir.log import progress, say

RETRIED = frozenset({408, 409, 429})
"""Statuses after which a prompt is asked again, as after all statuses from 500 on."""
LONGEST_WAIT = 300.0
"""Seconds. The reader gives up if a server asks for a longer wait (Retry-After)."""
MANY = 20
"""From this number of unanswered prompts on, a progress bar is shown."""
SHORTEST_KEY = 4
"""A shorter key, such as "x" for a local server, is no secret and may be part of any word."""
REFUSED = {
    "max_tokens": "it is sent max_completion_tokens",
    "stream_options": "the tokens of its streamed answers are not counted",
    "temperature": "its answers come at its own temperature, not at {temperature:g}, and may differ from run to run",
}

ADVICE = {
    400: "read the server's message; often the prompt is longer than the model's context",
    401: "set the key in the environment variable {key}",
    403: "check that the key in the environment variable {key} may use this model",
    404: "check base_url (it usually ends in /v1) and the model's name",
}


class OpenAIReader:
    """Asks ``model`` at ``base_url`` ("http://localhost:8000/v1") by chat completion.

    ``timeout``: seconds without a byte from the server. ``retries``: how often a prompt is asked again after a timeout, a lost connection,
    status 408, 409, 429 or 5xx, or an unusable response; the wait starts at ``backoff`` seconds and doubles, with jitter, and is at least
    Retry-After. Other statuses fail at once. ``concurrency``: requests in flight. ``cache_dir``: folder that caches answers, at temperature
    0 only, by address and model name; these must then always mean the same model. ``extra_body``: further fields of the request, such as
    ``{"chat_template_kwargs": {"enable_thinking": False}}``. The key is optional, since local servers often need none; it is in no message.

    A model that refuses ``max_tokens`` is sent ``max_completion_tokens``, and one that refuses ``temperature`` is sent none, from its first
    such answer on.

    If a model thinks in ``<think>`` tags, its answer is the text after them. Raises ValueError on bad settings, an address or a key that
    cannot be used, and without the openai package.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        api_key_env: str = "OPENAI_API_KEY",
        timeout: float = 60.0,
        retries: int = 5,
        backoff: float = 0.5,
        concurrency: int = 8,
        max_new_tokens: int = 64,
        temperature: float = 0.0,
        cache_dir: str | Path | None = None,
        extra_body: Mapping[str, Any] | None = None,
    ) -> None:
        for name, value, valid, allowed in (
            ("base_url", base_url, base_url.startswith(("http://", "https://")), "an http:// or https:// address"),
            ("model", model, bool(model), "the name of a model the server has"),
            ("timeout", timeout, 0 < timeout < math.inf, "a positive number of seconds"),
            ("retries", retries, retries >= 0, "0 or more"),
            ("backoff", backoff, 0 <= backoff < math.inf, "0 seconds or more"),
            ("concurrency", concurrency, concurrency >= 1, "1 or more"),
            ("max_new_tokens", max_new_tokens, max_new_tokens >= 1, "1 or more"),
            ("temperature", temperature, 0 <= temperature < math.inf, "0 or more"),
        ):
            if not valid:
                raise ValueError(f"{name} = {redact(repr(value))}: must be {allowed}")
        if holds_credentials(base_url):
            raise ValueError(
                f"base_url = {redact(base_url)!r}: holds a password or a key, which messages and files would show; give the address "
                f"without it, and the key in the environment variable {api_key_env}"
            )
        _openai()
        self.base_url, self.model, self.api_key_env = base_url, model, api_key_env
        self._key()  # refuses a bad key before anything is asked
        self.timeout, self.retries, self.backoff, self.concurrency = timeout, retries, backoff, concurrency
        self.max_new_tokens, self.temperature, self.extra_body = max_new_tokens, temperature, dict(extra_body or {})
        self.name = f"openai:{base_url.rstrip('/')},{model} temperature={temperature:g} max_new_tokens={max_new_tokens}"
        if self.extra_body:
            self.name += f" {redact(json.dumps(self.extra_body, sort_keys=True))}"
        self._renamed: dict[str, str | None] = {}  # fields of a request that the server refuses -> what it takes instead
        self._cache = ResponseCache(cache_dir) if cache_dir is not None and temperature == 0 else None

    def answer(self, prompts: Sequence[Prompt]) -> list[Answer]:
        """One answer per prompt, in order. Cached prompts are not asked again.

        Raises ReaderError if a prompt is not answered. The answers up to then are in the cache, so a second call asks only the rest.
        """
        answers = [self._cache.get(self.name, prompt) if self._cache is not None else None for prompt in prompts]
        missing = [i for i, answer in enumerate(answers) if answer is None]
        if missing:
            self._ask_all(prompts, missing, answers)
        return cast("list[Answer]", answers)

    def _ask_all(self, prompts: Sequence[Prompt], missing: Sequence[int], answers: list[Answer | None]) -> None:
        """Fills in ``answers[i]`` for i in ``missing``. Its threads are daemons, so an interrupt does not wait for them."""
        todo: queue.SimpleQueue[int] = queue.SimpleQueue()
        done: queue.SimpleQueue[tuple[int, Answer | BaseException]] = queue.SimpleQueue()
        stop = threading.Event()
        for i in missing:
            todo.put(i)

        def work() -> None:
            while not stop.is_set():
                try:
                    i = todo.get_nowait()
                except queue.Empty:
                    return
                try:
                    answer = self._ask(client, prompts[i], f"prompt {i + 1} of {len(prompts)}", stop)
                    if self._cache is not None:
                        self._cache.put(self.name, prompts[i], answer)
                    done.put((i, answer))
                except BaseException as error:  # raised again below, by the waiting thread
                    done.put((i, error))
                    stop.set()

        client = self._client()
        threads = [threading.Thread(target=work, daemon=True) for _ in range(min(self.concurrency, len(missing)))]
        try:
            for thread in threads:
                thread.start()
            bar = progress(total=len(prompts), initial=len(prompts) - len(missing), desc="answers", disable=len(missing) < MANY)
            with bar:
                for _ in missing:
                    i, outcome = done.get()
                    if isinstance(outcome, BaseException):
                        raise outcome
                    answers[i] = outcome
                    bar.update()
        except Exception:
            stop.set()
            for thread in threads:  # answers in flight are still cached
                thread.join()
            raise
        finally:
            stop.set()
            client.close()

    def _client(self) -> Any:
        try:
            return _openai().OpenAI(base_url=self.base_url, api_key=self._key(), timeout=self.timeout, max_retries=0)
        except (ImportError, ValueError) as error:  # of the HTTP library: a proxy that needs a package, or a scheme that it does not know
            variables = [name for kind in ("ALL", "HTTPS", "HTTP") for name in (f"{kind}_PROXY", f"{kind}_PROXY".lower())]
            given = [name for name in variables if os.environ.get(name)]
            if not given:
                raise
            named = next((name for name in given if not os.environ[name].startswith(("http://", "https://"))), given[0])
            reason = redact(" ".join(str(error).split()), os.environ[named])
            advice = "pip install 'httpx[socks]'" if isinstance(error, ImportError) else "correct it"
            raise ValueError(
                f"{named}: this proxy cannot be used ({reason}); {advice}, unset the variable, or name the endpoint's host in NO_PROXY"
            ) from None

    def _key(self) -> str:
        return clean_key(os.environ.get(self.api_key_env, ""), self.api_key_env) or "none"

    def _safe(self, text: str) -> str:
        """A server's words, in one line without the key."""
        key = self._key()
        return redact(" ".join(text.split()), *([key] if len(key) >= SHORTEST_KEY else []))

    def stream(self, prompt: Prompt, hear: Callable[[str], None]) -> Answer:
        """The answer to one prompt, with each new piece of its text given to ``hear``. It is not cached.

        Raises ReaderError as :meth:`answer` does, and when the connection is lost in the middle of the answer.
        """
        client = self._client()
        try:
            return self._ask(client, prompt, "the prompt", threading.Event(), partial(self._streamed, hear=hear))
        finally:
            client.close()

    def _ask(
        self,
        client: Any,
        prompt: Prompt,
        number: str,
        stop: threading.Event,
        request: Callable[[Any, Prompt], Answer] | None = None,
    ) -> Answer:
        for attempt in range(self.retries + 1):
            try:
                return (request or self._request)(client, prompt)
            except Failure as error:
                failure = error
            if failure.final or attempt == self.retries or failure.wait > LONGEST_WAIT:
                break
            if stop.wait(max(failure.wait, self.backoff * 2**attempt * random.uniform(0.5, 1.0))):
                break
        kept = "no answers were kept; set cache_dir to keep them" if self._cache is None else f"the answers are kept in {self._cache.path}"
        raise (RefusedAsTooLong if failure.too_long else ReaderError)(
            f"{self.base_url}: {number} was not answered by {self.model!r} in {attempt + 1} of at most {self.retries + 1} requests; "
            f"last failure: {failure.reason}. What to do: {failure.advice}. Then run again; {kept}"
        ) from failure

    def _request(self, client: Any, prompt: Prompt) -> Answer:
        """Sends one request, again without a field that the server refuses. Raises Failure."""
        renamed = dict(self._renamed)
        with self._failures():
            response = self._sent(client, prompt, renamed).http_response
        self._learn(renamed)
        with self._safe_failures():
            try:
                return parse_answer(parse_json(response.content))
            except ValueError as error:
                raise Failure(f"a response that is not an answer ({error}): {response.text[:SHOWN]!r}") from None

    def _streamed(self, client: Any, prompt: Prompt, hear: Callable[[str], None]) -> Answer:
        """As :meth:`_request`, in pieces. Once a piece was heard, asking again would not help."""
        renamed = dict(self._renamed)
        with self._failures():
            pieces = self._sent(client, prompt, renamed, stream=True, stream_options={"include_usage": True}).parse()
        self._learn(renamed)
        text = heard = ""
        finish, usage = None, None
        received = False
        try:
            with self._failures():
                for piece in pieces:
                    received = True
                    usage = piece.usage or usage
                    for choice in piece.choices[:1]:
                        text += choice.delta.content or ""
                        finish = choice.finish_reason or finish
                    shown = visible(text)
                    if len(shown) > len(heard):
                        hear(shown[len(heard) :])
                    heard = shown
        except Failure as failure:
            failure.final = failure.final or bool(heard)
            raise
        if not received:  # a server that does not stream
            answer = self._request(client, prompt)
            hear(answer.text)
            return answer
        choice = {"message": {"content": text}, "finish_reason": finish}
        with self._safe_failures():
            return parse_answer({"choices": [choice], "usage": None if usage is None else usage.model_dump()})

    @contextmanager
    def _failures(self) -> Iterator[None]:
        """Errors of the openai package in this block become Failure."""
        import httpx

        openai = _openai()
        try:
            yield
        except openai.APITimeoutError:
            raise Failure(
                f"no response within {self.timeout:g} s",
                advice="raise timeout (eval.reader_timeout), or lower concurrency (eval.reader_concurrency)",
            ) from None
        except openai.APIConnectionError as error:
            advice = "check that the server is running and that base_url is right"
            raise Failure(f"no connection: {self._safe(str(error.__cause__ or error))}", advice=advice) from None
        except openai.APIStatusError as error:
            raise self._refusal(error.response) from None
        except (openai.APIError, httpx.HTTPError, json.JSONDecodeError) as error:  # in the middle of a stream
            raise Failure(f"a stream that broke off: {self._safe(str(error))!r}") from None

    @contextmanager
    def _safe_failures(self) -> Iterator[None]:
        """Failures in this block quote the server without the key."""
        try:
            yield
        except Failure as failure:
            failure.reason = self._safe(failure.reason)
            raise failure from None

    def _sent(self, client: Any, prompt: Prompt, renamed: dict[str, str | None], **more: Any) -> Any:
        """The raw response to one prompt. Adds to ``renamed`` what the server refuses on the way; raises the openai package's errors."""
        while True:
            fields: dict[str, Any] = {"temperature": self.temperature, "max_tokens": self.max_new_tokens, **more}
            for old, new in renamed.items():
                value = fields.pop(old, None)
                if new is not None and value is not None:
                    fields[new] = value
            try:
                request = client.chat.completions.with_raw_response
                return request.create(model=self.model, messages=prompt.messages, **fields, extra_body=self.extra_body)
            except _openai().APIStatusError as error:
                refused = refused_field(error.response)
                if refused is None or refused in renamed:
                    raise
                renamed[refused] = REPLACED[refused]

    def _learn(self, renamed: dict[str, str | None]) -> None:
        """Remembers what the server refuses, for the next prompts, and says so once."""
        for old in renamed.keys() - self._renamed.keys():
            say(f"{self.base_url}: {self.model!r} refuses {old}; " + REFUSED[old].format(temperature=self.temperature))
        self._renamed = self._renamed | renamed

    def _refusal(self, response: Any) -> Failure:
        status = response.status_code
        reason = f"status {status}: {self._safe(response.text)[:SHOWN]!r}"
        if status in RETRIED or status >= 500:
            wait = retry_after(response.headers.get("retry-after"))
            if wait > LONGEST_WAIT:
                reason += f", and to be asked again in {wait:.0f} s"
            return Failure(reason, wait=wait, advice="read the server's log; lower concurrency if the server is overloaded")
        advice = ADVICE.get(status, "read the server's message").format(key=self.api_key_env)
        return Failure(reason, final=True, advice=advice, too_long=refused_as_too_long(response))


def _openai() -> Any:
    try:
        import openai
    except ImportError as error:
        raise ValueError("an OpenAI-compatible reader needs the openai package: pip install 'qrag-jax[reader]'") from error
    return openai
