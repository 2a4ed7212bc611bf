"""docs/quickstart.ipynb runs from its first cell to its last one, in a folder of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.support.processes import environment

NOTEBOOK = ROOT / "docs" / "quickstart.ipynb"


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

    for name, value in {**environment(), "PYTHONPATH": str(ROOT), "XLA_FLAGS": ""}.items():
        monkeypatch.setenv(name, value)
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(notebook, timeout=900, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    shown = "".join(output["text"] for output in outputs if output.get("name") == "stdout")
    assert "\nresults are in quickstart/qa1\n" in shown
    assert "Mary moved to the garden." in shown
    assert (tmp_path / "quickstart" / "trace.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    assert len([output for output in outputs if output["output_type"] == "execute_result"]) == 3
