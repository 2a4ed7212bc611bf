"""Endpoints as they are: their finish reasons, forms of content, refused fields and proxies; and the key, which no message shows."""

from __future__ import annotations

import json
import logging
import traceback
from pathlib import Path
from typing import Any

import pytest

from qrag_jax.reader.openai_reader import OpenAIReader
from qrag_jax.reader.protocol import Answer, Prompt, ReaderError
from tests.support.http import StubServer, completion, stub_server

pytest.importorskip("openai", reason="needs the reader extra")
KEY = "sesame-4711"


@pytest.fixture(autouse=True)
def direct(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ALL_PROXY", "HTTPS_PROXY", "HTTP_PROXY", "all_proxy", "https_proxy", "http_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


def reader(server: StubServer | str, **options: Any) -> OpenAIReader:
    url = server if isinstance(server, str) else server.url
    return OpenAIReader(url, "stub", **{"backoff": 0.001, "timeout": 5.0, "retries": 1} | options)


def ask(body: Any, prompts: int = 1, **options: Any) -> tuple[list[Answer], StubServer]:
    with stub_server(lambda user, n: body) as server:
        return reader(server, **options).answer([Prompt(None, f"q{i}") for i in range(prompts)]), server


@pytest.mark.parametrize(
    ("finish", "ours"), [("eos", "stop"), ("eos_token", "stop"), (None, "stop"), ("stop", "stop"), ("length", "length")], ids=str
)
def test_finish_reasons(finish: str | None, ours: str) -> None:
    assert ask(completion("garden", finish))[0] == [Answer("garden", None, None, ours)]


def test_no_finish_reason_at_all() -> None:
    body = completion("garden")
    del body["choices"][0]["finish_reason"]
    assert ask(body)[0][0].text == "garden"


@pytest.mark.parametrize(
    "content",
    [
        [{"type": "text", "text": "the "}, {"type": "text", "text": "garden"}],
        ["the ", "garden"],
        [{"type": "thinking", "thinking": "kitchen?"}, {"type": "output_text", "text": "the garden"}],
    ],
    ids=["parts", "strings", "with a thought"],
)
def test_content_as_a_list_of_parts(content: Any) -> None:
    assert ask(completion(content))[0][0].text == "the garden"


@pytest.mark.parametrize("content", [[], [{"type": "image_url"}], [None], {"text": "x"}, 5], ids=str)
def test_content_without_text_is_never_an_answer(content: Any) -> None:
    with pytest.raises(ReaderError, match="a response without an answer"):
        ask(completion(content))


def test_a_content_filter_is_final() -> None:
    with stub_server(lambda user, n: completion("", "content_filter")) as server:
        with pytest.raises(ReaderError, match="in 1 of at most 4 requests; last failure: the server's content filter stopped the answer"):
            reader(server, retries=3).answer([Prompt(None, "q")])
        assert len(server.requests) == 1


def refusing(*refused: tuple[str, str], param: bool = True) -> Any:
    """A server's script that refuses requests with a field: (field, message)."""

    def script(user: str, n: int) -> Any:
        request = server["it"].requests[-1]
        for name, words in refused:
            if name in request:
                error = {"message": words, "type": "invalid_request_error"} | ({"param": name} if param else {})
                return 400, {}, json.dumps({"error": error}).encode()
        return completion("garden")

    server: dict[str, StubServer] = {}
    script.server = server  # type: ignore[attr-defined]
    return script


MAX_TOKENS = ("max_tokens", "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead.")
TEMPERATURE = ("temperature", "Unsupported value: 'temperature' does not support 0.0 with this model. Only the default (1) is supported.")


@pytest.mark.parametrize("param", [True, False])
@pytest.mark.parametrize("refused", [(MAX_TOKENS,), (TEMPERATURE,), (MAX_TOKENS, TEMPERATURE)], ids=["max_tokens", "temperature", "both"])
def test_a_refused_field_is_learnt_once(refused: Any, param: bool, capsys: pytest.CaptureFixture[str]) -> None:
    script = refusing(*refused, param=param)
    with stub_server(script) as server:
        script.server["it"] = server
        ours = reader(server, concurrency=1, max_new_tokens=9)
        assert [answer.text for answer in ours.answer([Prompt(None, f"q{i}") for i in range(3)])] == ["garden"] * 3
        ours.answer([Prompt(None, "later")])
        names = {name for name, _ in refused}
        assert len(server.requests) == 4 + len(refused)
        assert not names & set(server.requests[-1])
        assert server.requests[-1].get("max_completion_tokens") == (9 if "max_tokens" in names else None)
    said = capsys.readouterr().out
    assert all(said.count(f"refuses {name};") == 1 for name in names)


def test_a_prompt_that_is_too_long_is_no_refused_field() -> None:
    words = "This model's maximum context length is 10 tokens; reduce the prompt or max_tokens."
    script = refusing(("max_tokens", words), param=False)
    with stub_server(script) as server:
        script.server["it"] = server
        with pytest.raises(ReaderError, match=r"status 400.*maximum context length"):
            reader(server).answer([Prompt(None, "q")])
        assert len(server.requests) == 1


@pytest.mark.parametrize(("value", "advice"), [("socks5://u:pw@127.0.0.1:1", "pip install 'httpx"), ("gopher://127.0.0.1:1", "correct it")])
def test_a_proxy_that_cannot_be_used_is_named(value: str, advice: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", value)
    if advice.startswith("pip"):
        monkeypatch.setitem(__import__("sys").modules, "socksio", None)
    with pytest.raises(ValueError, match="^ALL_PROXY: this proxy cannot be used .*" + advice) as caught:
        reader("http://host.invalid/v1").answer([Prompt(None, "q")])
    assert "pw" not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", [f"{KEY}\n", f" {KEY}\r\n", f"\t{KEY} "], ids=repr)
def test_white_space_around_a_key_is_left_out(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", key)
    assert ask(completion("garden"))[1].requests[0]["key"] == f"Bearer {KEY}"


@pytest.mark.parametrize("key", [f"{KEY}\nX: y", f"{KEY}\x00", f"{KEY}\x7f", f"{KEY}é", f"{KEY} {KEY}", f"{KEY}\u2028x"], ids=ascii)
def test_a_key_that_no_header_may_hold_is_refused_by_its_variable(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.environ", {"MY_KEY": key})  # a real environment holds no NUL
    with pytest.raises(ValueError, match=r"^MY_KEY: the key holds a ") as caught:
        reader("http://127.0.0.1:9/v1", api_key_env="MY_KEY")
    assert KEY not in str(caught.value)


@pytest.mark.parametrize(
    "body", [(401, {}, f"bad key {KEY}".encode()), f"<p>{KEY}</p>".encode(), completion(None) | {"k": KEY}, {"error": KEY}], ids=repr
)
def test_a_key_that_the_server_repeats_is_in_no_message_and_no_traceback(body: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG), pytest.raises(ReaderError) as caught:
        ask(body, retries=0)
    assert KEY not in "".join(traceback.format_exception(caught.value))
    assert KEY not in caplog.text


@pytest.mark.parametrize(
    "url", ["http://bob:sesame-1@h/v1", "https://sesame-1@h/v1", "http://h/v1?api_key=sesame-1", "http://h/v1?x=1&token=sesame-1"]
)
def test_an_address_with_a_secret_is_refused_with_the_way_to_do_it(url: str) -> None:
    with pytest.raises(ValueError, match="in the environment variable OPENAI_API_KEY") as caught:
        reader(url)
    assert "sesame" not in str(caught.value)


def test_the_cache_is_keyed_by_address_too(tmp_path: Path) -> None:
    for text in ("one", "two"):
        assert ask(completion(text), cache_dir=tmp_path)[0][0].text == text
