"""Positions that restart with each document: each document is searched as if it were alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qrag_jax.__main__ import main
from qrag_jax.retrieve.index import Index
from qrag_jax.retrieve.meta import check_positions
from qrag_jax.retrieve.retriever import Retriever
from qrag_jax.retrieve.sources import Text
from qrag_jax.retrieve.types import Pick
from tests.support.index import CHUNKS, small_retriever, write_files, write_small_export

QUESTION = "Where is Mary?"
DOCUMENTS = [Text(" ".join(CHUNKS[:17]), name="a"), Text(" ".join(CHUNKS[17:40]), name="b"), Text(CHUNKS[41], name="c")]


@pytest.fixture(scope="module")
def retriever() -> Retriever:
    return small_retriever()


def scores(picks: list[Pick]) -> list[tuple[str, float, float]]:
    return [(pick.text, pick.position, pytest.approx(pick.q, abs=1e-5)) for pick in picks]


def test_a_document_has_the_positions_and_scores_that_it_has_alone(retriever: Retriever, tmp_path: Path) -> None:
    index = Index.build(retriever, DOCUMENTS, tmp_path / "all", positions="document")
    assert index.restarts == (0, 17, 40)
    assert Index.open(tmp_path / "all").restarts == index.restarts
    for document in DOCUMENTS:
        alone = Index.build(retriever, [document], tmp_path / str(document.name))
        wanted = retriever.search(QUESTION, alone, 3)
        assert scores(retriever.search(QUESTION, index, 3, filter={"source": document.name})) == scores(wanted)
    through = Index.build(retriever, DOCUMENTS, tmp_path / "through")
    assert through.restarts == (0,)
    of_b = [retriever.search(QUESTION, one, 3, filter={"source": "b"}) for one in (index, through)]
    assert scores(of_b[0]) != scores(of_b[1]), "so the option does something"


def test_changes_keep_where_positions_restart(retriever: Retriever, tmp_path: Path) -> None:
    Index.build(retriever, DOCUMENTS[:2], tmp_path / "index", positions="document")
    grown = Index.open(tmp_path / "index").add(retriever, DOCUMENTS[2])
    assert grown.restarts == (0, 17, 40)
    assert grown.remove(["a"]).restarts == (0, 23)


def test_parts_of_a_document_that_follow_each_other_are_one(retriever: Retriever, tmp_path: Path) -> None:
    parts = [Text("One here.", "a", {"page": 1}), Text("Two here.", "a", {"page": 2}), Text(" ", "empty"), Text("Three here.", "b")]
    unnamed = [Text("Four here."), Text("Five here.")]
    index = Index.build(retriever, [*parts, *unnamed], tmp_path / "index", positions="document")
    assert index.restarts == (0, 2, 3, 4)


def test_the_command_stores_and_shows_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_small_export(tmp_path / "export")
    source, place = str(write_files(tmp_path / "text")), str(tmp_path / "index")
    build = ["index", "build", source, place, "--retriever", str(tmp_path / "export")]
    assert main([*build, "--positions", "document"]) == 0
    assert main(["index", "info", place]) == 0
    assert "positions restart with each document" in capsys.readouterr().out
    assert main(["ask", place, QUESTION, "--budget", "3", "--trace", str(tmp_path / "trace.html")]) == 0
    assert "picked in interval" not in (tmp_path / "trace.html").read_text(encoding="utf-8")
    assert main(build) == 64
    assert "was built with positions = document, now index" in capsys.readouterr().err
    assert main([*build, "--positions", "chapter"]) == 64
    assert "--positions" in capsys.readouterr().err


def test_the_default_is_the_index_and_other_values_are_refused(retriever: Retriever, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="positions = 'text': must be index or document"):
        check_positions("text")
    Index.build(retriever, CHUNKS, tmp_path / "index")
    tree = json.loads((tmp_path / "index" / "meta.json").read_text())
    assert (tree["version"], tree["positions"]) == (5, "index")
