"""QMSum: the parts of a long meeting that answer a query, in document order (Zhong et al. 2021).

    python -m experiments.qmsum --data-dir DIR --preset minilm
    python -m experiments.qmsum --data-dir DIR                     # from scratch
    python -m experiments.open --benchmark qmsum --data-dir DIR --run-dir OUT   # all documents as one corpus

None of these trainings has been run in full yet, and the paper has no figures for this benchmark.

DIR holds qmsum/meetings_train.jsonl, queries_train.jsonl, meetings_val.jsonl and queries_val.jsonl. The val files are the test set; the
queries of a tenth of the training meetings are the validation set. A chunk is up to 80 words of consecutive turns.
"""

from __future__ import annotations

from experiments.cli import main

if __name__ == "__main__":
    raise SystemExit(main("qmsum", __doc__ or ""))
