"""Which documents of an index a search may pick from: conditions on their names and their metadata."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
from jaxtyping import Bool

from qrag_jax.config.parse import unknown
from qrag_jax.retrieve.records import SourceRecord

Filter = Sequence[str] | Mapping[str, Any]
"""Conditions that must all hold: texts such as "source=reports/*" and "year=2024", or {"source": "reports/*", "year": 2024}."""


@dataclass(frozen=True)
class Condition:
    """The metadata ``key`` of a document (``source``: its name) must match ``pattern``, in which * stands for any characters, ? for one and
    [ab] for a or b. Numbers, true, false and null are compared as JSON writes them; of a list, one item must match."""

    key: str
    pattern: str

    def __str__(self) -> str:
        return f"{self.key}={self.pattern}"

    def holds(self, record: SourceRecord) -> bool:
        return any(_as_text(value) == self.pattern or fnmatchcase(_as_text(value), self.pattern) for value in self.values(record))

    def values(self, record: SourceRecord) -> list[Any]:
        value = record.name if self.key == "source" else record.metadata.get(self.key)
        if value is None and (self.key == "source" or self.key not in record.metadata):
            return []
        return value if isinstance(value, list) else [value]


def conditions(given: Filter) -> list[Condition]:
    """Raises ValueError on anything but conditions."""
    if isinstance(given, str):
        raise ValueError(f"filter = {given!r}: must be a list of conditions, such as ['year=2024'], or a dict")
    if isinstance(given, Mapping):
        return [Condition(str(key), _as_text(value)) for key, value in given.items()]
    found = []
    for text in given:
        key, equals, pattern = text.partition("=") if isinstance(text, str) else ("", "", "")
        if not (key.strip() and equals and pattern.strip()):
            raise ValueError(f"filter = {text!r}: must be KEY=VALUE, such as 'source=reports/*' or year=2024")
        found.append(Condition(key.strip(), pattern.strip()))
    return found


def allowed_chunks(given: Filter, records: Sequence[SourceRecord]) -> Bool[np.ndarray, " N"]:
    """Which chunks belong to a document for which all conditions hold. Raises ValueError on an unknown key, and if there is none."""
    return chunks_that_match(conditions(given), records)


def chunks_that_match(wanted: Sequence[Condition], records: Sequence[SourceRecord]) -> Bool[np.ndarray, " N"]:
    """:func:`allowed_chunks` of conditions."""
    known = ["source", *sorted({key for record in records for key in record.metadata} - {"source"})]
    for one in wanted:
        if one.key not in known:
            raise unknown("filter", one.key, known)
        if not any(one.holds(record) for record in records):
            raise ValueError(f"filter {one}: no document has that; {one.key} is {_some(one, records)}")
    mask = np.repeat([all(one.holds(record) for one in wanted) for record in records], [record.chunks for record in records])
    if not mask.any():
        raise ValueError(f"filter {' and '.join(map(str, wanted))}: nothing is left to search; no document with text has all of that")
    return mask.astype(bool)


def _some(one: Condition, records: Iterable[SourceRecord], shown: int = 5) -> str:
    values = list(dict.fromkeys(_as_text(value) for record in records for value in one.values(record)))
    return ", ".join(values[:shown]) + (f" and {len(values) - shown:,} others" if len(values) > shown else "") if values else "never given"


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
