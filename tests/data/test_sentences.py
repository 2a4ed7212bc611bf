"""The sentence splitter: where it cuts, by both sets of rules, that it loses nothing, and that no text makes it slow."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from qrag_jax.data.text import sentences
from qrag_jax.data.text.sentences import BOOKS, DOCUMENTS, Rules, sentence_spans

ALL_RULES = pytest.mark.parametrize("rules", [BOOKS, DOCUMENTS], ids=["books", "documents"])


def cut(text: str, rules: Rules = DOCUMENTS) -> list[str]:
    return [text[start:end] for start, end in sentence_spans(text, rules)]


@ALL_RULES
@pytest.mark.parametrize(
    "parts",
    [
        ["Mr. Smith met Dr. J. S. Bach.", "He left."],
        ["No. 5 is old.", "No.", "He stayed."],
        ["Nos. 5 and 6 of vol. 3 cost 3.14 or 1.000.000 a piece.", "7 did not."],
        ["See www.example.org/a.b or v1.2.3 of it.", "Then stop."],
        ["It was he and I.", "They left at 5 p.m. Monday."],
        ["Wait... what did he say?!", "Nothing...", "He slept… and woke up…", "Then he left."],
        ['He said "Go." and “Stop!” to me.', '"Go where?"', "'There.'", "(He pointed.)", "[Then he left.]"],
        ["The first line\nof a sentence that is\nhard-wrapped.", "The next\none."],
        ["e.g. this, i.e. that."],
        ["no mark at the end"],
        [],
    ],
)
def test_where_sentences_end(parts: list[str], rules: Rules) -> None:
    assert cut("  " + "\n".join(parts) + " \t", rules) == parts


@ALL_RULES
@pytest.mark.parametrize("gap", ["\n\n", "\n \t\n", "\r\n\r\n", "\n\n\n \n", "\n\f\n"])
def test_an_empty_line_ends_a_sentence(gap: str, rules: Rules) -> None:
    assert cut(gap.join(["A heading", "The text,", "and more"]), rules) == ["A heading", "The text,", "and more"]


@pytest.mark.parametrize(
    "parts",
    [
        ["Él vino.", "Она ушла.", "Über uns.", "£5 is due.", "¿Por qué?", "«Non».", "你好"],
        ["One.", "- Two.", "* Three.", "# Four"],
    ],
)
def test_documents_begin_sentences_in_any_script_and_with_signs(parts: list[str]) -> None:
    assert cut(" ".join(parts)) == parts


def test_wide_marks_need_no_space_after_them() -> None:
    assert cut("他说。「好。」她走了！？真的…。 是吗") == ["他说。", "「好。」", "她走了！？", "真的…。", "是吗"]


@pytest.mark.parametrize(
    "parts",
    [
        ["राम घर गया।", "सीता आई॥", "कल आना"],
        ["هل جاء؟", "نعم جاء", "وہ گیا۔", "کل"],
        ["彼は言った｡", "はい！", "ບາຍ"],
        ["ሰላም።", "እንዴት ነህ፧", "ደህና"],
        ["Բարև։", "Այո"],
        ["သွားပြီ။", "လာ"],
    ],
)
def test_the_full_stops_of_other_scripts_need_no_space(parts: list[str]) -> None:
    """An Arabic or Latin full stop is not among them: it is also a decimal point."""
    if "نعم جاء" in parts:
        assert cut("هل جاء؟نعم جاء. وہ گیا۔کل") == ["هل جاء؟", "نعم جاء.", "وہ گیا۔", "کل"]
    else:
        assert cut("".join(parts)) == parts
        assert cut(" ".join(parts)) == parts


@pytest.mark.parametrize(
    "parts",
    [
        ["Dr. Lee met J. Park.", "See Fig. 2."],
        ["z. B. Berlin.", "Es gilt ca. 5 kg.", "Nein."],
        ["И т. д. и т. п.", "Потом ушёл."],
        ["La Sra. Gil vino.", "Adiós."],
        ["Lee et al. Found it.", "He loved art.", "See Eq. 3."],
    ],
)
def test_abbreviations_of_documents(parts: list[str]) -> None:
    assert cut(" ".join(parts)) == parts


@pytest.mark.parametrize(
    "parts",
    [
        ["1. Buy milk.", "2. Buy bread.", "10) Go", "(3) Rest"],
        ["# Title", "Text of it.", "More.", "- one", "* two\n  goes on", "+ three.", "Four.", "## 2. Next. One", "> quoted"],
        ["| a | b |", "|---|---|", "| c. D | d |", "Text"],
        ["Name\tPrice. Net", "Milk\t1.20", "That is all."],
        ["```python", "x = [1.5, .5]\nprint(x)", "```", "Text"],
    ],
)
def test_lists_headings_tables_and_fences(parts: list[str]) -> None:
    assert cut("\n".join(parts)) == parts


def test_a_year_at_the_end_is_no_number_of_an_item() -> None:
    assert cut("He was born in 1984. The next year he died. 2. Next.") == ["He was born in 1984.", "The next year he died.", "2. Next."]


def test_the_layout_of_a_page_changes_no_haystack() -> None:
    text = "1. Buy milk. # Two | Three.\n- Four। Five؟ Six"
    assert cut(text, BOOKS) == ["1.", "Buy milk. # Two | Three.\n- Four। Five؟ Six"]


def test_what_continues_a_sentence() -> None:
    assert cut("“Really?” she asked. He said “No!” – and left. He . . . slept.") == [
        "“Really?” she asked.",
        "He said “No!” – and left.",
        "He . . . slept.",
    ]


def test_small_letters_begin_sentences_where_there_are_no_capitals() -> None:
    assert cut("mary left. john (e.g. with dr. who) stayed! why?\n\nMary left. john") == [
        "mary left.",
        "john (e.g. with dr. who) stayed!",
        "why?",
        "Mary left. john",
    ]


LETTERS = st.sampled_from(
    [*"aAéЖ好1 .!?…。！।؟|#>+\n\t\r\f\u00a0\"'”)」(*_-,", "\n- ", "\n# ", "\n1. ", "\n```", "Mr.", "No. ", "\n\n", ". A", "J. S. B"]
)


@ALL_RULES
@settings(max_examples=300, deadline=None)
@given(parts=st.lists(LETTERS, max_size=60))
@example(parts=["\u2028", ".", "\x1c", "A"])
def test_every_character_is_in_exactly_one_sentence(parts: list[str], rules: Rules) -> None:
    text = "".join(parts)
    spans = sentence_spans(text, rules)
    assert all(0 <= start < end <= len(text) for start, end in spans)
    assert all(a[1] <= b[0] for a, b in pairwise(spans))
    assert all(text[start:end] == text[start:end].strip() for start, end in spans)
    inside = {i for start, end in spans for i in range(start, end)}
    assert {i for i, character in enumerate(text) if not character.isspace()} <= inside


@pytest.mark.parametrize(
    "pattern", [BOOKS.end, DOCUMENTS.end, sentences._EMPTY_LINE, sentences._LAYOUT], ids=["books", "documents", "empty line", "layout"]
)
def test_no_pattern_can_take_more_than_linear_time(pattern: re.Pattern[str]) -> None:
    """A pattern is quadratic when a run is given back piece by piece, or entered at each of its characters."""
    bare = re.sub(r"\[[^\]\\]*(?:\\.[^\]\\]*)*\]", "x", pattern.pattern)  # without its classes
    quantifiers = re.findall(r"(?<!\()[*+?]\+?", bare)
    assert quantifiers
    assert set(quantifiers) <= {"*+", "++"}, "every repeat is possessive"
    for run in ("." * 50, "!?…." * 10, "。！.？" * 10):
        entered = [i for i in range(len(run)) if pattern.match(run + " A", i)]
        assert entered in ([], [0]), "a run of marks is entered at its first one"


@ALL_RULES
@pytest.mark.parametrize(
    "unit", [".", "。", ".。", '."', ". (", "\n ", ". ", " ", "- ", "\n- ", "\n|", "#", "\t", "a\t", "1. ", "\n1. A", "a. "]
)
def test_long_runs(unit: str, rules: Rules) -> None:
    """A quadratic splitter would take minutes here."""
    text = unit * (100_000 // len(unit))
    spans = sentence_spans(text, rules)
    assert sum(end - start for start, end in spans) <= len(text)
