"""Peak memory of a search, measured in a separate process.

``python -m experiments.speed.memory EXPORT INDEX QUESTION`` is that process.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from experiments.speed.measures import BUDGET
from qrag_jax.retrieve.index import Index
from qrag_jax.retrieve.retriever import Retriever
from qrag_jax.rundir.log import say

STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def memory(export: Path, index: Path, question: str) -> dict[str, Any]:
    """Peak resident memory of a search in a fresh process, minus the memory of the process after searching a small text.

    The peak is the kernel's VmHWM. It is reset before the search if the system allows that; otherwise it includes the start-up of the
    process, and ``search_bytes`` is an upper bound. (getrusage's ru_maxrss would begin at the peak of the parent process.) Pages of the
    mapped index count, though the system can take them back; ``anonymous_bytes`` leaves mapped files out.
    """
    size = sum(file.stat().st_size for file in index.iterdir())
    if not STATUS.exists() or "VmHWM" not in STATUS.read_text():
        return {"index_bytes": size, "ratio": None, "reason": f"this system has no {STATUS} with VmHWM"}
    command = [sys.executable, "-m", "experiments.speed.memory", *(str(path.resolve()) for path in (export, index)), question]
    done = subprocess.run(command, cwd=Path(__file__).resolve().parents[2], capture_output=True, text=True, check=False)
    if done.returncode:
        raise ValueError(f"the process whose memory is measured ended with exit code {done.returncode}: {done.stderr.strip()[-500:]}")
    found = json.loads(done.stdout.splitlines()[-1])
    before, after = found["before"], found["after"]
    used = after["VmHWM"] - before["VmRSS"]
    return {
        "index_bytes": size,
        "before_bytes": before["VmRSS"],
        "peak_bytes": after["VmHWM"],
        "search_bytes": used,
        "anonymous_bytes": after["RssAnon"] - before["RssAnon"] if "RssAnon" in after else None,
        "upper_bound": not found["reset"],
        "ratio": used / size,
        "reason": None,
    }


def resident() -> dict[str, int]:
    """Name in /proc/self/status -> bytes."""
    fields = (line.split() for line in STATUS.read_text().splitlines())
    return {words[0][:-1]: int(words[1]) * 1024 for words in fields if words and words[0] in ("VmRSS:", "VmHWM:", "RssAnon:")}


def measured_process(export: str, path: str, question: str) -> None:
    """Opens a retriever and an index, searches a small text and then the index, and prints the resident memory before and after."""
    retriever, index = Retriever.from_pretrained(export), Index.open(path)
    retriever.search(question, [f"{i} {question}" for i in range(2 * BUDGET)], BUDGET)
    reset = os.access(RESET, os.W_OK)
    if reset:
        RESET.write_text("5")  # sets the peak to the memory that is resident now
    before = resident()
    retriever.search(question, index, BUDGET)
    say(json.dumps({"before": before, "after": resident(), "reset": reset}))


if __name__ == "__main__":
    measured_process(*sys.argv[1:])
