"""The endpoint reader with a server that fails as told: nothing is lost, nothing is scored as empty, requests are bounded."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import threading
import time
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest

from qrag_jax.reader.cache import ResponseCache
from qrag_jax.reader.openai_reader import LONGEST_WAIT, OpenAIReader
from qrag_jax.reader.protocol import Answer, Prompt, ReaderError
from qrag_jax.reader.responses import retry_after
from tests.support.http import StubServer, completion, stub_server

pytest.importorskip("openai", reason="needs the reader extra")


@pytest.fixture(autouse=True)
def direct(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def reader(server: StubServer | str, **options: Any) -> OpenAIReader:
    url = server if isinstance(server, str) else server.url
    return OpenAIReader(url, "stub", **{"backoff": 0.001, "timeout": 5.0} | options)


def prompts(n: int) -> list[Prompt]:
    return [Prompt("Be brief.", f"q{i}") for i in range(n)]


def echo(user: str, n: int) -> dict[str, Any]:
    return completion(f"answer to {user}", usage={"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10})


def echoed(n: int) -> list[Answer]:
    return [Answer(f"answer to q{i}", 7, 3, "stop") for i in range(n)]


def test_order_usage_and_what_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "sesame")
    with stub_server(echo) as server:
        ours = reader(server, api_key_env="MY_KEY", max_new_tokens=9, extra_body={"top_k": 1})
        assert ours.answer(prompts(30)) == echoed(30)
        assert ours.answer([]) == []
    assert sorted(server.users()) == sorted(f"q{i}" for i in range(30))
    sent = next(request for request in server.requests if request["messages"][-1]["content"] == "q4")
    assert sent == {
        "path": "/v1/chat/completions",
        "key": "Bearer sesame",
        "model": "stub",
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "q4"}],
        "temperature": 0.0,
        "max_tokens": 9,
        "top_k": 1,
    }


def test_without_a_system_message_and_without_usage() -> None:
    with stub_server(lambda user, n: completion("x" * 40, "length")) as server:
        assert reader(server).answer([Prompt(None, "q")]) == [Answer("x" * 40, None, None, "length")]
    assert server.requests[0]["messages"] == [{"role": "user", "content": "q"}]


@pytest.mark.parametrize(
    "fault",
    [
        500,
        503,
        408,
        409,
        429,
        "cut",
        b'{"choices": [{"mess',
        b"<html>busy</html>",
        b"[]",
        b"null",
        completion(None),
        completion("", None),
        completion("x", "tool_calls"),
        completion("x") | {"choices": []},
        {"error": {"message": "overloaded"}},
    ],
    ids=str,
)
def test_a_fault_that_passes_is_asked_again(fault: Any) -> None:
    with stub_server(lambda user, n: fault if n < 2 else echo(user, n)) as server:
        assert reader(server).answer(prompts(3)) == echoed(3)
    assert len(server.requests) == 9


@pytest.mark.parametrize("fault", [500, b'{"choices": [{"mess', completion(None), completion("x") | {"choices": []}], ids=str)
def test_a_fault_that_stays_ends_in_an_error_after_bounded_requests(fault: Any) -> None:
    with stub_server(lambda user, n: fault) as server:
        with pytest.raises(ReaderError, match=r"/v1: prompt \d of 5 was not answered .* 4 of at most 4 requests; last failure: ") as caught:
            reader(server, retries=3, concurrency=2).answer(prompts(5))
        assert "set cache_dir to keep them" in str(caught.value)
    assert 4 <= len(server.requests) <= 2 * 4


def test_a_hang_is_asked_again_and_then_an_error() -> None:
    with stub_server(lambda user, n: "hang" if user == "q1" and n == 0 else echo(user, n)) as server:
        assert reader(server, timeout=0.3).answer(prompts(3)) == echoed(3)
    late = r"in 2 of at most 2 requests; last failure: no response within 0\.1 s"
    with stub_server(lambda user, n: "hang") as server, pytest.raises(ReaderError, match=late):
        reader(server, timeout=0.1, retries=1).answer(prompts(1))
    assert len(server.requests) == 2


def test_connection_refused() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    with pytest.raises(ReaderError, match=r"prompt 1 of 1 .*no connection: .*refused.*check that the server is running"):
        reader(url, retries=1).answer(prompts(1))


REFUSALS = [(400, "context"), (401, "OPENAI_API_KEY"), (403, "may use"), (404, "/v1"), (422, "server's message")]


@pytest.mark.parametrize(("status", "advice"), REFUSALS)
def test_a_refusal_fails_at_once_with_status_and_body(status: int, advice: str) -> None:
    refused = rf"in 1 of at most 6 requests; last failure: status {status}: .*as ordered.*{advice}"
    with stub_server(lambda user, n: status) as server, pytest.raises(ReaderError, match=refused):
        reader(server).answer(prompts(1))
    assert len(server.requests) == 1


class Clock(threading.Event):
    """A stop event that never happens; it records how long each wait for it was."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[float] = []

    def wait(self, timeout: float | None = None) -> bool:
        self.waits.append(timeout or 0.0)
        return False


