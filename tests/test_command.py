"""``python -m qrag_jax``: index a text, describe the index, extend it, ask it; and what is refused."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from qrag_jax import Retriever
from qrag_jax.__main__ import main
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
    assert run("index", "build", place / "run", place / "story.txt", place / "index") == [
        f'{place / "index"}: {len(Index.open(place / "index"))} chunks; ask it: python -m qrag_jax ask {place / "index"} "question"'
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
    error = capsys.readouterr().err.strip().split("\r")[-1]
    assert re.search("^error: .*$", error, re.MULTILINE), error
    return error[error.index("error: ") :]


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
    assert re.fullmatch(rf"3 steps in [\d.]+ s over {len(Index.open(place / 'index'))} chunks", total)
    assert ending == "stop threshold 1000000000.000: keeps the first 1"


def test_ask_with_beam_stop_trace_and_another_place_of_the_retriever(place: Path, tmp_path: Path) -> None:
    assert len(run("ask", place / "index", QUESTION, "--beam", "2", "--budget", "2")) == 4
    assert len(run("ask", place / "index", QUESTION, "--stop")) == 4  # the first pick, the one that falls below, and two lines
    trace = tmp_path / "trace.html"
    said = run("ask", place / "index", QUESTION, "--retriever", place / "run/export", "--trace", trace, "--support", *map(str, range(9)))
    for line in said[:-3]:
        assert ("  support\n" in line) == (int(line.split("chunk ")[1].split()[0]) < 9)
    assert said[-1] == f"{trace}: trace written"
    assert QUESTION in trace.read_text()


def test_info_and_add(place: Path, tmp_path: Path) -> None:
    index = tmp_path / "index"
    run("index", "build", place / "run", place / "story.txt", index, "--dtype", "int8")
    count = len(Index.open(index))
    (said,) = run("index", "add", place / "run", write_files(tmp_path / "text"), index)
    total = len(Index.open(index))
    assert said == f"{index}: {total} chunks, {total - count} of them new"
    said = run("index", "info", index, "--verify")
    assert said[0].startswith(f"{index}: {total} chunks by sentence, 16 tokens embedded of each, ")
    assert said[1] == "vectors: int8, 32 wide, in 2 shards"
    assert said[2].endswith(f"loaded from {place / 'run'}")
    assert said[3] == f"source: story.txt, {len(' '.join(CHUNKS)):,} characters, {count} chunks"
    assert "source: a/empty.txt, 2 characters, 0 chunks" in said
    assert said[-1] == "verified: the checksums of 8 files are right"
    assert len(run("index", "info", index)) == len(said) - 1


def test_bad_input_exits_64_in_one_line(capsys: pytest.CaptureFixture[str], place: Path, tmp_path: Path) -> None:
    before = content(place / "index")
    (tmp_path / "other").mkdir()
    (tmp_path / "other/thesis.tex").write_text("years of work")
    story, run_dir, out = place / "story.txt", place / "run", tmp_path / "out"
    assert "no such file or folder" in refuse(capsys, "index", "build", run_dir, tmp_path / "absent", out)
    assert "holds no .txt or .md file" in refuse(capsys, "index", "build", run_dir, tmp_path / "other", out)
    assert "not an export" in refuse(capsys, "index", "build", tmp_path / "absent", story, out)
    assert "exists and is not an index" in refuse(capsys, "index", "build", run_dir, story, tmp_path / "other")
    assert "has 'story.txt' already" in refuse(capsys, "index", "add", run_dir, story, place / "index")
    assert "not an index" in refuse(capsys, "index", "add", run_dir, story, out)
    assert "not an index" in refuse(capsys, "index", "info", out)
    assert "not an index" in refuse(capsys, "ask", out, QUESTION)
    assert "question is empty" in refuse(capsys, "ask", place / "index", " ")
    assert "budget = 999" in refuse(capsys, "ask", place / "index", QUESTION, "--budget", "999")
    assert "support 999: must be in 0.." in refuse(capsys, "ask", place / "index", QUESTION, "--support", "999")
    assert not out.exists()
    assert content(place / "index") == before


def test_a_retriever_that_has_gone_is_asked_for(capsys: pytest.CaptureFixture[str], place: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    write_small_export(moved)
    run("index", "build", moved, place / "story.txt", tmp_path / "index")
    moved.rename(tmp_path / "elsewhere")
    assert "no longer there; name it with --retriever" in refuse(capsys, "ask", tmp_path / "index", QUESTION)
    assert run("ask", tmp_path / "index", QUESTION, "--retriever", tmp_path / "elsewhere")[-1] == "stop threshold: this retriever has none"
    Index.build(Retriever.from_pretrained(tmp_path / "elsewhere"), CHUNKS, tmp_path / "given")
    assert "does not say where its retriever is" in refuse(capsys, "ask", tmp_path / "given", QUESTION)


def test_unknown_commands_exit_64(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["search"], ["index", "remove"], ["ask"], ["index", "info", "x", "--no-such-option"]):
        assert main(words) == 64
    assert "remove" in capsys.readouterr().err
    assert main(["index", "--help"]) == 0
    assert "build" in capsys.readouterr().out


@pytest.mark.processes
def test_the_module_runs(place: Path) -> None:
    command = [sys.executable, "-m", "qrag_jax", "index", "info", place / "index"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{place / 'index'}: ")
