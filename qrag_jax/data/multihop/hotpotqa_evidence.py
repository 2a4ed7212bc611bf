"""For mixtures: HotpotQA training questions whose chunks are sentences: the supporting ones, and distractors found by BM25.

A tenth of the file is its test and another tenth its validation set. They are no published sets.
"""

from __future__ import annotations

from functools import partial

from qrag_jax.data.multihop import questions as multihop
from qrag_jax.data.multihop.evidence import read_evidence

HOTPOTQA_EVIDENCE = multihop.QuestionFiles(
    name="hotpotqa_evidence",
    folder="hotpotqa",
    files=(("hotpot_evidence_train.jsonl",),),
    home="https://hotpotqa.github.io",
    read=read_evidence,
)
load = partial(multihop.load, HOTPOTQA_EVIDENCE)
