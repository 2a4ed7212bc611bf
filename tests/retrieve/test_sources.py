"""Sources as people have them: what is read, what is refused in one line, and what the user is told about the rest."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from qrag_jax.retrieve.chunks import Chunk
from qrag_jax.retrieve.index import Index
from qrag_jax.retrieve.records import SourceRecord, notices
from qrag_jax.retrieve.retriever import Retriever
from qrag_jax.retrieve.sources import ChunkStream
from qrag_jax.rundir.log import say
from qrag_jax.rundir.printable import printable
from tests.support.index import CHUNKS, small_retriever
from tests.support.small import changed, small_tokenizer
from tests.support.tokenizers import small

SENTENCES = ["Mary went to the garden.", "John took the milk there."]


def chunks(source: object) -> list[Chunk]:
    return list(ChunkStream(source, small_tokenizer(), 16, "sentence"))


@pytest.fixture(scope="module")
def retriever() -> Retriever:
    return small_retriever()


def generated() -> Iterator[str]:
    yield from SENTENCES


@pytest.mark.parametrize("source", [SENTENCES, tuple(SENTENCES), generated(), np.array(SENTENCES), np.array(SENTENCES, object)], ids=type)
def test_texts_in_any_container_are_chunks(source: object) -> None:
    found = chunks(source)
    assert found == [Chunk(text) for text in SENTENCES]
    assert all(type(chunk.text) is str for chunk in found)


@pytest.mark.parametrize(("text", "metadata"), [("page_content", "metadata"), ("text", "metadata"), ("content", "meta")])
def test_documents_of_frameworks_are_read_by_their_text_and_origin(text: str, metadata: str) -> None:
    documents = [SimpleNamespace(**{text: sentence, metadata: {"source": f"{i}.txt", "page": i}}) for i, sentence in enumerate(SENTENCES)]
    documents.append(SimpleNamespace(**{text: "Sandra stayed.", metadata: {}}))
    assert chunks(documents) == [
        Chunk(SENTENCES[0], source="0.txt", metadata={"page": 0}),
        Chunk(SENTENCES[1], source="1.txt", metadata={"page": 1}),
        Chunk("Sandra stayed."),
    ]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (["Mary.", ""], "chunk 1 = '': must be a text that is not empty"),
        (["Mary.", " \n"], "chunk 1 = .*: must be a text that is not empty"),
        (["Mary.", None], "chunk 1 = None: must be a text"),
        (["Mary.", b"John."], "chunk 1 = b'John.': must be a text"),
        ([Path("a.txt")], "chunk 0 = 'a.txt' is a Path: give one file or one folder"),
        (["a\ud800"], "chunk 0: character 1 is half of a surrogate pair"),
        ("a\ud800", "source: character 1 is half of a surrogate pair"),
        (np.array([1.5]), "chunk 0 = .*1.5.*: must be a text"),
        ([], "source holds no chunks"),
        (iter(()), "source holds no chunks"),
        (b"Mary.", "source is of type bytes: must be a text"),
        ({"a": "b"}, "source is of type dict: must be a text"),
        ("\ufeff \n", "nothing to search"),
        ("\x00\x01", "nothing to search"),
    ],
)
def test_what_is_no_text_is_refused(retriever: Retriever, source: object, message: str) -> None:
    with pytest.raises(ValueError, match=message) as refused:
        retriever.document(source)
    assert "\n" not in str(refused.value)


def test_a_byte_order_mark_is_in_no_chunk(tmp_path: Path) -> None:
    text = "\ufeffMary went to the garden. John slept."
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    assert chunks(tmp_path / "a.txt")[0] == Chunk("Mary went to the garden.", 1, 25, "a.txt")
    assert chunks(text)[0] == Chunk("Mary went to the garden.", 1, 25)
    (tmp_path / "b.txt").write_bytes("Mary.".encode("utf-16"))
    with pytest.raises(ValueError, match=r"b\.txt: byte 0 is 0xff, which is not UTF-8"):
        chunks(tmp_path / "b.txt")


def test_names_that_are_not_utf8_are_written_with_escapes(retriever: Retriever, tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    try:
        Path(os.fsdecode(os.fsencode(folder) + b"/caf\xe9.txt")).write_text("Mary went to the garden.")
    except OSError:
        pytest.skip("this file system takes no such name")
    index = Index.build(retriever, folder, tmp_path / "index")
    assert index.chunk(0).source == "caf\\xe9.txt"
    assert index.meta.sources[0].name == "caf\\xe9.txt"


def test_what_a_search_does_not_see_is_counted_and_said(retriever: Retriever, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    for name in ("a.txt", "b.doc", "c.DOC", "d.rtf", "LICENSE", ".e.txt"):
        (folder / name).write_text("Mary went to the garden. " * 3)
    (folder / "f.txt").write_text("他说今天天气很好。")
    index = Index.build(retriever, folder, tmp_path / "index")
    said = capsys.readouterr().out.splitlines()
    assert index.meta.skipped == {".doc": 2, ".rtf": 1, "no suffix": 1, "hidden": 1}
    total = SourceRecord.total(index.meta.sources)
    assert total == SourceRecord(None, 84, 4, 6 * 3 + 9, 0, 0, 1), "6 tokens a sentence, 9 unknown ones"
    assert said[0].startswith("unknown: 1 of 4 chunks are mostly tokens")
    assert said[1].startswith("skipped: .doc 2, .rtf 1, hidden 1, no suffix 1; only .csv, .docx, .epub,")
    assert said[1].endswith(".tsv and .txt files are read; hidden ones and links out of the folder are not")
    again = Index.open(index.path).meta
    assert (again.sources, again.skipped) == (index.meta.sources, index.meta.skipped)
    grown = index.add(retriever, ["Mary " * 40, *SENTENCES])
    assert capsys.readouterr().out.startswith("cut: 1 of 3 chunks are longer than what is embedded; 26 of 57 tokens lie outside; build")
    assert SourceRecord.total(grown.meta.sources).outside == 26
    assert grown.meta.skipped == index.meta.skipped


def test_notices_of_an_index_that_did_not_count() -> None:
    old, new = SourceRecord("a", 5, 1), SourceRecord("b", 5, 1, 2, 0, 0, 0)
    assert SourceRecord.total([old, new]) == SourceRecord(None, 10, 2)
    assert SourceRecord.total([]) == SourceRecord(None, 0, 0, 0, 0, 0, 0)
    assert notices([old, new], {}, {}) == []


@pytest.mark.parametrize("kind", ["wordpiece", "unigram", "byte level"])
def test_unknown_tokens_are_counted_for_every_kind_of_tokenizer(kind: str) -> None:
    tokenizer = small(kind)
    record = SourceRecord.count(None, 0, ["Mary went to the kitchen.", "\u4dc0\u4dc1\u4dc2", "\x01"], tokenizer, 16)
    assert record.unknown == (0 if kind == "byte level" else 2)


def test_what_a_search_says_names_no_setting_that_its_user_cannot_give(capsys: pytest.CaptureFixture[str]) -> None:
    """Settings such as data.question_tokens are those of training."""
    found = small_retriever()
    short = changed(found.config, data={"state_tokens": 14})
    one = Retriever(short, found.embedder, found.params, found.tokenizer)
    one.search("Where is Mary " * 9, CHUNKS, 4)
    told = capsys.readouterr().out
    assert "ask a shorter question" in told
    assert "ask for fewer picks" in told
    with pytest.raises(ValueError, match=r"budget = 40: a state .* lower the budget") as refused:
        found.search("Where is Mary?", ["Mary went to the garden."] * 40, 40)
    assert "data." not in told + str(refused.value)


def test_a_question_that_is_cut_is_said(retriever: Retriever, capsys: pytest.CaptureFixture[str]) -> None:
    """12 tokens with the special ones, so 10 of the question are read."""
    document = retriever.document(CHUNKS)
    retriever.search("Where is Mary?", document, 1)
    assert capsys.readouterr().out == ""
    long = "Where is Mary " * 4 + "?"
    first = retriever.search(long + " In the garden?", document, 1)
    assert capsys.readouterr().out.startswith("cut: the question is longer than the 10 tokens that the retriever reads; up to ")
    assert retriever.search(long + " In the kitchen?", document, 1) == first, "the questions differ after the cut"
    assert capsys.readouterr().out.count("cut: the question") == 1, "each such question is said"
    retriever.search_batch([long, "Where is Mary?"], document, 1)
    assert capsys.readouterr().out.startswith("cut: 1 of 2 questions are longer")


@pytest.mark.parametrize(("question", "message"), [("a\ud800", "question: character 1 is half"), (" ", "is empty")])
def test_questions_that_are_no_text_are_refused(retriever: Retriever, question: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        retriever.search(question, CHUNKS, 1)


def test_whether_anything_fits(retriever: Retriever) -> None:
    picks = retriever.search("Where is Mary?", CHUNKS, 2)
    best = max(pick.q for pick in picks)
    with_threshold = lambda value: Retriever(retriever.config, retriever.embedder, retriever.params, retriever.tokenizer, value)
    assert with_threshold(best).fits(picks)
    assert not with_threshold(best + 0.1).fits(picks)
    assert not with_threshold(best).fits([])
    with pytest.raises(ValueError, match="no calibrated threshold"):
        retriever.fits(picks)


def test_control_characters_never_reach_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert printable("\x1b[31mred\x07\x9b \u202eabc\ud800\r\n\té好") == "\\x1b[31mred\\x07\\x9b \\u202eabc\\ud800\r\n\té好"
    say("a\x1b]0;title\x07b")
    assert capsys.readouterr().out == "a\\x1b]0;title\\x07b\n"
