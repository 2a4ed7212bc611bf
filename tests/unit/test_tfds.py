"""Prepared data must read exactly as the text files it was made from, and say so when they have changed."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from qrag_jax.data import babi, haystack
from qrag_jax.data.babi import load_stories
from qrag_jax.data.haystack import load_haystack
from qrag_jax.data.prepared import prepared_folder
from qrag_jax.data.splits import SPLITS

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures" / "babi"
SPLIT_SIZES = {"train": 5, "test": 2}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    (folder / "babi" / "en-10k").mkdir(parents=True)
    for path in FIXTURES.glob("qa2_*.txt"):
        shutil.copy(path, folder / "babi" / "en-10k")
    for split, count in SPLIT_SIZES.items():
        (folder / "books" / split).mkdir(parents=True)
        for i in range(count):
            text = "\n\n".join(f"In café {i} of the {split} town, guest number {k} asked “Who is there?” aloud." for k in range(300 + i))
            (folder / "books" / split / f"{split}_{i}.txt").write_text(text, encoding="utf-8")
    return folder


def _forget() -> None:
    load_haystack.cache_clear()
    babi._read.cache_clear()
    haystack.book_sentences.cache_clear()


def test_prepared_data_reads_as_the_text_does(source: Path) -> None:
    from qrag_jax.data.tfds_builders import prepare

    _forget()
    stacks = {(split, limit): load_haystack(str(source), split, limit) for split in SPLITS for limit in (None, 301)}
    stories = {split: load_stories(str(source), "qa2", split) for split in SPLITS}
    folders = prepare(source)
    assert [folder.parts[-2] for folder in folders] == ["qa2", "book_sentences"]
    assert prepared_folder(source, "babi", "qa2")
    assert not prepared_folder(source, "babi", "qa1")
    _forget()
    assert {key: load_haystack(str(source), *key) for key in stacks} == stacks
    assert {split: load_stories(str(source), "qa2", split) for split in SPLITS} == stories
    assert len(stories["test"]) == 3
    assert len(stacks["test", None].sentences) == 601
    assert "tensorflow" not in sys.modules

    # The prepared folder stands for itself when the text is gone, ...
    shutil.move(source / "books", source / "elsewhere")
    _forget()
    assert load_haystack(str(source), "test") == stacks["test", None]

    # ... but not when the text is there and is another one, until it is prepared again.
    shutil.move(source / "elsewhere", source / "books")
    with (source / "books" / "test" / "test_0.txt").open("a", encoding="utf-8") as book:
        book.write("\n\nOne more guest came late at night and asked for the number of his room.")
    _forget()
    with pytest.raises(ValueError, match=r"book_sentences.*prepared from other files .* run `python -m experiments.prepare_data` again"):
        load_haystack(str(source), "test")
    prepare(source)
    _forget()
    assert len(load_haystack(str(source), "test").sentences) == 602


def test_preparing_nothing_is_an_error(tmp_path: Path) -> None:
    from qrag_jax.data.tfds_builders import prepare

    with pytest.raises(ValueError, match=r"holds neither babi/en-10k/\*\.txt nor books/"):
        prepare(tmp_path)
