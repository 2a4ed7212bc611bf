"""A reader behind an OpenAI-compatible endpoint: OpenAI itself, vLLM, llama.cpp's server, Ollama, and others."""

from __future__ import annotations

import email.utils
import json
import math
import os
import queue
import random
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from qrag_jax.reader.cache import ResponseCache
from qrag_jax.reader.protocol import Answer, Prompt, ReaderError
from qrag_jax.rundir.log import progress

RETRIED = frozenset({408, 409, 429})
"""Statuses after which a prompt is asked again, as after all statuses from 500 on."""
LONGEST_WAIT = 300.0
"""Seconds. The reader gives up if a server asks for a longer wait (Retry-After)."""
MANY = 20
"""From this number of unanswered prompts on, a progress bar is shown."""
SHOWN = 500
"""Number of characters of a server's message that an error quotes."""

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
    0 only; the same model name must then always mean the same model. ``extra_body``: further fields of the request, such as
    ``{"chat_template_kwargs": {"enable_thinking": False}}``. The key is optional, since local servers often need none.

    If a model thinks in ``<think>`` tags, its answer is the text after them. Raises ValueError on bad settings and without the openai
    package.
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
                raise ValueError(f"{name} = {value!r}: must be {allowed}")
        _openai()
        self.base_url, self.model, self.api_key_env = base_url, model, api_key_env
        self.timeout, self.retries, self.backoff, self.concurrency = timeout, retries, backoff, concurrency
        self.max_new_tokens, self.temperature, self.extra_body = max_new_tokens, temperature, dict(extra_body or {})
        self.name = f"openai:{model} temperature={temperature:g} max_new_tokens={max_new_tokens}"
        if self.extra_body:
            self.name += f" {json.dumps(self.extra_body, sort_keys=True)}"
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
        key = os.environ.get(self.api_key_env) or "none"
        return _openai().OpenAI(base_url=self.base_url, api_key=key, timeout=self.timeout, max_retries=0)

    def _ask(self, client: Any, prompt: Prompt, number: str, stop: threading.Event) -> Answer:
        for attempt in range(self.retries + 1):
            try:
                return self._request(client, prompt)
            except _Failure as error:
                failure = error
            if failure.final or attempt == self.retries or failure.wait > LONGEST_WAIT:
                break
            if stop.wait(max(failure.wait, self.backoff * 2**attempt * random.uniform(0.5, 1.0))):
                break
        kept = "no answers were kept; set cache_dir to keep them" if self._cache is None else f"the answers are kept in {self._cache.path}"
        raise ReaderError(
            f"{self.base_url}: {number} was not answered by {self.model!r} in {attempt + 1} of at most {self.retries + 1} requests; "
            f"last failure: {failure.reason}. What to do: {failure.advice}. Then run again; {kept}"
        ) from failure

    def _request(self, client: Any, prompt: Prompt) -> Answer:
        """Sends one request. Raises _Failure."""
        openai = _openai()
        try:
            response = client.chat.completions.with_raw_response.create(
                model=self.model,
                messages=prompt.messages,
                temperature=self.temperature,
                max_tokens=self.max_new_tokens,
                extra_body=self.extra_body,
            ).http_response
        except openai.APITimeoutError:
            raise _Failure(
                f"no response within {self.timeout:g} s",
                advice="raise timeout (eval.reader_timeout), or lower concurrency (eval.reader_concurrency)",
            ) from None
        except openai.APIConnectionError as error:
            advice = "check that the server is running and that base_url is right"
            raise _Failure(f"no connection: {error.__cause__ or error}", advice=advice) from error
        except openai.APIStatusError as error:
            raise self._refusal(error.response) from error
        try:
            return _parse(json.loads(response.content))
        except ValueError as error:
            raise _Failure(f"a response that is not JSON ({error}): {response.text[:SHOWN]!r}") from error

    def _refusal(self, response: Any) -> _Failure:
        status = response.status_code
        reason = f"status {status}: {response.text[:SHOWN]!r}"
        if status in RETRIED or status >= 500:
            wait = _retry_after(response.headers.get("retry-after"))
            if wait > LONGEST_WAIT:
                reason += f", and to be asked again in {wait:.0f} s"
            return _Failure(reason, wait=wait, advice="read the server's log; lower concurrency if the server is overloaded")
        return _Failure(reason, final=True, advice=ADVICE.get(status, "read the server's message").format(key=self.api_key_env))


class _Failure(Exception):
    """A request without an answer. ``final``: asking again would not help. ``wait``: seconds that the server asked to wait."""

    def __init__(self, reason: str, *, final: bool = False, wait: float = 0.0, advice: str = "read the server's log") -> None:
        super().__init__(reason)
        self.reason, self.final, self.wait, self.advice = reason, final, wait, advice


def _parse(body: Any) -> Answer:
    """The answer of a chat completion. An empty text is an answer if the model finished; a missing text never is."""
    try:
        choice = body["choices"][0]
        text, finish = choice["message"]["content"], choice["finish_reason"]
    except (KeyError, IndexError, TypeError):
        raise _Failure(f"a response without an answer: {json.dumps(body)[:SHOWN]}") from None
    if not isinstance(text, str | None) or finish not in ("stop", "length"):
        raise _Failure(f"a response without an answer: content = {text!r}, finish_reason = {finish!r}")
    thoughts, closed, rest = (text or "").partition("</think>")
    if closed:
        text = rest.lstrip()
    if finish == "length" and (not text or (not closed and thoughts.lstrip().startswith("<think>"))):
        raise _Failure(
            "the model spent all its tokens on thinking", final=True, advice="raise max_new_tokens, or turn thinking off (extra_body)"
        )
    if text is None:
        raise _Failure("a response without an answer: content = null")
    return Answer(text, _tokens(body, "prompt_tokens"), _tokens(body, "completion_tokens"), finish)


def _tokens(body: dict[str, Any], name: str) -> int | None:
    """A token count from the response's usage; None if the server gives none."""
    usage = body.get("usage")
    count = usage.get(name) if isinstance(usage, dict) else None
    return count if type(count) is int and count >= 0 else None


def _retry_after(value: str | None) -> float:
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


def _openai() -> Any:
    try:
        import openai
    except ImportError as error:
        raise ValueError("an OpenAI-compatible reader needs the openai package: pip install 'qrag-jax[reader]'") from error
    return openai
