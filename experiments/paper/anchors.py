"""Published figures of other open-corpus retrievers, as data: ``experiments/paper/anchors.json``.

None of them was measured on the questions and corpora of this project, so they are shown beside a table, never compared with it.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path

from qrag_jax.config.parse import decode, require
from qrag_jax.rundir.files import read_json

FILE = Path(__file__).parent / "anchors.json"
SCHEMA = 1


@dataclass(frozen=True)
class Anchor:
    """A published figure, as a share of 1; ``differs``: what differs from the tables here."""

    benchmark: str
    method: str
    metric: str
    value: float
    source: str
    differs: str

    def __post_init__(self) -> None:
        for name in ("benchmark", "method", "metric", "source", "differs"):
            require(bool(getattr(self, name).strip()), name, getattr(self, name), "a text")
        require(0 <= self.value <= 1, "value", self.value, "in [0, 1]: percentages are divided by 100")


def load_anchors(path: Path) -> tuple[Anchor, ...]:
    """Reads a file of anchors. Raises ValueError, naming file, row and field, if it breaks the schema."""
    tree = read_json(path)
    if not isinstance(tree, dict) or tree.get("schema") != SCHEMA or not isinstance(tree.get("rows"), list):
        raise ValueError(f"{path}: must be an object with schema = {SCHEMA} and rows")
    found = []
    for number, row in enumerate(tree["rows"], 1):
        try:
            if isinstance(row, dict) and (missing := [one.name for one in fields(Anchor) if one.name not in row]):
                raise ValueError(f"no field {missing[0]!r}")
            found.append(decode(Anchor, row))
        except ValueError as error:
            raise ValueError(f"{path}: row {number}: {error}") from error
    return tuple(found)


@lru_cache
def anchors(benchmark: str) -> tuple[Anchor, ...]:
    """The anchors of a benchmark."""
    return tuple(anchor for anchor in load_anchors(FILE) if anchor.benchmark == benchmark)
