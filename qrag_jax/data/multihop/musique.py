"""MuSiQue-Ans (Trivedi et al. 2022, arXiv 2108.00573): two to four supporting paragraphs, one per hop, among twenty.

A file has one JSON object per line: ``id``, ``question``, ``answer``, ``answer_aliases``, ``answerable``, ``paragraphs`` [{idx, title,
paragraph_text, is_supporting}] and ``question_decomposition`` [{paragraph_support_idx, ...}], one entry per hop.
"""

from __future__ import annotations

from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

from qrag_jax.config.benchmarks import BENCHMARKS
from qrag_jax.data.multihop import questions as multihop
from qrag_jax.data.multihop.records import (
    BadRecord,
    ReadReport,
    Record,
    aliases_of,
    flagged,
    get,
    make_record,
    objects,
    read_file,
)

TYPES = BENCHMARKS["musique"].types


def read_musique(path: str | Path, *, skip_bad: bool = False) -> tuple[tuple[Record, ...], ReadReport]:
    """The records of a MuSiQue-Ans file. Errors: see :func:`qrag_jax.data.multihop.records.read_file`."""
    return read_file(path, _parse, skip_bad=skip_bad)


def _parse(tree: Any, notes: Counter[str]) -> Record:
    if not get(tree, "answerable", bool):
        raise BadRecord("not answerable", "its paragraphs do not answer it; use the files of MuSiQue-Ans, not of MuSiQue-Full")
    paragraphs = flagged(tree)
    hops = [get(hop, "paragraph_support_idx", int) for hop in objects(tree, "question_decomposition")]
    support = [number for number, (_, _, supports) in enumerate(paragraphs) if supports]
    if support and sorted(set(hops)) != support:
        raise BadRecord("hops are not the support", f"the hops use the paragraphs {sorted(set(hops))}, is_supporting marks {support}")
    kind = f"{len(hops)}hop"
    if support and kind not in TYPES:
        raise BadRecord("unknown type", f"{len(hops)} hops; known: {', '.join(TYPES)}")
    return make_record(tree, "id", kind, paragraphs, notes, aliases_of(tree, notes), path=hops if support else ())


MUSIQUE = multihop.QuestionFiles(
    name="musique",
    folder="musique",
    files=(
        ("musique_ans_v1.0_train.jsonl", "musique_ans_v1.0_dev.jsonl"),
        ("musique_fit.jsonl", "musique_eval.jsonl"),
        *multihop.HUGGING_FACE,
    ),
    home="https://github.com/StonyBrookNLP/musique (musique_v1.0.zip)",
    read=read_musique,
)
load = partial(multihop.load, MUSIQUE)
