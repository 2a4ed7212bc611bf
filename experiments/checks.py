"""Checks of the JSON files from which reports and pictures are made. Each failure is a ValueError that names the field."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from qrag_jax.rundir.files import is_name, read_json

Check = tuple[Callable[[Any], bool], str]
"""Whether a value is allowed, and what is, in words."""
LARGEST = 2**53
SCHEMA = 1
"""Of results.json (:mod:`qrag_jax.evaluate.results`)."""


def is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and abs(value) <= LARGEST


def is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value <= LARGEST


TEXT: Check = (lambda value: isinstance(value, str), "a text")
COUNT: Check = (is_count, "a whole number")
NUMBER: Check = (is_number, "a finite number")
SCORE: Check = (lambda value: is_number(value) and 0 <= value <= 1, "a number in [0, 1]")
TIME: Check = (lambda value: is_number(value) and value > 0, "a time above 0")


def optional(check: Check) -> Check:
    """``check``, or null."""
    return lambda value: value is None or check[0](value), f"{check[1]} or null"


def many(check: Check) -> Check:
    """A list whose parts pass ``check``."""
    return lambda value: isinstance(value, list) and all(map(check[0], value)), f"a list; each part must be {check[1]}"


def check_fields(tree: Any, fields: Mapping[str, Check], where: str) -> None:
    """Raises ValueError unless ``tree`` is an object that has ``fields``, each with an allowed value; further fields are left alone."""
    if not isinstance(tree, dict):
        raise ValueError(f"{where}: must be an object with {', '.join(fields)}")
    for name, (allowed, words) in fields.items():
        if name not in tree:
            raise ValueError(f"{where}: has no {name}, which must be {words}")
        if not allowed(tree[name]):
            raise ValueError(f"{where}.{name} = {ascii(tree[name])[:60]}: must be {words}")


def check_rows(rows: Any, fields: Mapping[str, Check], where: str) -> None:
    """Raises ValueError unless ``rows`` is a list of one or more objects that each have ``fields``."""
    if not isinstance(rows, list) or not rows:
        raise ValueError(f"{where} = {ascii(rows)[:60]}: must be a list of one or more objects")
    for number, row in enumerate(rows):
        check_fields(row, fields, f"{where}[{number}]")


NEEDED = (
    *("benchmark", "task", "split", "context_tokens", "chunks", "episodes", "budget", "fact_em", "fact_f1", "fact_f1_stopped"),
    *("stop_threshold", "answer_em", "answer_f1", "ci95", "seconds_per_episode", "checkpoint_step"),
)
"""Columns of every row of results.json. Baselines have ``method``, newer rows ``fact_em_stopped``, means ``seeds``, ``spread``."""


KINDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    **dict.fromkeys(("benchmark", "task"), (is_name, "a name")),
    **dict.fromkeys(("split", "method"), (lambda value: value is None or isinstance(value, str), "a text")),
    **dict.fromkeys(("context_tokens", "checkpoint_step"), (lambda value: value is None or is_count(value), "a whole number or null")),
    **dict.fromkeys(("episodes", "budget"), (is_count, "a whole number")),
    "chunks": (lambda value: is_number(value) and value >= 0, "a number"),
    "ci95": (
        lambda value: value is None or (isinstance(value, list) and len(value) == 2 and all(map(is_number, value))),
        "two numbers or null",
    ),
    "seeds": (lambda value: isinstance(value, list) and all(map(is_count, value)), "a list of whole numbers"),
    "spread": (
        lambda value: isinstance(value, dict) and all(part is None or is_number(part) for part in value.values()),
        "an object of numbers",
    ),
}
"""Column -> whether a value is valid, and what is. Benchmarks and tasks become names of files and headings."""


def read_results(path: Path) -> tuple[dict[str, Any], ...]:
    """Rows of a results.json. Raises ValueError on another schema, no rows, and rows that lack a column."""
    tree = read_json(path)
    if not isinstance(tree, dict) or tree.get("schema") != SCHEMA or not isinstance(tree.get("rows"), list) or not tree["rows"]:
        raise ValueError(f"{path}: must be an object with schema = {SCHEMA} and one or more rows")
    for number, row in enumerate(tree["rows"], 1):
        if not isinstance(row, dict) or (missing := [name for name in NEEDED if name not in row]):
            raise ValueError(f"{path}: row {number}: " + (f"no column {missing[0]!r}" if isinstance(row, dict) else "must be an object"))
        for name, (valid, allowed) in KINDS.items():
            if name in row and not valid(row[name]):
                raise ValueError(f"{path}: row {number}: {name} = {str(row[name])[:60]!r}: must be {allowed}")
        for name in ("fact_em", "fact_f1", "fact_em_stopped", "fact_f1_stopped", "answer_em", "answer_f1"):
            value = row.get(name)
            if value is not None and not (type(value) in (int, float) and 0 <= value <= 1):
                raise ValueError(f"{path}: row {number}: {name} = {value!r}: must be in [0, 1], or null where it was not measured")
    return tuple(tree["rows"])
