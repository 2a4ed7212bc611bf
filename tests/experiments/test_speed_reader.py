"""experiments.speed.reader on a tiny chat model: both sides write the same text, and every figure follows from the seconds."""

from __future__ import annotations

import json
import math

import pytest

from experiments.speed.reader import main
from tests.support.chat import write_chat_model


@pytest.mark.slow
def test_both_sides_write_the_same(tmp_path):
    pytest.importorskip("torch")
    folder = write_chat_model(tmp_path / "model")
    sizes = ("--batch", "2", "--prompt-tokens", "6", "--new-tokens", "4", "--repeats", "1")
    assert main([str(folder), "--run-dir", str(tmp_path / "run"), *sizes]) == 0
    found = json.loads((tmp_path / "run" / "speed_reader.json").read_text())
    assert found["model"] == "model"
    assert found["same_tokens"] == 1.0
    seconds = {name: times["min_s"] for name, times in found["seconds"].items()}
    assert math.isclose(found["tokens_per_s_with_prompt"]["ours"], 2 * 4 / seconds["ours"])
    assert math.isclose(found["ratio_with_prompt"], seconds["theirs"] / seconds["ours"])


@pytest.mark.parametrize(
    ("words", "message"), [(["--batch", "0"], "batch = 0"), (["--new-tokens", "1"], "new-tokens = 1"), ([], "no such folder or file")]
)
def test_bad_words_are_refused_in_one_line(words, message, tmp_path, capsys):
    assert main(["/no/model", "--run-dir", str(tmp_path / "run"), *words]) == 64
    assert message in capsys.readouterr().err
