"""Every token of a text is in the window of some chunk, with every kind of tokenizer: an oracle follows each character."""

from __future__ import annotations

import base64
import random
from pathlib import Path

import pytest
from hypothesis import given, seed, settings
from hypothesis import strategies as st

from qrag_jax.retrieve.chunks import chunk_text
from tests.support.oracles.windows import lost, tokens_of
from tests.support.tokenizers import KINDS, small, texts

SHARED = Path(__file__).resolve().parents[2].parent / "shared/data/books"
TABLE = "| name | price |\n|---|---|\n" + "\n".join(f"| item {i} | {i * 7} |" for i in range(60))
LIST = "# What to buy\n\n- milk, 2 l\n- bread\n  1. white\n  2. brown. Not too much.\n\n```python\nx = [1.5, .5]\nprint(x)\n```\n"
TEXTS = {
    **texts(),
    "table": TABLE,
    "list": LIST,
    "program": Path(__file__).read_text(encoding="utf-8"),
    "base64": base64.b64encode(random.Random(0).randbytes(3000)).decode(),
    "gene": "ACGT" * 300,
    "dots": "." * 1000,
    "no mark": "word " * 500,
    "emoji": "👩‍👩‍👧‍👦🇫🇷" * 40,
    "accents": "e\u0301\u0302" * 200,
    "controls": "a\x00b\x1b[31mc\ufeff\u200b d\u2028e",
}
ALL_KINDS = pytest.mark.parametrize("kind", KINDS)
BY = pytest.mark.parametrize("by", ["tokens", "parts"])


def check(text: str, kind: str, max_tokens: int, by) -> None:
    tokenizer = small(kind)
    library = tokenizer._tokenizer
    window = tokenizer.room(max_tokens)
    chunks = chunk_text(text, tokenizer, max_tokens, by)
    spans = [(chunk.start, chunk.end) for chunk in chunks]
    assert all(text[chunk.start : chunk.end] == chunk.text for chunk in chunks)
    sizes = [len(tokens_of(library, chunk.text)) for chunk in chunks]
    assert min(sizes, default=1) >= 1, "no chunk is empty"
    assert all(size <= window or len(chunk.text) == 1 for size, chunk in zip(sizes, chunks, strict=True)), "no chunk is too long"
    assert lost(library, text, spans, window) == []
    rows = tokenizer.rows([chunk.text for chunk in chunks], max_tokens) if chunks else []
    assert sum(int((row >= 0).sum()) for row in rows) == sum(sizes) + len(sizes) * (max_tokens - window), "what is embedded"


@ALL_KINDS
@BY
@pytest.mark.parametrize("max_tokens", [8, 16, 64])
@pytest.mark.parametrize("name", TEXTS)
def test_no_token_is_outside_the_windows(name: str, max_tokens: int, by, kind: str) -> None:
    check(TEXTS[name], kind, max_tokens, by)


@ALL_KINDS
@BY
@seed(0)
@settings(max_examples=60, deadline=None, database=None)
@given(
    text=st.text(max_size=120) | st.text(st.sampled_from("ab .!?。|\n\té好\u0301\u200d\x00A1"), max_size=200), max_tokens=st.integers(7, 20)
)
def test_nor_of_any_other_text(text: str, max_tokens: int, by, kind: str) -> None:
    check(text, kind, max_tokens, by)


@pytest.mark.slow
@ALL_KINDS
@BY
@seed(1)
@settings(max_examples=1000, deadline=None, database=None)
@given(text=st.text(max_size=300), max_tokens=st.integers(7, 40))
def test_nor_of_thousands_of_texts(text: str, max_tokens: int, by, kind: str) -> None:
    check(text, kind, max_tokens, by)


@ALL_KINDS
@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the books of shared/")
def test_nor_of_a_book(kind: str) -> None:
    book = min((SHARED / "test").glob("*.txt"), key=lambda path: path.stat().st_size)
    check(book.read_text(encoding="utf-8")[:60_000], kind, 16, "parts")


@pytest.mark.slow
@ALL_KINDS
@BY
@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the books of shared/")
def test_nor_of_a_long_part_of_a_book(kind: str, by) -> None:
    book = min((SHARED / "test").glob("*.txt"), key=lambda path: path.stat().st_size)
    check(book.read_text(encoding="utf-8")[:300_000], kind, 24, by)


def test_a_word_that_wordpiece_cannot_read_is_broken_until_it_can() -> None:
    tokenizer = small("wordpiece")
    assert not tokenizer.reads("see " + "x" * 101)
    assert tokenizer.reads("see " + "x-" * 101)
    chunks = chunk_text("A gene is " + "acgt" * 100 + " and so on.", tokenizer, 400)
    assert tokenizer.unknown([chunk.text for chunk in chunks]) == [0] * len(chunks)
