"""Prepared data must read exactly as the text files it was made from, and say so when they have changed."""

from __future__ import annotations

import functools
import http.server
import shutil
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qrag_jax.data.babilong import stories as babi
from qrag_jax.data.babilong.stories import load_stories
from qrag_jax.data.multihop import questions as multihop
from qrag_jax.data.multihop.hotpotqa import HOTPOTQA
from qrag_jax.data.multihop.musique import MUSIQUE
from qrag_jax.data.multihop.twowiki import TWOWIKI
from qrag_jax.data.prepared import prepared_folder
from qrag_jax.data.splits import SPLITS
from qrag_jax.data.text import haystack
from qrag_jax.data.text.haystack import load_haystack

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"
BENCHMARKS = {benchmark.name: benchmark for benchmark in (HOTPOTQA, MUSIQUE, TWOWIKI)}
SPLIT_SIZES = {"train": 5, "test": 2}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    (folder / "babi" / "en-10k").mkdir(parents=True)
    for path in (FIXTURES / "babi").glob("qa2_*.txt"):
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


@pytest.mark.parametrize("name", BENCHMARKS)
def test_prepared_questions_read_as_the_files_do(tmp_path: Path, name: str) -> None:
    from qrag_jax.data.tfds_builders import prepare

    benchmark = BENCHMARKS[name]
    shutil.copytree(FIXTURES / benchmark.folder, tmp_path / benchmark.folder)
    folder = str(tmp_path)
    texts = {split: multihop.read_split(benchmark, folder, split, False) for split in SPLITS}
    assert prepare(tmp_path) == [prepared_folder(tmp_path, "multihop", name)]
    multihop.read_split.cache_clear()
    assert {split: multihop.read_split(benchmark, folder, split, False) for split in SPLITS} == texts
    assert "tensorflow" not in sys.modules
    shutil.move(tmp_path / benchmark.folder, tmp_path / "elsewhere")
    multihop.read_split.cache_clear()
    assert multihop.read_split(benchmark, folder, "test", False) == texts["test"]


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args: Any) -> None:
        pass


def test_official_files_can_be_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from qrag_jax.data import tfds_builders

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Quiet, directory=str(FIXTURES / "hotpotqa")))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        train, test = (f"http://127.0.0.1:{server.server_port}/{name}" for name in HOTPOTQA.files[1])
        local = replace(HOTPOTQA, downloads=(train, test))
        monkeypatch.setitem(tfds_builders.MULTIHOP, "hotpotqa", local)
        tfds_builders.prepare(tmp_path, download=["hotpotqa"])
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
    for split in SPLITS:
        assert multihop.read_split(HOTPOTQA, str(tmp_path), split, False) == multihop.read_split(HOTPOTQA, str(FIXTURES), split, False)
    with pytest.raises(ValueError, match=r"looked for in data_dir/musique: .* They come from https://github.com/StonyBrookNLP/musique"):
        tfds_builders.prepare(tmp_path, download=["musique"])
    with pytest.raises(ValueError, match="download = 'squid': unknown; known: hotpotqa, musique, twowiki"):
        tfds_builders.prepare(tmp_path, download=["squid"])
