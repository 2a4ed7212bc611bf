"""The limit of "not in the documents": each validation question is asked to documents with and without its supporting chunks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from qrag_jax.config import RunConfig
from qrag_jax.data.pooled import in_one_haystack, why_not_pooled
from qrag_jax.evaluate.metrics import calibrate_refusal
from qrag_jax.evaluate.sets import EvaluationSet
from qrag_jax.export.refusal import Refusal
from qrag_jax.retrieve.retriever import Retriever
from qrag_jax.types import QAExample

MOST = 5_000
"""Chunks of the documents that are joined into one."""


def find_refusal(retriever: Retriever, questions: EvaluationSet, *, beam: int = 1) -> Refusal | None:
    """The limit of the best Q that refuses most questions without an answer, and at most 1 % of those with one. Call it with validation
    questions only.

    Documents that have their own length are searched together, as those of an index are, unless their order counts. None if no question
    has both: all its supporting chunks, and other chunks, at least as many as picks.
    """
    there: list[float] = []
    gone: list[float] = []
    chunks = 0
    for examples in _haystacks(retriever.config, questions):
        whole = [one for one in examples if one.support and not one.missing and len(one.chunks) - len(one.support) >= questions.budget]
        if not whole:
            continue
        asked = [*whole, *map(without_support, whole)]
        found = retriever.run(asked, questions.budget, beam=beam, label="with and without support")
        best = [max(one.q) for one in found]
        there += best[: len(whole)]
        gone += best[len(whole) :]
        chunks = max(chunks, *(len(one.chunks) for one in whole))
    if not there:
        return None
    least = calibrate_refusal(there, gone)
    share = lambda values: sum(value < least for value in values) / len(values)
    return Refusal(least, share(there), share(gone), len(there), chunks)


def without_support(example: QAExample) -> QAExample:
    """The question over its document without the supporting chunks."""
    kept = [i for i in range(len(example.chunks)) if i not in set(example.support)]
    titles = tuple(example.titles[i] for i in kept) if example.titles else ()
    chunks = tuple(example.chunks[i] for i in kept)
    return replace(example, chunks=chunks, titles=titles, support=(), path=(), missing=example.missing + len(example.support))


def _haystacks(config: RunConfig, questions: EvaluationSet) -> Iterator[list[QAExample]]:
    """The questions, with documents joined into haystacks of about ``MOST`` chunks where that gives no false evidence."""
    if why_not_pooled(config.data.benchmark, config.qhead.positions) is not None:
        yield from questions
        return
    group: list[QAExample] = []
    for example in (example for part in questions for example in part):
        if group and sum(len(one.chunks) for one in group) + len(example.chunks) > MOST:
            yield in_one_haystack(group)
            group = []
        group.append(example)
    yield in_one_haystack(group)
