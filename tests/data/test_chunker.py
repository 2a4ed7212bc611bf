"""Chunks as places in a text: sentences, or sentences packed to a budget of tokens."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import example, given, seed, settings
from hypothesis import strategies as st

from qrag_jax.data.text.chunker import CHARACTERS, chunk_spans


def words(texts: Sequence[str]) -> list[int]:
    """A token a word or mark."""
    return [len(re.findall(r"\w+|[^\w\s]", text)) for text in texts]


def utf8(texts: Sequence[str]) -> list[int]:
    """A token a byte, white space too, as byte-level tokenizers have it."""
    return [len(text.encode()) for text in texts]


def awkward(texts: Sequence[str]) -> list[int]:
    """Texts have more tokens than their parts: a token a word, and one for each full stop that is not the last character."""
    return [count + text[:-1].count(".") for text, count in zip(texts, words(texts), strict=True)]


def cut(text: str, max_tokens: int, **options) -> list[str]:
    return [text[start:end] for start, end in chunk_spans(text, words, max_tokens, **options)]


TEXT = "Mr. Smith left. He ran.  Why?\n\nNobody knows but the old man on the hill. Go on."


def test_sentences_are_packed_whole() -> None:
    # Tokens of the sentences: 5, 3, 2, 10, 3.
    assert cut(TEXT, 10) == ["Mr. Smith left. He ran.  Why?", "Nobody knows but the old man on the hill.", "Go on."]
    assert cut(TEXT, 100) == [TEXT]


def test_only_a_long_sentence_is_broken_and_its_rest_is_filled_up() -> None:
    assert cut(TEXT, 7) == ["Mr. Smith left.", "He ran.  Why?", "Nobody knows but the", "old man on the hill.", "Go on."]
    assert cut(TEXT, 9)[-1] == "old man on the hill. Go on.", "the rest is filled up"


def test_by_sentence_only_a_long_one_is_broken() -> None:
    sentences = ["Mr. Smith left.", "He ran.", "Why?", "Nobody knows but the old man on the hill.", "Go on."]
    assert cut(TEXT, 10, by="parts") == cut(TEXT, 6, by="sentence") == sentences
    assert cut(TEXT, 6, by="parts") == [*sentences[:3], "Nobody knows but the", "old man on the hill.", "Go on."]


def test_what_has_no_end_of_a_sentence_is_broken_at_lines_then_words_then_characters() -> None:
    table = "| a | b |\n| c | d |\n| e | f |"  # 5 tokens a row
    assert cut(table, 5) == table.split("\n")
    assert cut(table, 11) == ["| a | b |\n| c | d |", "| e | f |"]
    assert cut("one two three, four\nfive", 3) == ["one two", "three, four", "five"]
    assert [len(piece) for piece in cut("x" * 100, 3)] == [33, 33, 34], "48 characters at most, in pieces of equal length"
    assert max(map(len, cut("x" * 10_000, 3))) <= 3 * CHARACTERS


def test_the_bytes_and_accents_of_a_character_stay_together() -> None:
    text = "aé好b"  # 1 + 2 + 3 + 1 bytes
    assert [text[a:b] for a, b in chunk_spans(text, utf8, 3)] == ["aé", "好", "b"]
    assert [text[a:b] for a, b in chunk_spans(text, utf8, 1)] == ["a", "é", "好", "b"], "a character is not broken"
    text = "e\u0301" * 6  # 3 bytes each
    assert [text[a:b] for a, b in chunk_spans(text, utf8, 4)] == ["e\u0301"] * 6


def test_white_space_alone_is_no_chunk() -> None:
    assert chunk_spans("a" + " " * 9 + "b", utf8, 3) == [(0, 1), (10, 11)]
    assert chunk_spans(" \n ", utf8, 3) == []


def test_what_has_no_tokens_is_no_chunk() -> None:
    visible = lambda texts: words([text.replace("\0", "") for text in texts])
    assert chunk_spans("\0" * 1000, visible, 3) == []
    assert chunk_spans("\0\0 a", visible, 3) == [(0, 4)]


@pytest.mark.parametrize("by", ["tokens", "parts"])
@pytest.mark.parametrize("tokens", [words, utf8, awkward])
@seed(0)
@settings(max_examples=150, deadline=None, database=None)
@given(text=st.text(alphabet=st.sampled_from("abA .!?。，|\n\té\u0301\u200d好"), max_size=200), budget=st.integers(3, 12))
@example(text="a.a." * 40, budget=5)
@example(text="\u0301" * 60, budget=3)
def test_chunks_hold_the_whole_text_within_the_budget(tokens, by, text: str, budget: int) -> None:
    spans = chunk_spans(text, tokens, budget, by)
    kept = [text[a:b] for a, b in spans]
    assert "".join("".join(kept).split()) == "".join(text.split())
    assert all(a[1] <= b[0] for a, b in pairwise(spans))
    assert all(piece and piece == piece.strip() for piece in kept)
    assert all(size <= budget or len(piece) == 1 for size, piece in zip(tokens(kept), kept, strict=True))


@pytest.mark.parametrize("unit", [".", "。", "x", "x ", "x\n", "\u0301", "a.", " ", "| "])
def test_time_is_linear_and_no_long_text_is_tokenised(unit: str) -> None:
    counted = 0

    def count(texts: Sequence[str]) -> list[int]:
        nonlocal counted
        counted += sum(map(len, texts))
        assert all(len(text) <= 14 * CHARACTERS for text in texts)
        return words(texts)

    text = unit * (40_000 // len(unit))
    chunk_spans(text, count, 14)
    assert counted <= 6 * len(text)
