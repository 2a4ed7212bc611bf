"""The data that devices send each other, read from the text of a compiled program."""

from __future__ import annotations

import re
from dataclasses import dataclass

import jax.numpy as jnp

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute", "collective-broadcast")
# NAME = RESULT all-gather(...), or all-gather-start(...) if other work runs meanwhile; the all-gather-done that follows sends nothing.
LINE = re.compile(rf"^\s*(?:ROOT )?%?[\w.-]+ = (?P<result>.+?) (?P<kind>{'|'.join(KINDS)})(?P<start>-start)?\(", re.MULTILINE)
ARRAY = re.compile(r"\b(?P<type>pred|[a-z]+\d+\w*)\[(?P<sizes>[\d,]*)\]")
NAMES = {"pred": "bool", "f": "float", "bf": "bfloat", "s": "int", "u": "uint", "c": "complex"}


@dataclass(frozen=True)
class Collective:
    """The operations of one kind in a program: their number, and the bytes of their results on one device. A loop's body counts once."""

    kind: str
    count: int
    bytes: int


def collectives(text: str) -> list[Collective]:
    """The collectives of a program, from ``compiled.as_text()``, by kind; kinds that do not occur are left out."""
    found: dict[str, list[int]] = {}
    for line in LINE.finditer(text):
        sizes = [array_bytes(array) for array in ARRAY.finditer(line["result"])]
        # The -start form of these operations returns (inputs, results): each is half of the arrays.
        pair = line["start"] and line["kind"] != "all-reduce" and len(sizes) > 1
        found.setdefault(line["kind"], []).append(sum(sizes[len(sizes) // 2 :] if pair else sizes))
    return [Collective(kind, len(found[kind]), sum(found[kind])) for kind in KINDS if kind in found]


def array_bytes(array: re.Match[str]) -> int:
    """Bytes of an array such as f32[8,128], matched by ``ARRAY``."""
    letters, bits = re.match(r"([a-z]+)(\d*)", array["type"]).groups()  # type: ignore[union-attr]
    size = jnp.dtype(NAMES[letters] + bits).itemsize if letters in NAMES and "f8" not in array["type"] else 1
    for length in filter(None, array["sizes"].split(",")):
        size *= int(length)
    return size
