"""ConditionalQA (Sun et al. 2022, arXiv 2110.06884): evidence sentences of one page of gov.uk, with distractors of that page and others.

The file holds training questions alone, so a tenth of its pages is the test and another tenth the validation set.
"""

from __future__ import annotations

from functools import partial

from qrag_jax.data.multihop import questions as multihop
from qrag_jax.data.multihop.evidence import read_evidence
from qrag_jax.data.multihop.records import Record


def page(record: Record) -> str:
    """The page of a question: the title of its evidence."""
    return record.paragraphs[record.support[0]][0]


CONDITIONALQA = multihop.QuestionFiles(
    name="conditionalqa",
    folder="conditionalqa",
    files=(("conditionalqa_train_evidence.jsonl",),),
    home="https://haitian-sun.github.io/conditionalqa, in the form of qrag_jax/data/multihop/evidence.py",
    read=read_evidence,
    group=page,
)
load = partial(multihop.load, CONDITIONALQA)
