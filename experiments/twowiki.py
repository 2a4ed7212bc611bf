"""2WikiMultihopQA: two or four supporting paragraphs among ten (Ho et al. 2020).

    python -m experiments.twowiki --data-dir DIR --preset minilm     # 300 updates: about half an hour on two CPU cores
    python -m experiments.twowiki --data-dir DIR                     # from scratch
    python -m experiments.twowiki --data-dir DIR --task bridge_comparison

No full run of either was measured yet, and the paper has no figures for it.

DIR holds 2wikimultihopqa/train.json and 2wikimultihopqa/dev.json, from https://github.com/Alab-NII/2wikimultihop (data_ids_april7.zip).
The dev file is test; a tenth of the train file is validation.
"""

from __future__ import annotations

from experiments.cli import main

if __name__ == "__main__":
    raise SystemExit(main("twowiki", __doc__ or ""))
