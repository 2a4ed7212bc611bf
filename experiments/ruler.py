"""RULER: needles in a haystack and questions among paragraphs (Hsieh et al. 2024), the paper's second long-context benchmark.

    python -m experiments.ruler                      # niah_mk3: uuids among uuids, from scratch: 11 minutes on two busy CPU cores
    python -m experiments.ruler --task niah          # one retriever for all eight needle tasks: 43 minutes on two busy CPU cores
    python -m experiments.ruler --task niah_mk1 --eval-tokens 4k 32k 128k --data-dir DIR  # trains on books, tests on essays
    python -m experiments.ruler --task qa_sh --data-dir DIR                               # SQuAD paragraphs; qa_mh: HotpotQA
    python -m experiments.ruler --task niah --preset contriever                      # the paper's settings, for an accelerator (untried)

Fact EM (the share of questions whose supporting chunks are all picked) at 4K, 32K and 128K, with --data-dir, one seed, 100 questions each:
niah_mk3 alone 1.00 at all three (.99 at 1M); niah_mk2 alone 1.00, .99, .87; with --task niah, six of the eight tasks 1.00, MK-2 .98, .84,
.62, and MK-3 1.00, .96, .86. The paper reports 1.00 for all (Table 1).
Needle tasks need no data; qa_sh needs squad/dev-v2.0.json and qa_mh hotpotqa/*.json.
"""

from __future__ import annotations

from experiments.cli import main

if __name__ == "__main__":
    raise SystemExit(main("ruler", __doc__ or ""))
