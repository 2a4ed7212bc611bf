"""The pages: links and anchors lead somewhere, and the files, tests and commands that they name exist."""

from __future__ import annotations

import importlib
import re
from functools import cache
from pathlib import Path

import pytest

from tests.conftest import ROOT

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("**/*.md"))]
FOLDERS = "qrag_jax|experiments|tests|tpu|docs"
PLACEHOLDER = re.compile(r"/(mine|[A-Z]+)(\.py)?(/|$)")
"""How pages name what the reader chooses: mine.py, FOLDER."""
COMMAND = r"(?:python -m (?:experiments|qrag_jax)|qrag (?:index|ask|serve|import|export|push)|python (?:src/)?tpu/\w+\.py)"

CHANGELOG = ROOT / "CHANGELOG.md"
"""It names files that are gone, so only its links are checked."""


def of_page(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, in GitHub's form."""
    heads = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.S), flags=re.M)
    texts = [re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", head).strip().lower() for head in heads]
    return {re.sub(r"[^\w\- ]", "", text).replace(" ", "-") for text in texts}


def broken_links(page: Path) -> list[str]:
    """Relative links of a page whose file or heading does not exist."""
    found = []
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            found.append(link)
    return found


def missing_paths(text: str) -> list[str]:
    """Paths of this repository that a page names in back ticks or commands, and that do not exist. Patterns must match something."""
    named = re.findall(rf"(?<![\w./-])(?:src/)?((?:{FOLDERS})/[\w./*-]*)", re.sub(r"\]\([^)]*\)", "]", text))
    paths = {path for name in named if not PLACEHOLDER.search(path := name.rstrip("."))}
    return sorted(path for path in paths if not any(ROOT.glob(path.rstrip("/"))))


def missing_modules(text: str) -> list[str]:
    """Modules of this repository that a page runs with ``python -m``, and that cannot be run."""
    named = {name.replace(".", "/") for name in re.findall(rf"python -m ((?:{FOLDERS})[\w.]*\w)", text)}
    return sorted(name for name in named if not (ROOT / f"{name}.py").is_file() and not (ROOT / name / "__main__.py").is_file())


@cache
def named_tests() -> frozenset[str]:
    files = (ROOT / "tests").glob("**/test_*.py")
    return frozenset(name for file in files for name in re.findall(r"def (test_\w+)", file.read_text(encoding="utf-8")))


@cache
def source() -> str:
    return "\n".join(
        file.read_text(encoding="utf-8") for name in ("qrag_jax", "experiments", "tpu") for file in ROOT.glob(f"{name}/**/*.py")
    )


def unknown_options(text: str) -> list[str]:
    """Options of this repository's commands on a page that no field and no literal of the source is named after."""
    lines = [line for line in text.replace("\\\n", " ").splitlines() if re.search(COMMAND, line)]
    options = {option for line in lines for option in re.findall(r"(?<![\w-])--([a-z][\w.-]*\w)", re.split(COMMAND, line, maxsplit=1)[1])}
    known = {option for option in options if re.search(rf"\b{option.split('.')[-1].replace('-', '_')}\b|--{option}\b", source())}
    return sorted(options - known)


@pytest.mark.parametrize("page", [*PAGES, CHANGELOG], ids=of_page)
def test_links_lead_somewhere(page: Path) -> None:
    assert broken_links(page) == []


@pytest.mark.parametrize("page", PAGES, ids=of_page)
def test_named_files_modules_and_tests_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert missing_paths(text) == []
    assert missing_modules(text) == []
    assert [name for name in re.findall(r"`(test_\w+)`", text) if name not in named_tests()] == []
    assert unknown_options(text) == []


def test_what_is_missing_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    links = "[a](gone.md) [b](page.md#four) [c](#one-two-three) [d](https://example.org/gone)"
    page.write_text(f"# One `two`, three\n{links}\n", encoding="utf-8")
    assert broken_links(page) == ["gone.md", "page.md#four"]
    text = (
        "`qrag_jax/rl/env.py`, `qrag_jax/gone.py`, runs/tests/x, `tests/rl/`, `docs/results/*.md`, docs/*.gone, docs/FOLDER/x, tpu/mine.py."
    )
    assert missing_paths(text) == ["docs/*.gone", "qrag_jax/gone.py"]
    assert missing_modules("python -m experiments.babilong python -m experiments.sweep python -m experiments.gone") == ["experiments/gone"]
    assert unknown_options("python -m experiments.own --steps 3 --rl.gamma 1 --rl.gone-option 2\ngcloud --else") == ["rl.gone-option"]


def test_commands_of_qrag_exist(capsys: pytest.CaptureFixture[str]) -> None:
    """Every ``qrag ...`` of the pages is a subcommand with a usage line of its own; ``python -m qrag_jax`` is the same command."""
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    commands = set(re.findall(r"^(?:\$ )?(?:qrag|python -m qrag_jax) (index \w+|[a-z]\w*)", text, flags=re.M))
    assert {"index build", "index add", "index info", "ask", "import", "export"} <= commands
    main = importlib.import_module("qrag_jax.__main__").main
    refused = []
    for command in sorted(commands):
        try:
            code = main([*command.split(), "--help"])
        except SystemExit as stop:
            code = int(stop.code or 0)
        if code != 0 or not re.search(rf"usage: .*\b{command}\b", capsys.readouterr().out):
            refused.append(command)
    assert refused == []


def test_every_page_is_on_the_map() -> None:
    """docs/index.md links every page, so that a new one is found."""
    index = ROOT / "docs" / "index.md"
    links = re.findall(r"\]\(([^)\s]+)\)", index.read_text(encoding="utf-8"))
    linked = {(index.parent / link.partition("#")[0]).resolve() for link in links}
    pages = {page for page in [*PAGES, CHANGELOG] if page.parent in (ROOT, index.parent, index.parent / "results")}
    assert sorted(page.name for page in pages - linked - {index}) == []