def test_waits_double_with_jitter_and_respectretry_after() -> None:
    script = [500, 500, (429, {"Retry-After": "7"}), 500]
    with stub_server(lambda user, n: script[n] if n < len(script) else echo(user, n)) as server:
        ours, clock = reader(server, backoff=0.5), Clock()
        client = ours._client()
        assert [ours._ask(client, prompts(1)[0], "prompt 1 of 1", clock)] == echoed(1)
        client.close()
    assert len(clock.waits) == 4
    assert clock.waits[2] == 7.0  # own wait would be 1 to 2 s
    for n in (0, 1, 3):
        assert 0.25 * 2**n <= clock.waits[n] <= 0.5 * 2**n


def test_a_server_that_wants_too_long_a_wait_is_given_up() -> None:
    closed = (503, {"Retry-After": str(LONGEST_WAIT + 1)})
    with stub_server(lambda user, n: closed) as server, pytest.raises(ReaderError, match="asked again in 301 s"):
        reader(server).answer(prompts(1))
    assert len(server.requests) == 1


def test_retry_after_as_number_date_or_nonsense() -> None:
    assert retry_after("2.5") == 2.5
    assert retry_after("-3") == retry_after("soon") == retry_after(None) == retry_after("nan") == 0.0
    assert 100 < retry_after(formatdate(time.time() + 120, usegmt=True)) <= 120
    assert retry_after(formatdate(time.time() - 120, usegmt=True)) == 0.0


def test_thoughts_are_no_answer() -> None:
    texts = {"q0": completion("<think>kitchen? no.</think>\n\ngarden"), "q1": completion("no thought\n\n", usage={"prompt_tokens": 4})}
    with stub_server(lambda user, n: texts[user]) as server:
        assert reader(server).answer(prompts(2)) == [Answer("garden", None, None, "stop"), Answer("no thought\n\n", 4, None, "stop")]
    for unfinished in (completion("<think>the kitchen or", "length"), completion(None, "length"), completion("", "length")):
        refused = pytest.raises(ReaderError, match=r"all its tokens on thinking.*raise max_new_tokens")
        with stub_server(lambda user, n, body=unfinished: body) as server, refused:
            reader(server).answer(prompts(1))
        assert len(server.requests) == 1


@pytest.mark.parametrize("concurrency", [1, 3])
def test_no_more_requests_in_flight_than_allowed(concurrency: int) -> None:
    meet = threading.Barrier(concurrency)

    def script(user: str, n: int) -> Any:
        meet.wait(timeout=4)  # breaks unless `concurrency` requests are there at once
        time.sleep(0.01)
        return echo(user, n)

    with stub_server(script) as server:
        assert reader(server, concurrency=concurrency).answer(prompts(9)) == echoed(9)
    assert server.most_in_flight == concurrency


