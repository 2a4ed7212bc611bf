"""The retrievers inside the package."""

from __future__ import annotations

from pathlib import Path

import pytest

from qrag_jax import Retriever
from qrag_jax.export.adapter import is_adapter
from qrag_jax.export.folder import read_settings
from qrag_jax.export.hub import SHIPPED, find_model, is_named
from qrag_jax.models.folder import read_object
from qrag_jax.models.pretrained import find_folder

LARGEST = 4_000_000  # bytes


@pytest.mark.parametrize("name", sorted(SHIPPED))
def test_a_shipped_retriever_is_a_small_adapter_with_a_card(name: str) -> None:
    folder = find_model(name)
    assert is_named(name), "an index remembers it by its name"
    assert is_adapter(folder)
    assert sum(path.stat().st_size for path in folder.iterdir()) <= LARGEST
    settings = read_settings(folder / "qrag.json", read_object(folder / "qrag.json"), "qrag-jax-adapter", 2)
    assert settings["threshold"] is not None
    assert settings["config"].data.data_dir is None
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert all(word in card for word in ("python -m experiments.", "licence", "all@"))


def test_a_folder_of_that_name_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "minilm-multihop").mkdir()
    assert find_model("minilm-multihop") == Path("minilm-multihop")


@pytest.mark.slow
@pytest.mark.real_weights
def test_it_finds_two_facts_that_share_no_word() -> None:
    try:
        find_folder("minilm", field="model.embedder")
    except ValueError as error:
        pytest.skip(str(error))
    retriever = Retriever.from_pretrained("minilm-multihop")
    texts = [
        "The Silent Harbour is a 1974 film directed by Ernst Halloway.",
        "Ernst Halloway was born in the village of Dunmere, on the west coast.",
        "The Loud Harbour is a pub in Bristol.",
        "Dunmore is a town in the east.",
        "Many directors were born in villages.",
        "Bread is made of flour, water and salt.",
    ]
    picks = retriever.search("Where was the director of the film The Silent Harbour born?", texts, budget=2)
    assert [pick.chunk for pick in picks] == [0, 1]
