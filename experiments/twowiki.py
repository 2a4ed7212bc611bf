"""2WikiMultihopQA: two or four supporting paragraphs among ten (Ho et al. 2020).

    python -m experiments.twowiki --data-dir DIR --preset minilm     # 300 updates: about half an hour on two CPU cores
    python -m experiments.twowiki --data-dir DIR                     # from scratch
    python -m experiments.twowiki --data-dir DIR --task bridge_comparison

None of these has been run in full yet, and the paper has no figures for this benchmark.

DIR holds 2wikimultihopqa/train.json and 2wikimultihopqa/dev.json, from https://github.com/Alab-NII/2wikimultihop (data_ids_april7.zip).
The dev file is the test set; a tenth of the train file is the validation set.
"""

from __future__ import annotations

from experiments.cli import main

if __name__ == "__main__":
    raise SystemExit(main("twowiki", __doc__ or ""))
