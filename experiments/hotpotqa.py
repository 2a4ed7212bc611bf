"""HotpotQA, distractor setting: two supporting paragraphs among ten (Yang et al. 2018).

    python -m experiments.hotpotqa --data-dir DIR                    # from scratch, on the CPU
    python -m experiments.hotpotqa --data-dir DIR --preset e5        # the paper's settings, for an accelerator
    python -m experiments.hotpotqa --data-dir DIR --data.benchmark hotpotqa:2+musique:1 --run-dir runs/both
    python -m experiments.hotpotqa --data-dir DIR --eval musique     # tested on MuSiQue as well, out of distribution

DIR holds hotpotqa/hotpot_train_v1.1.json and hotpotqa/hotpot_dev_distractor_v1.json, from https://hotpotqa.github.io. The dev file is
test; a tenth of the train file is validation. A task is a type of question, or all.
"""

from __future__ import annotations

from experiments.cli import main
from qrag_jax.data.hotpotqa import TYPES
from qrag_jax.data.multihop import ALL

if __name__ == "__main__":
    raise SystemExit(main("hotpotqa", (ALL, *TYPES), ALL, __doc__ or ""))
