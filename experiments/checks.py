"""Checks of the JSON files from which reports and pictures are made. Each failure is a ValueError that names the field."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

Check = tuple[Callable[[Any], bool], str]
"""Whether a value is allowed, and what is, in words."""
LARGEST = 2**53


def is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and abs(value) <= LARGEST


def is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value <= LARGEST


TEXT: Check = (lambda value: isinstance(value, str), "a text")
COUNT: Check = (is_count, "a whole number")
NUMBER: Check = (is_number, "a finite number")


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
