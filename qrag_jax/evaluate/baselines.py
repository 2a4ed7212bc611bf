"""Retrieval without fine-tuning, with the questions and the budget of a run: the results that training has to beat.

    bm25      the T chunks with the highest BM25 score (:mod:`qrag_jax.retrieve.words`)
    single    one search step: the T chunks nearest to the question's embedding
    multi     this library's multi-step search with the same embedder, not trained further, without positions
    random    T chunks drawn at random

Each writes the same episodes and rows of results.json as a trained retriever; the ``method`` of a row names the baseline.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from qrag_jax.evaluate.episodes import score_episodes, summary
from qrag_jax.evaluate.results import SCHEMA, EpisodeRecord, results_table, write_episodes
from qrag_jax.evaluate.sets import EvaluationSet
from qrag_jax.retrieve.retriever import Retriever
from qrag_jax.retrieve.scan import HostScorer, look
from qrag_jax.retrieve.types import PoolRows, Trajectory
from qrag_jax.retrieve.words import WordIndex, words
from qrag_jax.rundir.files import write_json, write_text
from qrag_jax.rundir.log import say
from qrag_jax.types import QAExample

Similarity = Literal["cosine", "dot"]
Find = Callable[[Sequence[QAExample], int], list[Trajectory]]
"""Questions, budget -> the picks of each."""
METHODS = {"bm25": "BM25", "single": "single-step, no fine-tuning", "multi": "multi-step, no fine-tuning", "random": "random"}
"""Name on the command line -> ``method`` of a row."""
NEED_EMBEDDER = ("single", "multi")


def bm25(examples: Sequence[QAExample], budget: int) -> list[Trajectory]:
    """The chunks with the highest BM25 score; each document is a collection of its own. Equal scores keep document order.

    Raises ValueError when bm25s is not installed.
    """
    pool = list({text: None for example in examples for text in example.chunks})
    known = dict(zip(pool, words(pool), strict=True))
    found = []
    chunks: tuple[str, ...] = ()
    index = WordIndex.of_words([])
    for example, question in zip(examples, words([example.question for example in examples]), strict=True):
        if example.chunks is not chunks:  # questions over one open corpus share its index
            chunks, index = example.chunks, WordIndex.of_words([known[text] for text in example.chunks])
        found.append(_trajectory(index.scores(question), budget))
    return found


class Encoder:
    """The embedder of a retriever for one look: chunks and questions in, vectors out that are compared without positions.

    ``similarity`` is the one the embedder was trained with: "dot" for contriever, "cosine" for most others.
    """

    def __init__(self, retriever: Retriever, similarity: Similarity = "cosine") -> None:
        self.retriever = retriever
        self._scaled = _unit if similarity == "cosine" else lambda vectors: vectors
        self._qhead = replace(retriever.config.qhead, positions="none")

    def chunks(self, texts: Sequence[str]) -> Float[np.ndarray, "U D"]:
        return self._scaled(self.retriever.embed_chunks(texts, label="chunks"))

    def states(self, questions: Sequence[str], read: Sequence[Sequence[str]] | None = None) -> Float[np.ndarray, "Q D"]:
        """Of each question, with the chunk that was ``read`` after it, if any."""
        return self._scaled(self.retriever.embed_states(questions, [()] * len(questions) if read is None else read, 2, label="questions"))

    def scorer(self, rows: PoolRows) -> HostScorer:
        return HostScorer(rows, self._qhead)


def single_step(retriever: Retriever, similarity: Similarity = "cosine") -> Find:
    """Chunks by the similarity of their embedding to that of the question (the empty state), in one step and without positions."""
    encoder = Encoder(retriever, similarity)

    def find(examples: Sequence[QAExample], budget: int) -> list[Trajectory]:
        pool: dict[str, int] = {}
        index = [np.array([pool.setdefault(text, len(pool)) for text in example.chunks], np.int32) for example in examples]
        vectors = encoder.chunks(list(pool))
        states = encoder.states([example.question for example in examples])
        found = []
        for state, rows in zip(states, index, strict=True):
            (seen,) = encoder.scorer(PoolRows(vectors, rows))(state[None], [()], budget)
            found.append(Trajectory(seen.chunks, seen.q, (0.0,) * len(seen.chunks)))
        return found

    return find


def multi_step(retriever: Retriever) -> Find:
    """The search of a trained retriever, with the unchanged parameters of ``retriever`` and without positions."""
    config = replace(retriever.config, qhead=replace(retriever.config.qhead, positions="none"))
    plain = Retriever(config, retriever.embedder, retriever.params, retriever.tokenizer)
    return plain.run


def random_chunks(seed: int) -> Find:
    """Chunks drawn without replacement, as a function of the seed and the question's id. There is no score."""

    def find(examples: Sequence[QAExample], budget: int) -> list[Trajectory]:
        draws = [np.random.default_rng((seed, zlib.crc32(example.id.encode()))) for example in examples]
        picks = [
            draw.choice(len(example.chunks), min(budget, len(example.chunks)), replace=False)
            for draw, example in zip(draws, examples, strict=True)
        ]
        return [Trajectory(tuple(chosen.tolist()), (), (0.0,) * len(chosen)) for chosen in picks]

    return find


