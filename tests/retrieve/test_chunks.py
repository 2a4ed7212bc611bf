"""Texts are cut into chunks with a tokenizer: their characters, and the budget of tokens, special ones included."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from qrag_jax.models.tokenizer import TextTokenizer
from qrag_jax.retrieve.chunks import Chunk, chunk_text
from tests.support.small import small_tokenizer


def test_a_sentence_a_chunk():
    text = "Mary went to the garden. Yes. " + "Mary " * 30
    chunks = chunk_text(text, small_tokenizer(), 12, "sentence")
    assert [c.text for c in chunks] == ["Mary went to the garden.", "Yes.", ("Mary " * 30).strip()], "whole, as in training"
    chunks = chunk_text(text, small_tokenizer(), 12, "parts")
    assert [c.text for c in chunks[:2]] == ["Mary went to the garden.", "Yes."]
    assert sum(c.text.count("Mary") for c in chunks[2:]) == 30
    assert all(7 <= c.text.count("Mary") <= 10 for c in chunks[2:]), "a long sentence is broken into parts of about equal length"
    assert chunks[1] == Chunk("Yes.", 25, 29)
    assert chunk_text(" \n ", small_tokenizer(), 12, "sentence") == []


def test_special_tokens_count_and_sentences_are_broken_only_when_too_long():
    tokenizer = small_tokenizer()
    text = "Mary went to the garden. John went to the garden. " + "Mary " * 30
    chunks = chunk_text(text, tokenizer, 12)
    assert [c.text for c in chunks[:2]] == ["Mary went to the garden.", "John went to the garden."]
    assert ((tokenizer.rows([c.text for c in chunks], 64) >= 0).sum(1) <= 12).all()
    with pytest.raises(ValueError, match="max_tokens = 2: must leave room"):
        chunk_text(text, tokenizer, 2)


def test_a_text_is_tokenised_once(monkeypatch):
    """What the chunker counts is what is embedded: by sentence, no text goes through the tokenizer again."""
    tokenizer = TextTokenizer(small_tokenizer()._tokenizer)
    text = "Mary went to the garden. John went to the garden.\n\nMary slept."
    chunks = chunk_text(text, tokenizer, 12, "sentence")
    again: list[str] = []
    monkeypatch.setattr(tokenizer, "_tokenizer", SimpleNamespace(encode_batch_fast=lambda texts, **_: again.extend(texts) or []))
    assert len(tokenizer.rows([chunk.text for chunk in chunks], 12)) == 3
    assert again == []
