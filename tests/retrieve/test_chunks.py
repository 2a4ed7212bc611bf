"""Texts are cut into chunks with a tokenizer: their characters, and the budget of tokens, special ones included."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qrag_jax.retrieve.chunks import Chunk, chunk_text
from tests.support.small import small_tokenizer


@settings(max_examples=40, deadline=None)
@given(st.text(alphabet=st.sampled_from("ab .!?\n\té"), min_size=1, max_size=300), st.integers(4, 12))
def test_chunks_hold_the_whole_text_within_the_budget(text, budget):
    tokenizer = small_tokenizer()
    if not text.strip():
        with pytest.raises(ValueError, match="no sentences"):
            chunk_text(text, tokenizer, budget)
        return
    chunks = chunk_text(text, tokenizer, budget)
    assert all(text[c.start : c.end] == c.text for c in chunks)
    assert "".join("".join(c.text.split()) for c in chunks) == "".join(text.split())
    assert all(a.end <= b.start for a, b in pairwise(chunks))


def test_a_sentence_a_chunk():
    text = "Mr. Smith went to the garden. Yes. " + "Mary " * 30
    chunks = chunk_text(text, small_tokenizer(), 12, "sentence")
    assert [c.text for c in chunks] == ["Mr. Smith went to the garden.", "Yes.", ("Mary " * 30).strip()]
    assert chunks[1] == Chunk("Yes.", 30, 34)
    with pytest.raises(ValueError, match="no sentences"):
        chunk_text(" \n ", small_tokenizer(), 12, "sentence")


def test_special_tokens_count_and_sentences_are_broken_only_when_too_long():
    tokenizer = small_tokenizer()
    text = "Mary went to the garden. John went to the garden. " + "Mary " * 30
    chunks = chunk_text(text, tokenizer, 12)
    assert [c.text for c in chunks[:2]] == ["Mary went to the garden.", "John went to the garden."]
    assert ((tokenizer.rows([c.text for c in chunks], 64) >= 0).sum(1) <= 12).all()
    with pytest.raises(ValueError, match="max_tokens = 2: must leave room"):
        chunk_text(text, tokenizer, 2)
