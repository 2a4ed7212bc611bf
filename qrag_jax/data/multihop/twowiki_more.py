"""For mixtures: 2WikiMultihopQA development questions with their gold paragraphs, and distractors found by BM25.

A tenth of the file is its test and another tenth its validation set. They are no published sets.
"""

from __future__ import annotations

from functools import partial

from qrag_jax.data.multihop import questions as multihop
from qrag_jax.data.multihop.evidence import read_evidence

TWOWIKI_MORE = multihop.QuestionFiles(
    name="twowiki_more",
    folder="2wikimultihopqa",
    files=(("2wiki_dev_rebuilt.jsonl",),),
    home="https://github.com/Alab-NII/2wikimultihop",
    read=read_evidence,
)
load = partial(multihop.load, TWOWIKI_MORE)
