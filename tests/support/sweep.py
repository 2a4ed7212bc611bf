"""A small sweep to change and write."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

SPEC: dict[str, Any] = {
    "benchmark": "babilong",
    "task": "qa1",
    "method": "grid",
    "fixed": {"train.steps": 30, "train.log_every": 10, "train.eval_every": 10, "train.checkpoint_every": 10},
    "space": {"optim.learning_rate": {"values": [1e-3, 1e-2, 1e-1]}, "rl.lam": {"values": [0.5, 0]}},
}


def write_spec(folder: Path, name: str = "spec.yaml", **changes: Any) -> Path:
    path = folder / name
    path.write_text(yaml.safe_dump({**SPEC, **changes}))
    return path
