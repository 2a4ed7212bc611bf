"""Reads .csv, .tsv, .json and .jsonl files. Each row or record is a passage, "column: value; column: value"; empty values are left out."""

from __future__ import annotations

import csv
import json
import re
import sys
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Any

from qrag_jax.config.trees import parse_json
from qrag_jax.retrieve.formats.passages import Passage, Place, Unreadable, joined, not_utf8

DELIMITERS = ",;\t|"
SHOWN = 5  # lines of a file that a message lists


def read_csv(path: Path) -> list[Passage]:
    """A passage for each row after the first, which names the columns. Rows are counted as a spreadsheet counts them: the first is row 1.

    The delimiter is whichever of , ; | and the tabulator the first line holds most often outside quotes.
    """
    csv.field_size_limit(sys.maxsize)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            first = re.sub(r'"[^"]*"', "", file.readline())
            file.seek(0)
            return joined(_rows(csv.reader(file, delimiter=max(DELIMITERS, key=first.count))))
    except UnicodeDecodeError as error:
        raise not_utf8(error) from error


def _rows(rows: Iterator[list[str]]) -> Iterator[tuple[str, Place]]:
    names = [name.strip() or f"column {i}" for i, name in enumerate(next(rows, []), 1)]
    for number, row in enumerate(rows, 2):
        cells = [(name or f"column {i}", cell) for i, (name, cell) in enumerate(zip_longest(names, row, fillvalue=""), 1)]
        if text := _line(cells):
            yield text, {"row": number}


def read_json(path: Path) -> list[Passage]:
    """A passage for each item of an array, counted from 1; one for anything else. Raises Unreadable if it is not JSON."""
    try:
        tree = parse_json(path.read_bytes())
    except ValueError as error:
        raise Unreadable(f"is damaged: {error}") from error
    if not isinstance(tree, list):
        return joined([(_line(list(_pairs(tree, ""))), {})])
    return joined((text, {"row": number}) for number, item in enumerate(tree, 1) if (text := _line(list(_pairs(item, "")))))


def read_json_lines(path: Path) -> list[Passage]:
    """A passage for each line, counted from 1, and one that tells which lines could not be read."""
    faults: list[str] = []

    def lines() -> Iterator[tuple[str, Place]]:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                try:
                    tree = parse_json(line.removeprefix(b"\xef\xbb\xbf").rstrip()) if line.strip() else None
                except ValueError as error:
                    faults.append(f"line {number:,}: {error}")
                    continue
                if text := _line(list(_pairs(tree, ""))):
                    yield text, {"row": number}

    found = joined(lines())
    if len(faults) > SHOWN:
        faults[SHOWN:] = [f"and {len(faults) - SHOWN:,} more lines"]
    return [*found, Passage("", fault="; ".join(faults))] if faults else found


def _line(pairs: list[tuple[str, str]]) -> str:
    return "; ".join(f"{name}: {value.strip()}" if name else value.strip() for name, value in pairs if value.strip())


def _pairs(value: Any, name: str) -> Iterator[tuple[str, str]]:
    """The names and values of a tree: "address.city" of an object in an object, "sizes.2" of a list that holds objects or lists."""
    inside = f"{name}." if name else ""
    if isinstance(value, dict):
        for key, part in value.items():
            yield from _pairs(part, inside + key)
    elif isinstance(value, list) and any(isinstance(part, (dict, list)) for part in value):
        for number, part in enumerate(value, 1):
            yield from _pairs(part, f"{inside}{number}")
    elif isinstance(value, list):
        yield name, ", ".join(text for part in value if (text := _scalar(part)))
    else:
        yield name, _scalar(value)


def _scalar(value: Any) -> str:
    return "" if value is None else value if isinstance(value, str) else json.dumps(value)
