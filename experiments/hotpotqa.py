"""HotpotQA, distractor setting: two supporting paragraphs among ten (Yang et al. 2018).

    python -m experiments.hotpotqa --data-dir DIR --preset minilm    # 300 updates: half an hour on two CPU cores
    python -m experiments.hotpotqa --data-dir DIR --preset e5        # the paper's settings, for an accelerator (untried)
    python -m experiments.hotpotqa --data-dir DIR                    # from scratch
    python -m experiments.hotpotqa --data-dir DIR --eval musique     # tested on MuSiQue as well, out of distribution
    python -m experiments.hotpotqa --data-dir DIR --data.benchmark hotpotqa:2+musique:1 --run-dir runs/both

MiniLM on 1 809 training questions reached Fact EM .60 after 200 updates (--steps 200), where BM25 has .35 and MiniLM untrained .34; the
paper has .89 with e5 after 10 000 updates (Table 2).

DIR holds hotpotqa/hotpot_train_v1.1.json and hotpotqa/hotpot_dev_distractor_v1.json, from https://hotpotqa.github.io. The dev file is
test; a tenth of the train file is validation. A task is a type of question, or all.
"""

from __future__ import annotations

from experiments.cli import main

if __name__ == "__main__":
    raise SystemExit(main("hotpotqa", __doc__ or ""))
