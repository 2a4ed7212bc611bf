"""The file of responses: what was written half is skipped, what is wrong is refused, and nothing is taken for something else."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from qrag_jax.reader.cache import FILE_NAME, ResponseCache, response_key
from qrag_jax.reader.protocol import Answer, Prompt


def test_half_written_lines_are_skipped_with_a_note(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / FILE_NAME
    first, second, third = (Prompt("Be brief.", f"q{i}") for i in range(3))
    cache = ResponseCache(tmp_path)
    cache.put("r", first, Answer("one", 1, None, "stop"))
    whole = path.read_bytes()
    cache.put("r", second, Answer("two\nlines \ud800", 1, 2, "length"))
    path.write_bytes(path.read_bytes()[:-25])  # killed while writing the second

    again = ResponseCache(tmp_path)
    assert "skipped incomplete line 2;" in capsys.readouterr().out
    assert again.get("r", first) == Answer("one", 1, None, "stop")
    assert again.get("r", second) is None
    again.put("r", third, Answer("three", 1, 1, "stop"))  # begins a line of its own
    again.put("r", second, Answer("two\nlines \ud800", 1, 2, "length"))

    last = ResponseCache(tmp_path)
    assert [last.get("r", prompt) for prompt in (first, second, third)] == [
        Answer("one", 1, None, "stop"),
        Answer("two\nlines \ud800", 1, 2, "length"),
        Answer("three", 1, 1, "stop"),
    ]
    assert path.read_bytes().startswith(whole)


def test_cache_written_by_many_threads(tmp_path: Path) -> None:
    caches = [ResponseCache(tmp_path), ResponseCache(tmp_path)]  # as two processes would
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: caches[i % 2].put("r", Prompt(None, str(i)), Answer(f"{i}" * 50, i, i, "stop")), range(200)))
    whole = ResponseCache(tmp_path)
    assert [whole.get("r", Prompt(None, str(i))) for i in range(200)] == [Answer(f"{i}" * 50, i, i, "stop") for i in range(200)]


def test_keys_tell_readers_and_prompts_apart() -> None:
    cases = [("r", None, "u"), ("s", None, "u"), ("r", "", "u"), ("r", "u", "")]
    keys = {response_key(name, Prompt(system, user)) for name, system, user in cases}
    assert len(keys) == 4
    assert response_key("r", Prompt(None, "u", (("a", "b"),))) not in keys
    # printf '["r", [{"role": "user", "content": "u"}]]' | sha256sum
    assert response_key("r", Prompt(None, "u")) == "003246bb3ac1d2f9aa8cee4a69bceb9f9c5fe6decccb37db5591f784b8e98725"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "line 1: version = 2"),
        ({"key": 5}, "line 1: key = 5"),
        ({"text": None}, "text = None: must be a string"),
        ({"prompt_tokens": -1}, "prompt_tokens = -1: must be a whole number or null"),
        ({"finish": "done"}, "finish = 'done': must be stop or length"),
        ("[]", "line 1: must be a JSON object"),
    ],
)
def test_a_whole_line_that_is_no_response_is_refused(tmp_path: Path, change: Any, message: str) -> None:
    ResponseCache(tmp_path).put("r", Prompt(None, "u"), Answer("one", 1, 2, "stop"))
    path = tmp_path / FILE_NAME
    path.write_text(change if isinstance(change, str) else json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=message):
        ResponseCache(tmp_path)
