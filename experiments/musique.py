"""MuSiQue-Ans: two to four supporting paragraphs, one per hop, among twenty (Trivedi et al. 2022).

    python -m experiments.musique --data-dir DIR --preset minilm     # 300 updates: half an hour on two CPU cores
    python -m experiments.musique --data-dir DIR                     # from scratch
    python -m experiments.musique --data-dir DIR --task 2hop
    python -m experiments.musique --data-dir DIR --preset e5         # the paper's settings, for an accelerator (untried)

MiniLM reached Fact EM .36 after 80 updates (--steps 80) on 421 training questions; BM25 reaches .12 and untrained MiniLM .26. The paper
reports .72 with e5 after 10 000 updates (Table 2). Fact EM: the share of questions whose supporting paragraphs are all picked.

DIR holds musique/musique_ans_v1.0_train.jsonl and musique/musique_ans_v1.0_dev.jsonl, from https://github.com/StonyBrookNLP/musique. The
dev file is the test set; a tenth of the train file is the validation set.
"""

from __future__ import annotations

from experiments.cli import main

if __name__ == "__main__":
    raise SystemExit(main("musique", __doc__ or ""))
