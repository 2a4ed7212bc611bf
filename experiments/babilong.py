"""BabiLong: chains of facts hidden in long documents (Kuratov et al. 2024), the paper's main benchmark.

    python -m experiments.babilong                 # qa2, from scratch, on the CPU
    python -m experiments.babilong --task qa3 --eval-tokens 1k 4k 32k 128k 1m
    python -m experiments.babilong --data-dir DIR  # official stories and real books

Without --data-dir, stories are generated and hidden in Python's own documentation.
"""

from __future__ import annotations

from experiments.cli import main
from qrag_jax.config import BABI_TASKS

if __name__ == "__main__":
    raise SystemExit(main("babilong", BABI_TASKS, "qa2", __doc__ or ""))
