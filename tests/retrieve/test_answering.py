"""Answers with citations: what the reader is given, what is cited, when it is not asked; the command, and its JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from copy import copy
from pathlib import Path

import pytest

from qrag_jax import Index, Retriever, Text
from qrag_jax.__main__ import main
from qrag_jax.export.refusal import Refusal
from qrag_jax.reader.citations import NOT_FOUND
from qrag_jax.reader.protocol import Answer, Prompt, PromptTooLong
from qrag_jax.retrieve.answering import CitedAnswer
from qrag_jax.rundir.log import say
from tests.support.http import completion, stub_server
from tests.support.index import small_retriever, write_small_export
from tests.support.sse import streamed

TEXTS = [
    Text("Mary went to the garden.", "a.pdf", {"page": 3}),
    Text("John slept in the office.", "b.html", {"heading": "Rest"}),
    Text("Sandra took the milk there.", "c.txt"),
]
QUESTION = "Where is Mary?"


class Scripted:
    """Answers ``text``; has room for ``room`` passages."""

    name = "scripted"

    def __init__(self, text: str, room: int = 9) -> None:
        self.text, self.room = text, room
        self.prompts: list[Prompt] = []

    def answer(self, prompts: Sequence[Prompt]) -> list[Answer]:
        self.prompts += prompts
        if prompts[0].user.count("\n> ") > self.room:
            raise PromptTooLong("the prompt is too long")
        return [Answer(self.text, 10, 2, "stop")]


@pytest.fixture(scope="module")
def retriever() -> Retriever:
    return small_retriever()


@pytest.fixture(scope="module")
def index(retriever: Retriever, tmp_path_factory: pytest.TempPathFactory) -> Index:
    return Index.build(retriever, TEXTS, tmp_path_factory.mktemp("answering") / "index")


def answered(retriever: Retriever, index: Index, reader: Scripted, **options: object) -> CitedAnswer:
    return retriever.answer(QUESTION, index, reader=reader, **{"budget": 3} | options)  # type: ignore[arg-type]


def test_an_answer_has_its_citations(retriever: Retriever, index: Index) -> None:
    reader, heard = Scripted("In the garden [1][8]."), []
    found = answered(retriever, index, reader, hear=heard.append)
    assert (found.text, "".join(heard), found.found, found.judge, found.removed) == (*["In the garden [1]."] * 2, True, None, (8,))
    assert [(one.number, one.place) for one in found.citations] == [(1, "a.pdf, page 3")]
    assert [(one.number, one.place) for one in found.also_read] == [(2, "b.html, heading Rest"), (3, "c.txt:0-27")]
    assert (found.prompt_tokens, found.completion_tokens, found.mode, len(found.steps)) == (10, 2, "multi", 3)
    assert [line for line in reader.prompts[0].user.splitlines() if line.startswith("[")] == [
        "[1] a.pdf, page 3",
        "[2] b.html, heading Rest",
        "[3] c.txt:0-27",
    ]


def test_the_stop_rule_answers_without_the_reader(retriever: Retriever, index: Index) -> None:
    reader = Scripted("In the garden [1].")
    found = answered(retriever, index, reader, least_q=1e6)
    assert (found.text, found.found, found.judge, reader.prompts) == (NOT_FOUND, False, "stop rule", [])
    assert answered(retriever, index, reader, least_q=-1e6).found
    found = retriever.answer("zebra", index, reader=reader, mode="bm25")
    assert (found.text, found.judge) == (NOT_FOUND, "search")
    for options in ({"mode": "single", "least_q": 0.5}, {"least_q": float("nan")}):
        with pytest.raises(ValueError, match="least_q = "):
            answered(retriever, index, reader, **options)


def test_the_calibrated_limit_decides_unless_another_is_given(retriever: Retriever, index: Index) -> None:
    best = max(pick.q for pick in retriever.search(QUESTION, index, 3))

    def judge(threshold: float, least: float, **options: float) -> str | None:
        found = copy(retriever)
        found.threshold, found.refusal = threshold, Refusal(least, 0.0, 1.0, 10, 60)
        assert found.fits([step.pick for step in found.stream(QUESTION, index, 3)]) == (least < best)
        return answered(found, index, Scripted("In the garden [1]."), **options).judge

    assert judge(best - 1, best + 1) == "stop rule"
    assert judge(best + 1, best - 1) is None
    assert judge(best - 1, best + 1, least_q=best - 1) is None


def test_the_reader_may_say_so_too(retriever: Retriever, index: Index) -> None:
    found = answered(retriever, index, Scripted("Not in the documents."))
    assert (found.found, found.judge, len(found.also_read)) == (False, "reader", 3)
    assert answered(retriever, index, Scripted("The year is not in the documents, the place is [1].")).found


def test_what_has_no_room_is_left_out_last_picks_first(retriever: Retriever, index: Index) -> None:
    found = answered(retriever, index, Scripted("Yes [1].", room=2))
    assert [pick.step for pick in found.left_out] == [2]
    assert len(found.citations) + len(found.also_read) == 2
    with pytest.raises(ValueError, match="not even one passage has room"):
        answered(retriever, index, Scripted("Yes [1].", room=0))


def test_the_command_answers_on_a_terminal_in_a_file_and_as_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    write_small_export(tmp_path / "run/export")
    (tmp_path / "a.txt").write_text("Mary went to the garden. John slept in the office.")
    index = str(tmp_path / "index")
    assert main(["index", "build", str(tmp_path / "a.txt"), index, "--retriever", str(tmp_path / "run")]) == 0
    usage = {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9}
    with stub_server(lambda user, n: streamed("In the \x1b[2Jgarden ", "[", "1][5].", usage=usage)) as server:
        words = ["ask", index, QUESTION, "--budget", "2", "--reader", f"openai:{server.url},stub"]
        capsys.readouterr()
        monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
        assert main(words) == 0
    shown = capsys.readouterr().out
    assert "In the \\x1b[2Jgarden [1].\n" in shown
    below = shown.partition("garden [1].")[2].split("\n")
    assert [line for line in below if line][:3] == [
        "[1] a.txt:0-24",
        "also read: [2] a.txt:25-50",
        "removed from the answer: [5], since no passage has that number",
    ]
    assert "reader: 7 tokens read, 2 tokens written, " in shown
    with stub_server(lambda user, n: completion("In the garden [1].", usage=usage)) as server:
        words[-1] = f"openai:{server.url},stub"
        assert main([*words, "--json"]) == 0
        tree = json.loads(capsys.readouterr().out)
        assert main([*words, "--least-q", "1e6"]) == 0
        assert f"\n{NOT_FOUND}\n" in capsys.readouterr().out
    assert (tree["answer"]["text"], tree["answer"]["citations"][0]["place"]) == ("In the garden [1].", "a.txt:0-24")
    assert len(server.requests) == 1
    for options, message in (
        (["--reader", "gpt"], "--reader = 'gpt': must be flax:NAME"),
        (["--least-q", "1"], "--least-q = 1.0: must be left out without --reader"),
        (["--reader-tokens", "0"], "--reader-tokens = 0: must be above 0"),
    ):
        assert main(["ask", index, QUESTION, *options]) == 64
        assert message in capsys.readouterr().err


def test_colours_are_for_terminals_and_never_with_no_color(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    say("a", dim=True)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    say("b", dim=True)
    say("c")
    monkeypatch.setenv("TERM", "dumb")
    say("d", dim=True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    say("e", dim=True)
    assert capsys.readouterr().out == "a\n\x1b[2mb\x1b[0m\nc\nd\ne\n"