def make(method: str, *, retriever: Retriever | None = None, similarity: Similarity = "cosine", seed: int = 0) -> Find:
    """The baseline called ``method``. Raises ValueError on an unknown name, and if the embedder that it needs is missing."""
    if method not in METHODS:
        raise ValueError(f"method {method!r}: unknown baseline; known: {', '.join(METHODS)}")
    if method == "bm25":
        return bm25
    if method == "random":
        return random_chunks(seed)
    if retriever is None:
        raise ValueError(f"method {method!r}: needs an embedder; give a retriever")
    return single_step(retriever, similarity) if method == "single" else multi_step(retriever)


def evaluate_baseline(method: str, find: Find, sets: Sequence[EvaluationSet], run_dir: Path) -> list[dict[str, Any]]:
    """Writes the episodes, and returns one row of results.json for each set. Rows have no stop threshold: nothing was calibrated.

    Raises ValueError when a question has no supporting chunks.
    """
    rows = []
    for questions in sets:
        budget = questions.budget
        start = time.perf_counter()
        records: list[EpisodeRecord] = []
        for examples in questions:
            records += score_episodes(examples, find(examples, budget))
        seconds = (time.perf_counter() - start) / len(records)
        write_episodes(run_dir / "episodes" / f"{questions.name}-{method}.jsonl", records)
        found = summary(records, None)
        step = 0 if method in NEED_EMBEDDER else None
        rows.append({**questions.names, **found, "seconds_per_episode": seconds, "checkpoint_step": step, "method": METHODS[method]})
        say(f"{questions.name}, {METHODS[method]}: Fact EM {found['fact_em']:.3f} on {found['episodes']} questions, {seconds:.2f} s each")
    return rows


def write_baselines(run_dir: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Writes results.json, and results.md with the methods in the first column."""
    write_json(run_dir / "results.json", {"schema": SCHEMA, "rows": list(rows)})
    write_text(run_dir / "results.md", baselines_table(rows) + "\n")


def baselines_table(rows: Sequence[dict[str, Any]]) -> str:
    """The table of results.md with a column for the method."""
    first = ["method", "---", *(row["method"] for row in rows)]
    return "\n".join(f"| {name} {line}" for name, line in zip(first, results_table(rows).splitlines(), strict=True))


def _trajectory(scores: Float[np.ndarray, " N"], budget: int) -> Trajectory:
    best = look(scores, (), budget, 0)
    return Trajectory(best.chunks, best.q, (0.0,) * len(best.chunks))


def _unit(vectors: Float[np.ndarray, "R D"]) -> Float[np.ndarray, "R D"]:
    """Rows scaled to length 1. The zero vector (a text without tokens) stays zero."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
