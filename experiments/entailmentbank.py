"""EntailmentBank: 2 to 17 sentences of a proof among 25 (Dalvi et al. 2021).

    python -m experiments.entailmentbank --data-dir DIR --preset minilm
    python -m experiments.entailmentbank --data-dir DIR                     # from scratch
    python -m experiments.open --benchmark entailmentbank --data-dir DIR --run-dir OUT   # all documents as one corpus

None of these trainings has been run in full yet, and the paper has no figures for this benchmark.

DIR holds entailmentbank/entailmentbank_task2_train.jsonl and entailmentbank_task2_dev.jsonl. The dev file is the test set; a tenth of the
questions of the train file is the validation set.
"""

from __future__ import annotations

from experiments.cli import main

if __name__ == "__main__":
    raise SystemExit(main("entailmentbank", __doc__ or ""))
