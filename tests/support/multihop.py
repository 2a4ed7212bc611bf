"""The three multi-hop benchmarks, their small files, and changed copies of these."""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from qrag_jax.data.multihop.hotpotqa import HOTPOTQA
from qrag_jax.data.multihop.musique import MUSIQUE
from qrag_jax.data.multihop.twowiki import TWOWIKI

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"
BENCHMARKS = {benchmark.name: benchmark for benchmark in (HOTPOTQA, MUSIQUE, TWOWIKI)}


def fixture(name: str) -> Path:
    return FIXTURES / BENCHMARKS[name].folder / BENCHMARKS[name].files[1][0]


def write_with(folder: Path, name: str, change: Callable[[Any], object]) -> Path:
    """The fixture of a benchmark with its first record changed."""
    text = fixture(name).read_text(encoding="utf-8")
    records = [json.loads(line) for line in text.removesuffix("\n").split("\n")] if name == "musique" else json.loads(text)
    change(records[0])
    target = folder / fixture(name).name
    target.write_text("\n".join(map(json.dumps, records)) + "\n" if name == "musique" else json.dumps(records), encoding="utf-8")
    return target


def put(*path: Any) -> Callable[[Any], None]:
    """``put("context", 0, 0, "")``: sets record["context"][0][0] to ""."""

    def change(record: Any) -> None:
        functools.reduce(lambda tree, key: tree[key], path[:-2], record)[path[-2]] = copy.deepcopy(path[-1])

    return change


HF_ROW = {
    **{"id": "a", "question": "q?", "answer": "x", "type": "bridge", "level": "easy"},
    "supporting_facts": {"title": ["Caf\u00e9", "B"], "sent_id": [0, 1]},
    "context": {"title": ["Cafe\u0301", "B", "C"], "sentences": [["One."], ["Two.", "Three."], [""]]},
}
