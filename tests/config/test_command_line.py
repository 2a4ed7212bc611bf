"""Command lines: every mistake is reported in one line, on any terminal, and each ending has its exit code."""

from __future__ import annotations

import io
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import tyro

from qrag_jax.config import RunConfig
from qrag_jax.config.command_line import as_typed, flags, in_one_line, read, read_command, refuse_urls


@dataclass(frozen=True)
class Pack:
    """Pack a folder."""

    folder: tyro.conf.Positional[Path]
    """What to pack."""
    level: int = 3
    """How hard."""


class Terminal(io.StringIO):
    """A standard output that is a terminal with an encoding."""

    def __init__(self, encoding: str) -> None:
        super().__init__()
        self._encoding = encoding

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._encoding

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
@pytest.mark.parametrize("columns", ["20", "80"])
def test_a_mistake_is_one_line_without_frame_or_colour(encoding: str, columns: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", Terminal(encoding))
    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setenv("TERM", "xterm")
    long = "a-name-of-many-letters-" * 8
    with pytest.raises(ValueError, match="no option") as error:
        read(Pack, ["a", long], "pack")
    assert str(error.value) == f"pack: {long!r} belongs to no option; see pack --help"
    assert os.environ["COLUMNS"] == columns
    with pytest.raises(ValueError, match=r"^pack: needs FOLDER; see pack --help$"):
        read(Pack, [], "pack")


SHORT = {"--hard": "--level"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["a", "--levle", "3"], "pack --levle: no such option; known: --level; did you mean --level?"),
        (["a", "--zzz"], "pack --zzz: no such option; known: --level"),
        (["a", "--hrad=3"], "pack --hrad: no such option; known: --level; did you mean --hard?"),
        (["a", "--level", "x"], "--hard = 'x': must be a whole number"),
        (["a", "--level"], "--hard: needs a value; see pack --help"),
        (["a", "b"], "pack: 'b' belongs to no option; see pack --help"),
        ([], "pack: needs FOLDER; see pack --help"),
    ],
)
def test_every_mistake_is_said_in_one_style(words: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        read(Pack, words, "pack", short=SHORT)


def test_the_nearest_name_is_that_of_an_option_its_short_name_or_its_field() -> None:
    for word, near in (
        ("--stesp", "--steps"),
        ("--train.log_evry", "--train.log-every"),
        ("--log-every", "--train.log-every"),
        ("--gama", "--rl.gamma"),
        ("--data.no-skip_bda", "--data.skip-bad"),
    ):
        with pytest.raises(ValueError, match=rf"no such option; p --help-all lists all; did you mean {near}\?$"):
            read(RunConfig, [word, "5"], "p", short={"--steps": "--train.steps"})
    with pytest.raises(ValueError, match=r"^--qhead.positions = 'relativ': unknown; known: relative, .*; did you mean 'relative'\?$"):
        read(RunConfig, ["--qhead.positions", "relativ"], "p")


def test_text_of_a_message_that_looks_like_a_frame_is_kept() -> None:
    box = "╭─ Title ──╮\n│ a --- b  │\n│ ──────── │\n│ c │ d    │\n╰──────────╯\n"
    assert in_one_line(box) == "a --- b; c │ d"


def test_what_can_be_read_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    assert read(Pack, ["a", "--level", "4"], "pack") == Pack(Path("a"), 4)
    assert read(Pack, ["a"], "pack", default=Pack(Path("b"), 5)) == Pack(Path("a"), 5)
    assert read_command({"pack": Pack, "show all": Pack}, ["show", "all", "b"], "p", "") == Pack(Path("b"))
    monkeypatch.setattr(sys, "argv", ["pack", "c"])
    assert read(Pack, None, "pack") == Pack(Path("c"))
    assert "COLUMNS" not in os.environ


def test_urls_are_no_places_on_this_machine() -> None:
    with pytest.raises(ValueError, match=r"^folder = gs:/b/c: must be a place on this machine; try cp$"):
        refuse_urls(Pack(Path("gs://b/c")), "; try cp")
    for name in ("notes:2024.txt", "a/gs:/b", "/gs:/b", ".", "C:/x"):
        refuse_urls(Pack(Path(name)))


@dataclass(frozen=True)
class Section:
    skip_bad: bool = False
    tokens: tuple[str, ...] = ()


@dataclass(frozen=True)
class Send:
    places: tyro.conf.Positional[tuple[str, ...]] = ()
    data: Section = Section()
    level: int = 3
    run_dir: str = ""
    mark: tyro.conf.UseAppendAction[tuple[str, ...]] = ()


@pytest.mark.parametrize(
    "words",
    [
        ["--level", "1", "--level", "2"],
        ["--level=1", "--level", "1"],
        ["--data.tokens", "1k", "--data.tokens", "4k"],
        ["--data.skip-bad", "--data.skip_bad"],
        ["--data.skip-bad", "--data.no-skip-bad"],
    ],
)
def test_an_option_that_is_given_twice_is_refused(words: list[str]) -> None:
    how = ", with all its values" if "1k" in words else ""
    with pytest.raises(ValueError, match=rf"^send --[a-z.-]+: is given 2 times; give it once{how}$"):
        read(Send, words, "send")


def test_options_that_add_up_may_be_given_twice() -> None:
    assert read(Send, ["--mark", "a", "--mark", "b", "--level", "1"], "send") == Send(mark=("a", "b"), level=1)
    with pytest.raises(SystemExit):
        read(Send, ["--help", "--help"], "send")


@pytest.mark.parametrize(
    ("message", "told"),
    [
        ("error: data.skip_bad = 3: must be a flag", "error: --data.skip-bad = 3: must be a flag"),
        ("data.tokens is empty; see data.skip_bad.", "--tokens is empty; see --data.skip-bad."),
        ("error: level = 9: must be 1", "error: --level = 9: must be 1"),
        ("run_dir 3: the level is too low", "--run-dir 3: the level is too low"),
        ("the level = 3", "the level = 3"),
        ("x/config.json: data.skip_bad = 3: must", "x/config.json: data.skip_bad = 3: must"),
        (
            "x/data.skip_bad, data.skip_bad/x, data.skip_bad.gz, --data.skip_bad",
            "x/data.skip_bad, data.skip_bad/x, data.skip_bad.gz, --data.skip_bad",
        ),
        ("data.skip_bads, places, data", "data.skip_bads, places, data"),
    ],
)
def test_messages_name_options_as_they_are_typed(message: str, told: str) -> None:
    known = flags(Send, {"--tokens": "--data.tokens", "--other": "--data.other"})
    assert known == {
        "data.skip_bad": "--data.skip-bad",
        "data.tokens": "--tokens",
        "level": "--level",
        "run_dir": "--run-dir",
        "mark": "--mark",
    }
    assert as_typed(message, known) == told
    assert as_typed(message, {}) == message
