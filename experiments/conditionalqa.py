"""ConditionalQA: evidence sentences of a government page among 9 to 39 sentences (Sun et al. 2022).

    python -m experiments.conditionalqa --data-dir DIR --preset minilm
    python -m experiments.conditionalqa --data-dir DIR                     # from scratch
    python -m experiments.open --benchmark conditionalqa --data-dir DIR --run-dir OUT   # all documents as one corpus

None of these trainings has been run in full yet, and the paper has no figures for this benchmark.

DIR holds conditionalqa/conditionalqa_train_evidence.jsonl. The official dev file is not read: a tenth of the pages is the test set and
another tenth the validation set.
"""

from __future__ import annotations

from experiments.cli import main

if __name__ == "__main__":
    raise SystemExit(main("conditionalqa", __doc__ or ""))
