"""EntailmentBank, task 2 (Dalvi et al. 2021, arXiv 2104.08661): the sentences of a proof, 1 to 17 of them, among 25."""

from __future__ import annotations

from functools import partial

from qrag_jax.data.multihop import questions as multihop
from qrag_jax.data.multihop.evidence import read_proofs
from qrag_jax.data.multihop.records import Record


def question_of(record: Record) -> str:
    """The id of the question; a record is one of its proofs."""
    return record.id.rpartition("-")[0]


ENTAILMENTBANK = multihop.QuestionFiles(
    name="entailmentbank",
    folder="entailmentbank",
    files=(("entailmentbank_task2_train.jsonl", "entailmentbank_task2_dev.jsonl"),),
    home="https://allenai.org/data/entailmentbank, in the form of qrag_jax/data/multihop/evidence.py",
    read=read_proofs,
    group=question_of,
)
load = partial(multihop.load, ENTAILMENTBANK)
