"""The small run of ``python -m experiments.babilong``, in this process or in another one, and comparisons of its files.

Started as a module, ``python -m tests.support.runs WORDS``, it is that command with a vocabulary that is trained in a moment.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from experiments.cli import SHORT, main
from qrag_jax.train import model
from tests.support.processes import start_python
from tests.support.small import options

SMALL = options(train={"devices": 1})
TIMES = ("seconds", "transitions_per_second", "chunks_per_second", "seconds_per_episode")


def here(run_dir: str | Path, *extra: str, small: tuple[str, ...] = SMALL) -> int:
    """The small run in this process; its exit code."""
    return command(*small, "--run-dir", str(run_dir), *extra)


def command(*words: str) -> int:
    """``python -m experiments.babilong WORDS`` in this process, with a vocabulary of few training documents."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model, "VOCABULARY_EXAMPLES", 64)
        return main("babilong", "", last_of_each(words))


def last_of_each(words: Sequence[str]) -> list[str]:
    """A command line without the first of two values of an option, perhaps under its short name: the command refuses it twice."""
    found: dict[str, list[str]] = {}
    for word in words:
        if word.startswith("--"):
            name = SHORT.get(word.partition("=")[0], word.partition("=")[0])
            found.pop(name, None)
            option = found[name] = [word]
        else:
            option.append(word)
    return [word for option in found.values() for word in option]


def start(run_dir: str | Path, *extra: str) -> subprocess.Popen[str]:
    """The small run as a process."""
    return start_python("-m", "tests.support.runs", *SMALL, "--run-dir", str(run_dir), *extra)


def finish(process: subprocess.Popen[str], code: int = 0) -> str:
    output, _ = process.communicate(timeout=1200)
    assert process.returncode == code, output
    return output


def wait_until(happened: Callable[[], bool], process: subprocess.Popen[str], seconds: float = 900) -> None:
    """Checks every 2 ms, as long as the process is alive."""
    until = time.monotonic() + seconds
    while not happened():
        assert process.poll() is None, process.stdout.read() if process.stdout else ""
        assert time.monotonic() < until, f"did not happen in {seconds} s"
        time.sleep(0.002)


def without_times(record: dict[str, object]) -> dict[str, object]:
    return {name: value for name, value in record.items() if name not in TIMES}


def records(run_dir: Path) -> list[dict[str, object]]:
    return [without_times(json.loads(line)) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def last_state(run_dir: Path) -> dict[str, np.ndarray]:
    folder = max((run_dir / "checkpoints" / "last").glob("[0-9]*"), key=lambda path: int(path.name))
    tree = ocp.StandardCheckpointer().restore(folder / "state")
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree.leaves_with_path(tree)}


def half_saved(run_dir: Path, name: str = "*") -> list[Path]:
    """Unfinished folders of checkpoints 'last' and 'best'. (The name of a finished one is only the number of its update.)"""
    return [path for path in (run_dir / "checkpoints").glob(f"{name}/*") if not path.name.isdigit()]


def assert_same_run(found: Path, expected: Path) -> None:
    """Compares records, final train state, episodes and results bit for bit, except times."""
    assert records(found) == records(expected)
    state, other = last_state(expected), last_state(found)
    assert other.keys() == state.keys()
    for name, value in state.items():
        np.testing.assert_array_equal(other[name], value, err_msg=name)
    for name in ("episodes/babilong-qa1-1k.jsonl", "export/state_encoder/model.safetensors", "export/action_encoder/model.safetensors"):
        assert (found / name).read_bytes() == (expected / name).read_bytes(), name
    rows = [[without_times(row) for row in json.loads((run_dir / "results.json").read_text())["rows"]] for run_dir in (found, expected)]
    assert rows[0] == rows[1]


def assert_same_records(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    """Compares records of metrics.jsonl up to the rounding that depends on the order of sums."""
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        numbers = {name for name, value in theirs.items() if isinstance(value, float)}
        assert {name: ours[name] for name in numbers} == pytest.approx({name: theirs[name] for name in numbers}, rel=1e-4, abs=1e-6)
        assert {name: ours[name] for name in ours.keys() - numbers} == {name: theirs[name] for name in theirs.keys() - numbers}


if __name__ == "__main__":
    raise SystemExit(command(*sys.argv[1:]))
