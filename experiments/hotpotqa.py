"""HotpotQA, distractor setting: two supporting paragraphs among ten (Yang et al. 2018).

    python -m experiments.hotpotqa --data-dir DIR --preset minilm    # 300 updates: half an hour on two CPU cores
    python -m experiments.hotpotqa --data-dir DIR --preset e5        # the paper's settings, for an accelerator (untried)
    python -m experiments.hotpotqa --data-dir DIR                    # from scratch
    python -m experiments.hotpotqa --data-dir DIR --eval musique     # also tested on MuSiQue, out of distribution
    python -m experiments.hotpotqa --data-dir DIR --data.benchmark hotpotqa:2+musique:1 --run-dir runs/both

MiniLM reached Fact EM .60 after 200 updates (--steps 200) on 1 809 training questions; BM25 reaches .35 and untrained MiniLM .34. The
paper reports .89 with e5 after 10 000 updates (Table 2). Fact EM: the share of questions whose supporting paragraphs are all picked.

DIR holds hotpotqa/hotpot_train_v1.1.json and hotpotqa/hotpot_dev_distractor_v1.json, from https://hotpotqa.github.io. The dev file is the
test set; a tenth of the train file is the validation set. A task is a type of question, or all.
"""

from __future__ import annotations

from experiments.cli import main

if __name__ == "__main__":
    raise SystemExit(main("hotpotqa", __doc__ or ""))
