"""Chunks as places in a text: sentences, or sentences packed to a budget of tokens."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qrag_jax.data.text.chunker import chunk_spans


def words(text: str) -> list[tuple[int, int]]:
    """A token a word or mark."""
    return [match.span() for match in re.finditer(r"\w+|[^\w\s]", text)]


def utf8(text: str) -> list[tuple[int, int]]:
    """A token a byte, white space too, as byte-level tokenizers have it."""
    return [(i, i + 1) for i, character in enumerate(text) for _ in character.encode()]


def cut(text: str, max_tokens: int, **options) -> list[str]:
    return [text[start:end] for start, end in chunk_spans(text, words, max_tokens, **options)]


TEXT = "Mr. Smith left. He ran.  Why?\n\nNobody knows but the old man on the hill. Go on."


def test_sentences_are_packed_whole() -> None:
    # Tokens of the sentences: 5, 3, 2, 10, 3.
    assert cut(TEXT, 10) == ["Mr. Smith left. He ran.  Why?", "Nobody knows but the old man on the hill.", "Go on."]
    assert cut(TEXT, 100) == [TEXT]


def test_only_a_long_sentence_is_broken_and_its_rest_is_filled_up() -> None:
    assert cut(TEXT, 7) == ["Mr. Smith left.", "He ran.  Why?", "Nobody knows but the old man on", "the hill. Go on."]


def test_by_sentence_none_is_broken() -> None:
    assert cut(TEXT, 2, by="sentence") == ["Mr. Smith left.", "He ran.", "Why?", "Nobody knows but the old man on the hill.", "Go on."]


def test_the_bytes_of_a_character_stay_together() -> None:
    text = "aé好b"  # 1 + 2 + 3 + 1 bytes
    assert [text[a:b] for a, b in chunk_spans(text, utf8, 3)] == ["aé", "好", "b"]
    assert [text[a:b] for a, b in chunk_spans(text, utf8, 1)] == ["a", "é", "好", "b"], "a character is not broken"


def test_white_space_alone_is_no_chunk() -> None:
    assert chunk_spans("a" + " " * 9 + "b", utf8, 3) == [(0, 1), (10, 11)]
    assert chunk_spans(" \n ", utf8, 3) == []


@pytest.mark.parametrize("tokens", [words, utf8])
@settings(max_examples=200, deadline=None)
@given(text=st.text(alphabet=st.sampled_from("abA .!?。\n\té好"), max_size=200), budget=st.integers(3, 12))
def test_chunks_hold_the_whole_text_within_the_budget(tokens, text: str, budget: int) -> None:
    spans = chunk_spans(text, tokens, budget)
    assert "".join("".join(text[a:b].split()) for a, b in spans) == "".join(text.split())
    assert all(a[1] <= b[0] for a, b in pairwise(spans))
    assert all(text[a:b] and text[a:b] == text[a:b].strip() for a, b in spans)
    if tokens is words:
        assert all(len(words(text[a:b])) <= budget for a, b in spans)
