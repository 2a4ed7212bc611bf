"""MuSiQue-Ans: two to four supporting paragraphs, one a hop, among twenty (Trivedi et al. 2022).

    python -m experiments.musique --data-dir DIR                     # from scratch, on the CPU
    python -m experiments.musique --data-dir DIR --task 2hop
    python -m experiments.musique --data-dir DIR --preset e5         # the paper's settings, for an accelerator

DIR holds musique/musique_ans_v1.0_train.jsonl and musique/musique_ans_v1.0_dev.jsonl, from https://github.com/StonyBrookNLP/musique. The
dev file is test; a tenth of the train file is validation.
"""

from __future__ import annotations

from experiments.cli import main
from qrag_jax.data.multihop import ALL
from qrag_jax.data.musique import TYPES

if __name__ == "__main__":
    raise SystemExit(main("musique", (ALL, *TYPES), ALL, __doc__ or ""))
