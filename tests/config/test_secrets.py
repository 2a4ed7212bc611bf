"""Secrets are redacted in whatever is written, and settings that hold one are refused."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import pytest

from qrag_jax.config import EvalConfig, RunConfig
from qrag_jax.config.secrets import holds_credentials, redact, redact_words
from qrag_jax.rundir.log import say, write_manifest

SECRETS = [
    "http://bob:sesame@host/v1",
    "bob:sesame@host",
    "see https://sesame@host:80/x now",
    "http://host/v1?api_key=sesame",
    "http://host/v1?a=1&access_token=sesame&b=2",
    "https://blob/x?sig=sesame",
    "Authorization: Bearer sesame12345",
    "{'api_key': 'sesame'}",
    '{"x": 1, "client_secret": "sesame"}',
]
PLAIN = [
    *("qa1:40:700", "gs://bucket/run@main", "Q-RAG/x@main", "flax:folder@main", "hotpotqa:2+musique", "mail me@host", "monkey=5&donkey=3"),
    *("openai:http://localhost:8000/v1,model", "http://host/v1?api-version=2", "token 5 of 7", "12:30 x@y", "sk-learn is a library"),
]


@pytest.mark.parametrize("text", SECRETS)
def test_what_looks_like_a_secret_is_redacted(text: str) -> None:
    assert "sesame" not in redact(text)
    assert "***" in redact(text)


@pytest.mark.parametrize("text", PLAIN)
def test_other_texts_stay_as_they_are(text: str) -> None:
    assert redact(text) == text
    assert not holds_credentials(text)


def test_known_secrets_and_keys_of_services() -> None:
    assert redact("it was abcd, abcdef", "abcd", "abcdef", "") == "it was ***, ***"
    assert redact("sk-proj-0123456789abcdef0 and hf_0123456789abcdefghij") == "*** and ***"


def test_a_command_line() -> None:
    words = ["x", "--token", "sesame", "--api-key=sesame", "--eval.reader", "openai:http://a:sesame@h/v1,m", "--data.chunk-tokens", "5"]
    shown = redact_words(words)
    assert "sesame" not in " ".join(shown)
    assert shown[-2:] == ["--data.chunk-tokens", "5"]


def test_manifest_and_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["x", "--eval.reader", "openai:http://a:sesame@h/v1,m", "--token", "sesame"])
    write_manifest(tmp_path, 0, ["cpu"])
    say("http://a:sesame@h/v1 cannot be reached")
    assert "sesame" not in (tmp_path / "manifest.json").read_text() + capsys.readouterr().out


@pytest.mark.parametrize(
    "reader",
    ["openai:http://bob:sesame@h/v1,m", "openai:https://h/v1?api_key=sesame,m", "openai:http://bob:sesame@h/v1", "openai:bob:sesame@h,m"],
)
def test_a_reader_with_a_secret_is_refused_with_the_way_to_do_it(reader: str) -> None:
    with pytest.raises(ValueError, match=r"eval\.reader = ") as caught:
        EvalConfig(reader=reader)
    assert "sesame" not in str(caught.value)


@pytest.mark.parametrize(("section", "name"), [("data", "data_dir"), ("model", "embedder"), ("train", "init_from")])
def test_no_setting_holds_a_secret(section: str, name: str) -> None:
    tree = json.loads(RunConfig().to_json())
    tree[section][name] = "https://bob:sesame@host/x"
    with pytest.raises(ValueError, match=rf"{section}\.{name} = .*OPENAI_API_KEY") as caught:
        RunConfig.from_json(json.dumps(tree))
    assert "sesame" not in str(caught.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e999])
def test_settings_are_finite(value: float) -> None:
    """Every number of a configuration, as JSON has it and as Python gives it."""
    config = RunConfig()
    for part in dataclasses.fields(config):
        section = getattr(config, part.name)
        for name in [field.name for field in dataclasses.fields(section) if type(getattr(section, field.name)) is float]:
            with pytest.raises(ValueError, match=rf"{part.name}\.{name} = "):
                dataclasses.replace(config, **{part.name: dataclasses.replace(section, **{name: value})})
