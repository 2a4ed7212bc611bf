"""``python -m experiments.speed.exact``: its rows are those of the index, its figures fit together, and bad input is told."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from experiments.speed.exact import main
from experiments.speed.exact_measures import enlarged
from qrag_jax.retrieve.index import Index
from qrag_jax.retrieve.retriever import Retriever
from tests.support.index import CHUNKS, write_small_export


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exact")
    export = write_small_export(folder / "export")
    return Index.build(Retriever.from_pretrained(export), CHUNKS[:60], folder / "index", retriever_path=export).path


def test_rows_are_repeated_with_noise() -> None:
    vectors = np.random.default_rng(1).standard_normal((100, 64)).astype(np.float32)
    rows = np.concatenate(list(enlarged(vectors, 250, 0.1)))
    assert rows.shape == (250, 64)
    np.testing.assert_array_equal(rows[:100], vectors)
    np.testing.assert_allclose(np.linalg.norm(rows[200:], axis=1), np.linalg.norm(vectors[:50], axis=1), rtol=1e-5)
    moved = np.linalg.norm(rows[100:200] - vectors, axis=1) / np.linalg.norm(vectors, axis=1)
    assert 0.08 < moved.mean() < 0.12
    np.testing.assert_array_equal(np.concatenate(list(enlarged(vectors, 90, 0.1))), vectors[:90])


@pytest.mark.slow
@pytest.mark.processes
def test_the_figures_fit_together(index: Path, tmp_path: Path) -> None:
    questions = tmp_path / "questions.txt"
    questions.write_text("Where is Mary?\n\nWho went to the garden?\n")
    out = tmp_path / "out"
    words = ["--run-dir", str(out), "--index", str(index), "--questions", str(questions), "--chunks", "200", "--repeats", "2"]
    assert main(words) == 0
    assert sorted(path.name for path in out.iterdir()) == ["exact.json", "exact.md"], "scratch is removed"
    report = json.loads((out / "exact.json").read_text())
    assert report["settings"]["questions"] == 2
    (size,) = report["sizes"]
    for rows in size["steps"].values():
        assert [row["dtype"] for row in rows] == ["plain dot", "float32", "bfloat16", "int8", "int8-exact"]
        assert rows[1]["over_plain_dot"] == rows[1]["median_s"] / rows[0]["median_s"]
        assert (rows[4]["recall_at_10"], rows[4]["same_pick"]) == (1, 1)
        assert rows[4]["rows_read"] >= 1
    assert [row["questions"] for row in size["passes"]] == [1, 8, 19]
    assert "| relative | int8-exact |" in (out / "exact.md").read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--repeats", "0"], "repeats = 0: must be 1 or more"),
        (["--noise", "2"], "noise = 2: must be in 0..1"),
        (["--chunks", "ten"], "--chunks = ten: must be numbers of 100 or more"),
        (["--chunks", "10"], "--chunks = 10: must be numbers of 100 or more"),
        (["--questions", "absent.txt"], "--questions = absent.txt: cannot be read"),
        (["--index", "absent"], "absent: not an index"),
        (["--no-such-flag"], "no-such-flag"),
    ],
)
def test_bad_input_exits_64(words: list[str], message: str, index: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--run-dir", str(tmp_path / "run"), *([] if words[0] == "--index" else ["--index", str(index)])]
    assert main([*given, *words]) == 64
    said = capsys.readouterr().err
    assert message in said
    assert "\n" not in said.strip() or words == ["--no-such-flag"]


def test_an_index_of_rounded_vectors_is_refused(index: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    retriever = Retriever.of_index(Index.open(index))
    rounded = Index.build(retriever, CHUNKS, tmp_path / "int8", dtype="int8").path
    assert main(["--run-dir", str(tmp_path / "run"), "--index", str(rounded)]) == 64
    assert "holds int8 vectors; this command needs an index of float32 or int8-exact" in capsys.readouterr().err
