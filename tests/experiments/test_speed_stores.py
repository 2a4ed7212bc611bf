"""``python -m experiments.speed.stores``: stores are compared with a folder, and bad input is told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from experiments.speed import store_measures
from experiments.speed.stores import main
from qrag_jax.retrieve.types import Pick
from tests.support.index import write_small_export
from tests.support.stores import MEMORY, write_text

pytestmark = pytest.mark.usefixtures("memory")


def words(tmp_path: Path, *more: str) -> list[str]:
    export, folder = write_small_export(tmp_path / "export"), write_text(tmp_path / "text")
    for number in range(3):
        (folder / f"more{number}.txt").write_text(f"Number {number} went to the kitchen. Then number {number} left it again.")
    (tmp_path / "questions.txt").write_text("Where is Mary?\n\nWho went to the garden?\n")
    given = ("--documents", str(folder), "--retriever", str(export), "--questions", str(tmp_path / "questions.txt"))
    return ["--run-dir", str(tmp_path / "out"), *given, *more]


@pytest.mark.slow
@pytest.mark.quick
def test_stores_are_compared_with_a_folder(tmp_path: Path) -> None:
    more = ("--stores", MEMORY, "--filters", "source=*.txt", "--budget", "3", "--chunks", "100", "--repeats", "1")
    assert main(words(tmp_path, *more)) == 0
    out = tmp_path / "out"
    assert sorted(path.name for path in out.iterdir()) == ["stores.json", "stores.md"], "scratch is removed"
    report = json.loads((out / "stores.json").read_text())
    assert [part["when"] for part in report["picks"]] == ["built", "documents removed", "documents added again"]
    built, removed, again = (part["chunks"] for part in report["picks"])
    assert removed < built == again
    for part in report["picks"]:
        row = part["stores"][MEMORY]
        assert (row["searches"], row["different"], row["ties"]) == (2 * 2 * 2, 0, 0)
        assert 0 <= row["largest_q_difference"] < 1e-5
    assert [size["chunks"] for size in report["sizes"]] == [built, 100]
    for size in report["sizes"]:
        assert set(size["step"]["none"]) == set(size["step"]["relative"]) == {"folder", MEMORY}
    assert f"| memory | built, {built} chunks | 8 | 0 | 0 |" in (out / "stores.md").read_text()


def test_other_picks_and_ties_are_told_apart() -> None:
    row = {"searches": 0, "different": 0, "ties": 0, "largest_q_difference": 0.0}
    pick = lambda chunk, q, step: Pick(chunk, "", q, 0.0, step=step)
    folders = [pick(9, 2.0, 1), pick(4, 3.0, 0)]
    for own in ([pick(9, 2.0, 1), pick(4, 3.5, 0)], [pick(4, 3.0, 0), pick(8, 2.0, 1)], [pick(5, 2.0, 0), pick(1, 9.0, 1)]):
        store_measures._compare(row, own, folders)
    assert row == {"searches": 3, "different": 1, "ties": 1, "largest_q_difference": 0.5}


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--stores", MEMORY, "--repeats", "0"), "repeats = 0: must be 1 or more"),
        (("--stores", MEMORY, MEMORY), f"stores = {MEMORY} {MEMORY}: must be places, each given once"),
        (("--stores", MEMORY, "--noise", "2"), "noise = 2: must be in 0..1"),
        (("--stores", MEMORY, "--chunks", "x"), "chunks = x: must be numbers such as 400, 10k or 1m"),
        (("--stores", "nothing:here"), "store = 'nothing': unknown"),
    ],
)
def test_bad_input_is_told(more: tuple[str, ...], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words(tmp_path, *more)) == 64
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_too_few_documents_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = words(tmp_path, "--stores", MEMORY)
    given[given.index("--documents") + 1] = str(tmp_path / "text" / "more0.txt")
    assert main(given) == 64
    assert "holds 1 documents; at least 5 are needed" in capsys.readouterr().err
