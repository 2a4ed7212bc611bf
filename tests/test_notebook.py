"""docs/quickstart.ipynb runs from its first cell to its last one, in a folder of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.support.processes import environment

NOTEBOOK = ROOT / "docs" / "quickstart.ipynb"
SHORTER = {'tokens=("1k", "4k"), episodes=50': 'tokens=("1k",), episodes=10', "steps=40, eval_every=40": "steps=10, eval_every=10"}
"""Parts of cells that take long -> what the test runs instead."""


def test_the_notebook_is_small_and_shows_no_place_of_a_machine() -> None:
    text = NOTEBOOK.read_text(encoding="utf-8")
    assert len(text) < 20_000
    assert "/home/" not in text
    assert "/tmp/" not in text
    assert '"traceback"' not in text


@pytest.mark.slow
@pytest.mark.processes
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")  # of Jupyter
def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import nbformat
    from nbclient import NotebookClient

    shortened = set[str]()
    for name, value in {**environment(), "PYTHONPATH": str(ROOT), "XLA_FLAGS": ""}.items():
        monkeypatch.setenv(name, value)
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    for cell in notebook.cells:
        for long, short in SHORTER.items():
            if long in cell.source:
                cell.source = cell.source.replace(long, short)
                shortened.add(long)
    assert shortened == set(SHORTER)
    NotebookClient(notebook, timeout=900, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    shown = "".join(output["text"] for output in outputs if output.get("name") == "stdout")
    assert "\nresults are in quickstart/qa1\n" in shown
    assert "Mary moved to the garden." in shown
    assert (tmp_path / "quickstart" / "trace.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    assert len([output for output in outputs if output["output_type"] == "execute_result"]) == 3
