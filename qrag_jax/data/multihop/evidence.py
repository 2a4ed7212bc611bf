"""Questions with their gold evidence and distractors, in MuSiQue's form without hops: EntailmentBank, ConditionalQA, and further training
questions of HotpotQA and 2WikiMultihopQA.

A file has one JSON object per line: ``id``, ``question``, ``answer``, ``answer_aliases`` and ``paragraphs`` [{idx, title, paragraph_text,
is_supporting}]; titles may be empty. Other fields are not read.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

from qrag_jax.config.benchmarks import ALL
from qrag_jax.data.multihop.records import ReadReport, Record, aliases_of, flagged, make_record, read_file


def read_evidence(path: str | Path, *, skip_bad: bool = False) -> tuple[tuple[Record, ...], ReadReport]:
    """The records of a file. Errors: see :func:`qrag_jax.data.multihop.records.read_file`."""
    return read_file(path, parse_evidence, skip_bad=skip_bad)


def read_proofs(path: str | Path, *, skip_bad: bool = False) -> tuple[tuple[Record, ...], ReadReport]:
    """As :func:`read_evidence`, for files in which a question may have several proofs under one id, each with its own paragraphs. The id
    of a record ends in a digest of its paragraphs."""
    return read_file(path, _parse_proof, skip_bad=skip_bad)


def parse_evidence(tree: Any, notes: Counter[str]) -> Record:
    """Reads a record. Raises BadRecord."""
    return make_record(tree, "id", ALL, flagged(tree), notes, aliases_of(tree, notes), titles=False)


def _parse_proof(tree: Any, notes: Counter[str]) -> Record:
    record = parse_evidence(tree, notes)
    digest = hashlib.blake2b(repr(record.paragraphs).encode("utf-8", "backslashreplace"), digest_size=4).hexdigest()
    return replace(record, id=f"{record.id}-{digest}")
