"""Sentences out of running text, and the two haystacks made of them: a folder of books, and Python's documentation."""

from __future__ import annotations

from pathlib import Path

import pytest

from qrag_jax.data.splits import SPLITS, hashed_split, stable_fraction
from qrag_jax.data.text.haystack import PYTHON_DOCS, book_paths, load_haystack
from qrag_jax.data.text.sentences import MAX_TOKENS, MIN_TOKENS, count_tokens, split_sentences

LONG = "walked slowly down to the old harbour to look at the ships"


def test_abbreviations_and_initials_do_not_end_a_sentence() -> None:
    text = f"Mr. J. S. Smith and Mrs. Jones {LONG}. Then Dr. Brown and Capt. Hill {LONG}, at No. 5 Mill St. Petersburg Lane."
    assert len(split_sentences(text)) == 2
    assert split_sentences(text)[0] == f"Mr. J. S. Smith and Mrs. Jones {LONG}."


@pytest.mark.parametrize("end", [".", "!", "?", "...", '."', "!'", "?”", ".)"])
def test_marks_and_closing_quotes_end_a_sentence(end: str) -> None:
    first, second = f"The captain {LONG}{end}", f"“Never,” said the mate, who {LONG}."
    assert split_sentences(f"{first} {second}") == [first, second]


def test_words_that_look_like_abbreviations() -> None:
    assert len(split_sentences(f"When they asked, he and I {LONG} and said no. The captain and I {LONG}.")) == 2
    assert len(split_sentences(f"It was she and I. The captain {LONG}, and so did the mate and I. Nobody else {LONG}.")) == 2


def test_white_space_is_folded_and_paragraphs_are_kept_apart() -> None:
    text = f"The  captain\n   {LONG}\tagain.\n \nThe mate and the cook {LONG}"
    assert split_sentences(text) == [f"The captain {LONG} again."]  # the second paragraph has no end


@pytest.mark.parametrize(
    "text",
    [
        "CHAPTER VIII. OF THE WAGES OF LABOUR AND OF THE PROFITS OF STOCK IN THE DIFFERENT EMPLOYMENTS.",
        "Chapter 3. In which the captain walked down to the harbour to look at the ships.",
        "1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16.",
        "wages | 10 shillings | of the labourers in the year | 12 shillings | as before.",
        "Contents ........ of the first and of the second volume of this book ........ 12.",
        "He paused.",
        "The captain " + "walked and " * 40 + "stopped.",
        "",
        "\n\n \n",
    ],
)
def test_titles_tables_numbers_and_odd_lengths_are_left_out(text: str) -> None:
    assert split_sentences(text) == []


def test_count_tokens_counts_words_and_marks() -> None:
    assert count_tokens('"Stop!" he said.') == 7  # " Stop ! " he said .


def test_hashes_are_the_same_on_every_machine() -> None:
    # `printf book | b2sum -l 64` prints 6513959f38ac1335; its first 53 bits as a fraction.
    assert stable_fraction("book") == (0x6513959F38AC1335 >> 11) / 2**53
    assert {hashed_split(f"text {i}") for i in range(100)} == set(SPLITS)
    shares = [sum(hashed_split(f"text {i}") == split for i in range(5000)) / 5000 for split in SPLITS]
    assert shares == pytest.approx([0.8, 0.1, 0.1], abs=0.02)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 + 4 books of 5 sentences."""
    folder = tmp_path_factory.mktemp("library")
    for split, count in (("train", 12), ("test", 4)):
        (folder / "books" / split).mkdir(parents=True)
        for i in range(count):
            lines = [f"In the {split} book number {i} the captain {LONG} {word}." for word in ("one", "two", "three", "four", "five")]
            (folder / "books" / split / f"{split}_{i}.txt").write_text("\n\n".join(lines), encoding="utf-8")
    return folder


def test_books_are_whole_in_order_and_disjoint(library: Path) -> None:
    stacks = {split: load_haystack(str(library), split) for split in SPLITS}
    assert [len(stacks[split].books) for split in SPLITS] == [11, 1, 4]
    assert len({book for stack in stacks.values() for book in stack.books}) == 16
    for stack in stacks.values():
        assert len(stack.sentences) == 5 * len(stack.books)
        for i, book in enumerate(stack.books):
            number = book.split("_")[1]
            assert all(f"book number {number} the" in sentence for sentence in stack.sentences[5 * i : 5 * i + 5])
    assert not set(stacks["train"].sentences) & set(stacks["validation"].sentences)


def test_limit_takes_whole_books_from_the_beginning(library: Path) -> None:
    whole, part = load_haystack(str(library), "train"), load_haystack(str(library), "train", 12)
    assert len(part.sentences) == 15
    assert part.sentences == whole.sentences[:15]
    assert part.books == whole.books[:3]
    assert load_haystack(str(library), "train", 10**6).sentences == whole.sentences
    assert all(a is b for a, b in zip(part.sentences, whole.sentences, strict=False))  # one str object a sentence


def test_python_documentation_is_a_haystack_for_every_split() -> None:
    stacks = {split: load_haystack(None, split) for split in SPLITS}
    assert stacks["test"].source == PYTHON_DOCS
    assert len(stacks["test"].sentences) >= 5000
    assert len(stacks["train"].sentences) >= 4500
    assert len(stacks["validation"].sentences) >= 500
    for a, b in (("train", "validation"), ("train", "test"), ("validation", "test")):
        assert not set(stacks[a].books) & set(stacks[b].books)
    for sentence in stacks["test"].sentences[::50]:
        assert MIN_TOKENS <= count_tokens(sentence) <= MAX_TOKENS
        assert sentence == " ".join(sentence.split())
        assert ">>>" not in sentence


def test_refuses_bad_folders(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"books/train: no \.txt files; data_dir = .* must hold books/train"):
        load_haystack(str(tmp_path), "test")
    for split in ("train", "test"):
        (tmp_path / "books" / split).mkdir(parents=True)
        (tmp_path / "books" / split / "same.txt").write_text("CHAPTER I")
    with pytest.raises(ValueError, match=r"one book; training and validation each need a book"):
        book_paths(tmp_path)
    (tmp_path / "books" / "train" / "other.txt").write_text("CHAPTER II")
    with pytest.raises(ValueError, match=r"same\.txt is in train and in test"):
        book_paths(tmp_path)
    (tmp_path / "books" / "train" / "same.txt").rename(tmp_path / "books" / "train" / "third.txt")
    with pytest.raises(ValueError, match=r"no sentence of 10 to 64"):
        load_haystack(str(tmp_path), "test")
    (tmp_path / "books" / "test" / "same.txt").write_bytes(b"caf\xe9")
    with pytest.raises(ValueError, match=r"limit = 0: must be >= 1"):
        load_haystack(str(tmp_path), "test", 0)


def test_refuses_books_that_are_not_utf8(tmp_path: Path) -> None:
    for split, names in (("train", "ab"), ("test", "c")):
        (tmp_path / "books" / split).mkdir(parents=True)
        for name in names:
            (tmp_path / "books" / split / f"{name}.txt").write_bytes("Le café.".encode("latin-1"))
    with pytest.raises(ValueError, match=r"c\.txt: is not UTF-8 text .* convert"):
        load_haystack(str(tmp_path), "test")
