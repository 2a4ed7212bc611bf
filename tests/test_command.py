"""``qrag``: index a text, describe the index, extend it, search it; and input that is refused."""

from __future__ import annotations

import importlib
import json
import re
import runpy
import shlex
import sys
import tomllib
from pathlib import Path

import pytest

from qrag_jax import Retriever
from qrag_jax.__main__ import COMMANDS, main
from qrag_jax.retrieve.index import Index
from tests.conftest import ROOT
from tests.support.index import CHUNKS, content, write_files, write_small_export

QUESTION = "Where is Mary?"
STEP = re.compile(r" *(\d+)  Q +(-?[\d.]+)  chunk (\d+)  story\.txt:(\d+)-(\d+)  [\d.]+ s(  below the stop threshold)?\n     (.+)")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a retriever, a text and its index; not to be written to."""
    place = tmp_path_factory.mktemp("place")
    write_small_export(place / "run/export", threshold=1e9)  # every pick is below it
    (place / "story.txt").write_text(" ".join(CHUNKS))
    assert run("index", "build", place / "story.txt", place / "index", "--retriever", place / "run") == [
        f'{place / "index"}: {len(Index.open(place / "index"))} chunks; ask it: qrag ask {place / "index"} "question"',
        f"text: {len(' '.join(CHUNKS)):,} characters, 480 tokens, 0 of them outside the embedded windows",
    ]
    return place


def run(*words: str | Path) -> list[str]:
    said: list[str] = []
    assert main([str(word) for word in words], said.append) == 0
    return said


def refuse(capsys: pytest.CaptureFixture[str], *words: str | Path) -> str:
    """The command must exit with 64 and say why in one line on stderr."""
    said: list[str] = []
    capsys.readouterr()
    assert main([str(word) for word in words], said.append) == 64
    assert said == []
    shown = capsys.readouterr()
    assert shown.out == ""
    *bars, error = shown.err.replace("\r", "\n").strip().splitlines()
    assert error.startswith("error: ")
    assert not any(line.startswith("error") for line in bars)
    return error


def test_ask_shows_every_step_as_it_is_made(place: Path) -> None:
    *said, total, ending = run("ask", place / "index", QUESTION, "--budget", "3")
    text = (place / "story.txt").read_text()
    steps = list(Retriever.from_pretrained(place / "run").stream(QUESTION, Index.open(place / "index"), 3))
    assert len(said) == 3
    for number, (line, step) in enumerate(zip(said, steps, strict=True), 1):
        found = STEP.fullmatch(line)
        assert found, line
        assert [int(found[i]) for i in (1, 3)] == [number, step.pick.chunk]
        assert float(found[2]) == pytest.approx(step.pick.q, abs=1e-3)
        assert text[int(found[4]) : int(found[5])] == found[7] == step.pick.text
        assert bool(found[6]) == (number > 1)
    assert re.fullmatch(rf"3 steps in [\d.]+ s over {len(Index.open(place / 'index'))} chunks(, after [\d.]+ s of compiling)?", total)
    assert ending == "stop threshold 1000000000.000: every pick is below it, so nothing that fits the question was found"


def test_ask_with_beam_stop_trace_and_another_place_of_the_retriever(place: Path, tmp_path: Path) -> None:
    assert len(run("ask", place / "index", QUESTION, "--beam", "2", "--budget", "2")) == 4
    assert len(run("ask", place / "index", QUESTION, "--stop")) == 4  # the first pick, the one that falls below, and two lines
    trace = tmp_path / "trace.html"
    said = run(
        "ask",
        place / "index",
        QUESTION,
        "--retriever",
        place / "run/export",
        "--trace",
        trace,
        "--support",
        *map(str, range(8)),
        "--support=8",
    )
    for line in said[:-3]:
        assert ("  support\n" in line) == (int(line.split("chunk ")[1].split()[0]) < 9)
    assert said[-1] == f"{trace}: trace written"
    assert QUESTION in trace.read_text()


def test_info_and_add(place: Path, tmp_path: Path) -> None:
    index = tmp_path / "index"
    run("index", "build", "--retriever", place / "run", place / "story.txt", index, "--dtype", "int8")
    count = len(Index.open(index))
    said = run("index", "add", write_files(tmp_path / "text"), index)
    total = len(Index.open(index))
    assert total > count
    assert re.fullmatch(rf"{index}: {total} chunks; documents: 4 added, 0 replaced, 0 removed, 0 unchanged; texts embedded: \d+", said[0])
    assert said[1].endswith("tokens, 31 of them outside the embedded windows")
    said = run("index", "info", index, "--verify")
    assert said[0].startswith(f"{index}: {total} chunks by sentence, 16 tokens of each embedded, ")
    assert said[1] == "vectors: int8, 32 wide; shards: 2; positions run through the whole index"
    assert said[2].endswith(f"loaded from {place / 'run'}")
    assert said[3] == f"source: story.txt, {len(' '.join(CHUNKS)):,} characters, {count} chunks"
    assert "source: a/empty.txt, 2 characters, 0 chunks" in said
    assert said[-4].endswith("tokens, 31 of them outside the embedded windows")
    assert said[-3].startswith("cut: ")
    assert said[-2].startswith("skipped: .doc 1, hidden 1; only .csv, ")
    assert said[-1] == "verified: the checksums of 10 files are right"
    assert len(run("index", "info", index)) == len(said) - 1
    (told,) = run("index", "info", index, "--json")
    tree = json.loads(told)
    assert (tree["chunks"], tree["skipped"], tree["unread"]) == (total, {".doc": 1, "hidden": 1}, {})
    assert [one["name"] for one in tree["documents"]] == ["story.txt", "a/deep/one.md", "a/empty.txt", "b.txt", "c.TXT"]


def test_documents_come_change_and_go(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, index = tmp_path / "texts", tmp_path / "index"
    folder.mkdir()
    for name, text in (("a.txt", "Mary left."), ("b.txt", "John slept."), ("c.txt", "Sandra stayed.")):
        (folder / name).write_text(text)
    run("index", "build", folder, index, "--retriever", place / "run")
    (folder / "a.txt").write_text("Mary left. Then she slept.")
    (folder / "b.txt").unlink()
    (folder / "d.txt").write_text("John slept.")
    said = run("index", "sync", folder, index)
    assert said[0] == f"{index}: 4 chunks; documents: 1 added, 1 replaced, 1 removed, 1 unchanged; texts embedded: 1"
    (folder / "a.txt.json").write_text('{"year": 2024, "kind": "story"}')
    assert "1 replaced" in run("index", "sync", folder, index)[0]
    keys = [line for line in run("index", "info", index) if line.startswith("metadata: ")]
    assert keys == ["metadata: kind, year; `qrag ask --filter KEY=VALUE` picks only from documents that match"]
    capsys.readouterr()
    run("ask", index, QUESTION, "--budget", "3", "--filter", "kind=story")
    noted = f"note: 2 picks, fewer than --budget 3: {index} has no more chunks that match the filter\n"
    assert noted in capsys.readouterr().err
    run("ask", index, QUESTION, "--budget", "2", "--filter", "kind=story")
    assert "note: " not in capsys.readouterr().err
    said = run("index", "remove", index, "a.txt", "c.txt")
    assert said[0] == f"{index}: 1 chunks; documents: 0 added, 0 replaced, 2 removed, 1 unchanged; texts embedded: 0"
    (folder / "d.txt").write_text("John woke up.")
    said = run("index", "add", "--replace", folder, index)
    assert said[0] == f"{index}: 4 chunks; documents: 2 added, 1 replaced, 0 removed, 0 unchanged; texts embedded: 4"


def test_documents_send_nothing_to_the_terminal(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.txt").write_text("Mary \x1b[2J\x1b]0;x\x07 went\r to the garden.\n\nJohn slept.")
    run("index", "build", tmp_path / "a.txt", tmp_path / "index", "--retriever", place / "run")
    capsys.readouterr()
    assert main(["ask", str(tmp_path / "index"), "Where is \x1b[2J Mary?", "--budget", "2", "--trace", str(tmp_path / "trace.html")]) == 0
    shown = capsys.readouterr()
    assert "Mary \\x1b[2J\\x1b]0;x\\x07 went to the garden." in shown.out
    page = (tmp_path / "trace.html").read_text(encoding="utf-8")
    assert not re.search(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]", shown.out + shown.err.replace("\r", "") + page)
    assert main(["ask", str(tmp_path / "\x1b[2J"), "Where is Mary?"]) == 64
    assert "\x1b" not in capsys.readouterr().err


def test_a_question_that_fits_nothing_is_said(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = run("ask", place / "index", QUESTION + " Where is Mary, where is Mary, and where is Mary?", "--budget", "2")
    assert said[-1] == "stop threshold 1000000000.000: every pick is below it, so nothing that fits the question was found"
    assert capsys.readouterr().out.startswith("cut: the question is longer than the 10 tokens")
    assert "half of a surrogate pair" in refuse(capsys, "ask", place / "index", "Where is \udce9?")


def test_a_document_of_fewer_chunks_than_the_budget_is_noted(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.txt").write_text("Mary went home. John slept.")
    run("index", "build", tmp_path / "a.txt", tmp_path / "index", "--retriever", place / "run")
    for budget, told in (("2", ""), ("4", f"note: 2 picks, fewer than --budget 4: {tmp_path / 'index'} has no more chunks\n")):
        capsys.readouterr()
        assert len(run("ask", tmp_path / "index", QUESTION, "--budget", budget)) == 4
        assert capsys.readouterr().err == told


def test_bad_input_exits_64_in_one_line(capsys: pytest.CaptureFixture[str], place: Path, tmp_path: Path) -> None:
    before = content(place / "index")
    (tmp_path / "other").mkdir()
    (tmp_path / "other/thesis.tex").write_text("years of work")
    story, out, retriever = place / "story.txt", tmp_path / "out", ("--retriever", place / "run")
    assert "no such file or folder" in refuse(capsys, "index", "build", tmp_path / "absent", out, *retriever)
    assert "holds no file of a kind that is read: .csv, .docx, " in refuse(capsys, "index", "build", tmp_path / "other", out, *retriever)
    assert "absent: no such folder or file, and not a hub name" in refuse(
        capsys, "index", "build", story, out, "--retriever", tmp_path / "absent"
    )
    assert "other: not an export" in refuse(capsys, "index", "build", story, out, "--retriever", tmp_path / "other")
    assert "exists and is not an index" in refuse(capsys, "index", "build", story, tmp_path / "other", *retriever)
    (tmp_path / "new").mkdir()
    (tmp_path / "new/story.txt").write_text("Another story.")
    assert "already has 'story.txt', with other text or metadata" in refuse(
        capsys, "index", "add", tmp_path / "new/story.txt", place / "index"
    )
    assert "no document 'story.tx'; did you mean 'story.txt'?" in refuse(capsys, "index", "remove", place / "index", "story.tx")
    assert "NAME is missing: give the names" in refuse(capsys, "index", "remove", place / "index")
    assert "filter = 'year': unknown; known: source" in refuse(capsys, "ask", place / "index", QUESTION, "--filter", "year=2024")
    assert "filter source=x: no document has that; source is story.txt" in refuse(
        capsys, "ask", place / "index", QUESTION, "--filter", "source=story.*", "--filter", "source=x"
    )
    assert "nothing to search would be left" in refuse(capsys, "index", "remove", place / "index", "story.txt")
    assert "not an index" in refuse(capsys, "index", "add", story, out)
    assert "not an index" in refuse(capsys, "index", "info", out)
    assert "not an index" in refuse(capsys, "ask", out, QUESTION)
    assert "question is empty" in refuse(capsys, "ask", place / "index", " ")
    assert "budget = 999" in refuse(capsys, "ask", place / "index", QUESTION, "--budget", "999")
    assert "support 999: must be in 0.." in refuse(capsys, "ask", place / "index", QUESTION, "--support", "999")
    assert "story.txt/index: Not a directory; choose another place" in refuse(capsys, "index", "build", story, story / "index", *retriever)
    assert not out.exists()
    assert content(place / "index") == before


def test_a_retriever_that_has_gone_is_asked_for(capsys: pytest.CaptureFixture[str], place: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    write_small_export(moved)
    run("index", "build", place / "story.txt", tmp_path / "index", "--retriever", moved)
    moved.rename(tmp_path / "elsewhere")
    assert "no longer there; name it with --retriever" in refuse(capsys, "ask", tmp_path / "index", QUESTION)
    (tmp_path / "more.txt").write_text("Mary left.")
    assert "name it with --retriever" in refuse(capsys, "index", "add", tmp_path / "more.txt", tmp_path / "index")
    assert run("ask", tmp_path / "index", QUESTION, "--retriever", tmp_path / "elsewhere")[-1] == "stop threshold: this retriever has none"
    said = run("index", "add", tmp_path / "more.txt", tmp_path / "index", "--retriever", tmp_path / "elsewhere")
    assert ": 1 added, 0 replaced, 0 removed, 0 unchanged; texts embedded: 1" in said[0]
    Index.build(Retriever.from_pretrained(tmp_path / "elsewhere"), CHUNKS, tmp_path / "given")
    assert "does not say where its retriever is" in refuse(capsys, "ask", tmp_path / "given", QUESTION)


def test_a_build_without_a_retriever_says_what_to_give(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    error = refuse(capsys, "index", "build", "my book.txt", "book.index")
    assert "--retriever is missing: give the run directory or the export folder" in error
    assert "qrag index build 'my book.txt' book.index --retriever runs/" in error


@pytest.mark.parametrize("options", [(), ("--dtype", "int8"), ("--dtype=int8",)])
def test_a_retriever_in_third_place_is_answered_with_the_command_that_was_meant(
    capsys: pytest.CaptureFixture[str], options: tuple[str, ...], place: Path, tmp_path: Path
) -> None:
    retriever, story, index = str(place / "run"), str(place / "story.txt"), str(tmp_path / "an index")
    error = refuse(capsys, "index", "build", *options, retriever, story, index)
    program, *meant = shlex.split(error.split("`")[1])
    assert [program, *meant] == ["qrag", "index", "build", story, index, "--retriever", retriever, *options]
    run(*meant)
    error = refuse(capsys, "index", "add", retriever, "more.txt", index)
    assert f"did you mean `qrag index add more.txt '{index}'`?" in error
    for name in ("add", "sync"):
        error = refuse(capsys, "index", name, "more.txt", index, retriever)
        assert f"did you mean `qrag index {name} more.txt '{index}'`?" in error
    assert "Unrecognized" in refuse(capsys, "index", "build", "a", "b", "c", "--retriever", "d")


def test_usage_errors_are_one_line(capsys: pytest.CaptureFixture[str], place: Path) -> None:
    assert refuse(capsys) == "error: qrag: give a command: index, ask, serve, import, export, push; `qrag --help` says what each does"
    assert refuse(capsys, "index").startswith("error: qrag index: give a command: build, add, sync, remove, info;")
    assert (
        refuse(capsys, "exprt")
        == "error: qrag exprt: no such command; known: index, ask, serve, import, export, push; did you mean export?"
    )
    assert refuse(capsys, "zzz") == "error: qrag zzz: no such command; known: index, ask, serve, import, export, push"
    assert (
        refuse(capsys, "index", "bild")
        == "error: qrag index bild: no such command; known: build, add, sync, remove, info; did you mean build?"
    )
    refused = refuse(capsys, "ask", "x", "y", "--bugdet=3")
    assert refused.startswith("error: qrag ask --bugdet: no such option; known: --reader, --budget, --mode, ")
    assert refused.endswith("; did you mean --budget?")
    assert refuse(capsys, "idnex").endswith("; did you mean index?")
    assert refuse(capsys, "ask", "x").startswith("error: Missing from qrag ask: QUESTION The question")
    assert refuse(capsys, "ask", "x", "y", "--budget", "z").startswith("error: Error parsing --budget: ")
    assert refuse(capsys, "ask", "x", "y", "--budget", "2", "--budget=3") == "error: qrag ask --budget: is given 2 times; give it once"
    assert "support: has no value" in refuse(capsys, "ask", place / "index", QUESTION, "--support")
    assert "out = gs:/bucket/out: must be a place on this machine" in refuse(capsys, "export", "run", "gs://bucket/out")


@pytest.mark.parametrize("name", COMMANDS)
def test_help_shows_an_example_that_can_be_read(name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main([*name.split(), "--help"]) == 0
    shown = capsys.readouterr().out
    (example,) = re.findall("^Example: (.+)$", shown, re.MULTILINE)
    assert shlex.split(example)[: 1 + len(name.split())] == ["qrag", *name.split()]
    assert "PATH" not in shown
    assert max(len(line) for line in shown.splitlines() if not line.startswith(("Example: ", "usage: "))) <= 80
    seen: list[object] = []
    monkeypatch.setattr("qrag_jax.__main__._run", lambda command, say: seen.append(command) or 0)
    assert main(shlex.split(example)[1:]) == 0
    assert type(seen[0]) is COMMANDS[name]


def test_the_overviews_list_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    for words, names in (([], COMMANDS), (["index"], ("build", "add", "sync", "remove", "info"))):
        assert main([*words, "--help"]) == 0
        shown = capsys.readouterr().out
        assert re.findall(r"^  (\w+(?: \w+)?)  +\w", shown, re.MULTILINE) == list(names)
        assert max(map(len, shown.splitlines())) <= 80


def test_qrag_and_the_module_are_the_same(place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    module, _, name = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]["qrag"].partition(":")
    assert getattr(importlib.import_module(module), name) is main
    monkeypatch.setattr(sys, "argv", ["qrag", "index", "info", str(place / "index")])
    assert main() == 0
    installed = capsys.readouterr().out
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(ROOT / "qrag_jax/__main__.py"), run_name="__main__")
    assert stop.value.code == 0
    assert capsys.readouterr().out == installed
    assert installed.startswith(f"{place / 'index'}: ")


@pytest.mark.parametrize("name", ["", "index", "ask", "serve", "index build"])
def test_help_fits_one_screen_and_help_all_has_the_rest(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main([*name.split(), "--help"]) == 0
    short = capsys.readouterr().out
    assert "\x1b" not in short
    assert len(short.splitlines()) <= 40
    assert main([*name.split(), "--help-all"]) == 0
    whole = capsys.readouterr().out
    options = lambda text: set(re.findall(r"^[│|]? *(--[\w-]+)", text, re.MULTILINE))
    assert options(short) <= options(whole)
    if name == "ask":
        assert {"--beam", "--support", "--reader-tokens"} <= options(whole) - options(short)
        assert "All options: qrag ask --help-all" in short
