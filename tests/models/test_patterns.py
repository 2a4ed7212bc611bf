"""Regular expressions that may take exponential time, against counting in how many ways a repeated group matches a text."""

from __future__ import annotations

import itertools
from collections import Counter
from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qrag_jax.models.patterns import backtracks_exponentially

NESTED = [
    "(a*)*",
    "(?:x|y+)*",
    "(a{1,2})*",
    "(aa?)*",
    "(?:a??a)+",
    "(?:a+)+b",
    "(a{2,})+",
    "(?:a{0,2}b?)*",
    "(a*b?)*",
    "(a{2}|aa)*",
    "(a+){2}",
]
ALIKE = [
    *("(a|a)*", "(?:ab|a|b)+", "(?i:a|A)*", r"(\w|a)*", "(a|)*", "(c(?:b|b))*", "(?<n>a|b|a)+", "(a{0}b|b)*"),
    *("((a|a)b)*", r"(a|a)\g<1>", r"(?:\s|\n)+", r"(?:\n|\r\n?)+", r"(?:\x61|a)*", "(?:[a-c]|b)*", "(?:.|a)*", r"(?:\p{L}|\p{N})*"),
    *(r"(\1a)*", "(?x:(a|a )*)", "(?~a)", "(" * 2000, "(?:a{99}){99}", "(a**)*", "(?=(a|a)*)b"),
]


@pytest.mark.parametrize("pattern", NESTED + ALIKE)
def test_a_repetition_of_what_matches_in_several_ways(pattern: str) -> None:
    assert backtracks_exponentially(pattern)


# Those of GPT-2, Llama 3, Qwen 2, GPT-4o and XLM-R, and plain ones.
UPPER, LOWER = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}", r"\p{Ll}\p{Lm}\p{Lo}\p{M}"
REST = r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
USUAL = [
    r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    rf"[^\r\n\p{{L}}\p{{N}}]?[{UPPER}]*[{LOWER}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|{REST}",
    *(r"\d{1,3}(?=(?:\d{3})*\b)", "(ab)*", "[(a*)]*", " {2,}", "(?:ab|cd)*", r"(?:a(?:b|c))+", "(a|a)?", "(a|a){1}", "(a|a){0,1}"),
]
ONE_WAY = [
    r"(?:[ab]|\d){2,}",
    *(r"(?:\r?\n)+", r"(?:\r\n|\n)+", r"(?: ?\n)*", "(a+b)+", "((a+)b){2,}", r"(\(a*\))*", r"(?:\s+\S)*", "(?:ab?)+", "(?:a{2,3}b)+"),
    *(r"(?:[\r\n]+[ \t]*x)+", r"(?:\w+\.)+", "(?:a|b|[c-e])*", "(?i)(?:a|b)+", "(?>a?b)+", r"(?:^a\b)+", "a)(b", "(ab)*+"),
]


@pytest.mark.parametrize("pattern", USUAL + ONE_WAY)
def test_usual_patterns_and_those_with_one_way_pass(pattern: str) -> None:
    assert not backtracks_exponentially(pattern)


Node = tuple[Any, ...]  # ("a",), ("b",), ("seq" | "or", node, node), ("times", least, most, node)
TREES = st.recursive(
    st.sampled_from([("a",), ("b",)]),
    lambda inner: (
        st.tuples(st.sampled_from(["seq", "or"]), inner, inner)
        | st.tuples(st.just("times"), st.sampled_from([(0, None), (1, None), (0, 1), (2, 2), (1, 2)]), inner)
    ),
    max_leaves=6,
)


def written(node: Node) -> str:
    if node[0] == "seq":
        return written(node[1]) + written(node[2])
    if node[0] == "or":
        return f"(?:{written(node[1])}|{written(node[2])})"
    if node[0] == "times":
        (least, most), inner = node[1], node[2]
        return f"(?:{written(inner)}){{{least},{'' if most is None else most}}}"
    return str(node[0])


@cache
def ways(node: Node, text: str) -> Counter[int]:
    """In how many ways a node matches the first n characters of a text: n -> ways. A repetition never matches nothing after something."""
    if node[0] == "or":
        return ways(node[1], text) + ways(node[2], text)
    if node[0] == "seq":
        return after(ways(node[1], text), node[2], text)
    if node[0] == "times":
        (least, most), inner = node[1], node[2]
        found, now = Counter({0: 1} if least == 0 else {}), Counter({0: 1})
        for number in range(1, (len(text) + 1 if most is None else most) + 1):
            now = after(now, inner, text)
            found += now if number >= least else Counter()
        return found
    return Counter({1: 1} if text[:1] == node[0] else {})


def after(before: Counter[int], node: Node, text: str) -> Counter[int]:
    found: Counter[int] = Counter()
    for end, count in before.items():
        for more, times in ways(node, text[end:]).items():
            found[end + more] += count * times
    return found


def repetitions(node: Node) -> list[Node]:
    inner = [part for child in node[1:] if isinstance(child, tuple) and isinstance(child[0], str) for part in repetitions(child)]
    return inner + ([node] if node[0] == "times" and node[1] != (0, 1) else [])


TEXTS = ["".join(letters) for n in range(1, 6) for letters in itertools.product("ab", repeat=n)]


@settings(max_examples=150, deadline=None)
@given(TREES)
def test_what_passes_has_one_way_through_every_text(tree: Node) -> None:
    if backtracks_exponentially(written(tree)):
        return
    for node in repetitions(tree):
        assert all(count == 1 for text in TEXTS for count in ways(node, text).values()), (written(tree), written(node))