def test_an_outage_loses_nothing_and_the_second_call_asks_only_the_rest(tmp_path: Path) -> None:
    out = [True]
    with stub_server(lambda user, n: 500 if out[0] and user == "q6" else echo(user, n)) as server:
        with pytest.raises(ReaderError, match=rf"prompt 7 of 9 .*kept in {tmp_path}"):
            reader(server, concurrency=1, retries=1, cache_dir=tmp_path).answer(prompts(9))
        assert server.users() == [f"q{i}" for i in range(6)] + ["q6"] * 2
        out[0] = False
        server.requests.clear()
        ours = reader(server, cache_dir=tmp_path)
        assert ours.answer(prompts(9)) == echoed(9)
        assert sorted(server.users()) == ["q6", "q7", "q8"]
        assert ours.answer(prompts(9)) == reader(server, cache_dir=tmp_path).answer(prompts(9)) == echoed(9)
        assert len(server.requests) == 3
        # Another setting is another reader.
        reader(server, cache_dir=tmp_path, max_new_tokens=65).answer(prompts(1))
        assert len(server.requests) == 4


def test_what_is_in_flight_when_another_prompt_fails_is_kept(tmp_path: Path) -> None:
    failed = threading.Event()

    def script(user: str, n: int) -> Any:
        if user == "q1":
            failed.set()
            return 400
        failed.wait(4)
        time.sleep(0.1)
        return echo(user, n)

    with stub_server(script) as server, pytest.raises(ReaderError, match="prompt 2 of 2"):
        reader(server, concurrency=2, cache_dir=tmp_path).answer(prompts(2))
    assert len(ResponseCache(tmp_path)) == 1


def test_sampled_answers_are_not_cached(tmp_path: Path) -> None:
    with stub_server(echo) as server:
        ours = reader(server, temperature=0.7, cache_dir=tmp_path / "cache")
        ours.answer(prompts(1))
        ours.answer(prompts(1))
    assert len(server.requests) == 2
    assert not (tmp_path / "cache").exists()


INTERRUPTED = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # it is ignored in what a shell starts in the background
from qrag_jax.reader.openai_reader import OpenAIReader
from qrag_jax.reader.protocol import Prompt

# Had it to wait for its requests, their time-outs would end in a ReaderError a minute later.
OpenAIReader(sys.argv[1], "stub", timeout=60.0, retries=0, concurrency=2).answer([Prompt(None, f"q{i}") for i in range(5)])
"""


@pytest.mark.processes
def test_an_interrupt_waits_for_no_request() -> None:
    with stub_server(lambda user, n: "hang") as server:
        child = subprocess.Popen([sys.executable, "-c", INTERRUPTED, server.url], stderr=subprocess.PIPE, text=True)
        while len(server.requests) < 2 and child.poll() is None:
            time.sleep(0.01)
        time.sleep(1)  # until it waits for them
        try:
            child.send_signal(signal.SIGINT)
            said = child.communicate(timeout=50)[1]
        finally:
            child.kill()
            child.communicate()
        assert len(server.requests) == 2
    assert said.rstrip().endswith("KeyboardInterrupt")
    assert "ReaderError" not in said


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"base_url": "localhost:8000"}, "base_url = 'localhost:8000'"),
        ({"model": ""}, "model = ''"),
        ({"timeout": 0.0}, "timeout = 0"),
        ({"retries": -1}, "retries = -1"),
        ({"concurrency": 0}, "concurrency = 0"),
        ({"max_new_tokens": 0}, "max_new_tokens = 0"),
        ({"temperature": -0.1}, "temperature = -0.1"),
    ],
)
def test_bad_settings(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        OpenAIReader(**{"base_url": "http://127.0.0.1:1/v1", "model": "stub"} | options)
