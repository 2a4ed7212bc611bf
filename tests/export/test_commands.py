"""``qrag import | export`` and ``python -m qrag_jax.export import | to-torch``: exit codes and what is said."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from qrag_jax.__main__ import main as qrag_main
from qrag_jax.export.__main__ import main as module_main
from qrag_jax.export.folder import Export
from tests.support.backbones import TINY
from tests.support.exports import export

Run = Callable[..., tuple[int, list[str], list[str]]]


@pytest.fixture
def written(tmp_path: Path) -> Export:
    return export(tmp_path / "export", TINY["bert"])


@pytest.fixture
def run(request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command, spelled as in ``qrag``: its exit code, what it said, and its lines on stderr."""

    def run(name: str, *args: str | Path) -> tuple[int, list[str], list[str]]:
        said: list[str] = []
        if getattr(request, "param", "qrag") == "qrag":
            code = qrag_main([name, *map(str, args)], said.append)
        else:
            code = module_main(["to-torch" if name == "export" else name, *map(str, args)], said.append)
        shown = capsys.readouterr()
        assert shown.out == "" or "--help" in (name, *args)
        return code, said, shown.err.splitlines()

    return run


def test_export(written: Export, tmp_path: Path, run: Run) -> None:
    pytest.importorskip("torch")
    (tmp_path / "run").mkdir()
    (tmp_path / "export").rename(tmp_path / "run/export")
    code, said, _ = run("export", tmp_path / "run", tmp_path / "out", "--format", "reference")
    assert (code, said[0]) == (0, f"{tmp_path / 'out'}: written (reference)")
    assert said[1].endswith("(allowed 0.0001): OK")


def test_without_pytorch_safetensors_are_written_and_not_compared(
    written: Export, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Run
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    code, said, _ = run("export", tmp_path / "export", tmp_path / "out")
    assert (code, said[1]) == (0, "not compared with PyTorch, which is not installed (pip install 'qrag-jax[torch]')")
    assert (tmp_path / "out/state_encoder/model.safetensors").is_file()
    code, said, errors = run("export", tmp_path / "export", tmp_path / "pickle", "--format", "reference")
    assert (code, said, errors) == (64, [], ["error: this needs PyTorch: pip install 'qrag-jax[torch]'"])


def test_a_difference_keeps_the_files_and_exits_1(written: Export, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    pytest.importorskip("torch")
    monkeypatch.setattr("qrag_jax.export.commands.difference", lambda *_: 0.5)
    code, said, _ = run("export", tmp_path / "export", tmp_path / "out")
    assert code == 1
    assert "5.0e-01" in said[1]
    assert (tmp_path / "out/state_encoder/model.safetensors").is_file()


@pytest.mark.parametrize("run", ["qrag", "module"], indirect=True)
@pytest.mark.parametrize("command", ["export", "import"])
def test_bad_input_is_one_line_on_stderr_and_exits_64(command: str, tmp_path: Path, run: Run) -> None:
    code, said, errors = run(command, tmp_path / "nowhere", tmp_path / "out")
    assert (code, said, len(errors)) == (64, [], 1)
    assert errors[0].startswith("error: ")
    assert "nowhere" in errors[0]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("run", ["qrag", "module"], indirect=True)
def test_a_spoiled_command_line_is_one_line_and_exits_64(run: Run) -> None:
    for words, message in (
        (("export",), ": needs RUN and OUT; see "),
        (("export", "a", "b", "--format", "x"), "error: --format = 'x': unknown; known: hf, sentence-transformers, reference, adapter"),
        (("import", "a", "b", "--base", "x"), "no such option; known: --base-model, --config"),
        (("imprt", "a"), "did you mean import?"),
    ):
        code, said, errors = run(*words)
        assert (code, said, len(errors)) == (64, [], 1)
        assert message in errors[0]
    assert run("--help") == (0, [], [])
