"""RULER: needles in a haystack and questions among paragraphs (Hsieh et al. 2024), the paper's second long-context benchmark.

    python -m experiments.ruler --task niah_mk1      # four keys in Python's own documentation, from scratch, on the CPU
    python -m experiments.ruler                      # niah_mk3: uuids among uuids
    python -m experiments.ruler --task niah --preset minilm --eval-tokens 4k 32k 128k     # one retriever for all eight needle tasks
    python -m experiments.ruler --task niah_mk1 --eval-tokens 4k 32k 128k --data-dir DIR  # books to train on, essays to test on
    python -m experiments.ruler --task qa_sh --data-dir DIR                               # SQuAD paragraphs; qa_mh: HotpotQA

Needle tasks need no data; qa_sh needs squad/dev-v2.0.json and qa_mh hotpotqa/*.json in the data folder.
"""

from __future__ import annotations

from experiments.cli import main
from qrag_jax.data.ruler import TASKS

if __name__ == "__main__":
    raise SystemExit(main("ruler", TASKS, "niah_mk3", __doc__ or ""))
