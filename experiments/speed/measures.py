"""What ``experiments.speed`` measures of an index: a search step and its naive versions, kinds of positions, batches, storage, searches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from experiments.speed.naive import INTEGER, numpy_step, plain_dot, textbook_step, torch_step
from experiments.speed.timing import alternate, missing_torch, ratio
from qrag_jax.config import QHeadConfig
from qrag_jax.retrieve.chunks import Chunk
from qrag_jax.retrieve.embed import ChunkEmbedder
from qrag_jax.retrieve.index import Index
from qrag_jax.retrieve.records import SourceRecord
from qrag_jax.retrieve.retriever import Retriever
from qrag_jax.retrieve.scan import HostScorer, look, scan
from qrag_jax.retrieve.storage import Dtype, Shard, pack
from qrag_jax.retrieve.stored_rows import StoredRows
from qrag_jax.retrieve.types import Look, Rows

BUDGET, TOP = 4, 10
POSITIONS = {
    "relative, integer": INTEGER,
    "relative, continuous": QHeadConfig(position_resolution="continuous"),
    "absolute": QHeadConfig(positions="absolute"),
}


@dataclass(frozen=True)
class FirstRows:
    """The first ``count`` rows of ``whole``: a :class:`~qrag_jax.retrieve.types.Rows`."""

    whole: Rows
    count: int

    @property
    def width(self) -> int:
        return self.whole.width

    def __len__(self) -> int:
        return self.count

    def parts(self) -> list[tuple[int, int]]:
        return [(start, min(end, self.count)) for start, end in self.whole.parts() if start < self.count]

    def block(self, start: int, end: int) -> Float[np.ndarray, "R D"]:
        return self.whole.block(start, end)


@dataclass(frozen=True)
class FirstChunks:
    """The first ``count`` chunks of an index as a document: a :class:`~qrag_jax.retrieve.types.Document`."""

    index: Index
    count: int

    @property
    def rows(self) -> FirstRows:
        return FirstRows(self.index.rows, self.count)

    def __len__(self) -> int:
        return self.count

    @property
    def sources(self) -> tuple[SourceRecord, ...]:
        return ()

    @property
    def restarts(self) -> tuple[int, ...]:
        return (0,)

    def chunk(self, i: int) -> Chunk:
        return self.index.chunk(i)

    def equals(self, i: int) -> tuple[int, ...]:
        return ()

    def check(self, retriever: ChunkEmbedder) -> None:
        self.index.check(retriever)


def spread(count: int) -> tuple[int, ...]:
    """The three picks before the measured step."""
    return count // 5, count // 2, 4 * count // 5


def state_of(retriever: Retriever, document: FirstChunks, question: str) -> Float[np.ndarray, " D"]:
    """A question with its three picks, embedded."""
    texts = [document.chunk(i).text for i in spread(len(document))]
    return retriever.embed_states([question], [texts], BUDGET)[0]


def steps(retriever: Retriever, document: FirstChunks, question: str, repeats: int) -> dict[str, Any]:
    """One step after three picks, re-rotation in NumPy and in PyTorch, and the plain dot product, all over the same mapped memory."""
    rows, picked, state = document.rows, spread(len(document)), state_of(retriever, document, question)
    scorer, reason = HostScorer(rows, INTEGER), missing_torch()
    vectors = np.array(rows.block(0, len(rows)))
    naive: dict[str, Callable[[], np.ndarray]] = {
        "textbook": lambda: textbook_step(vectors, state, picked),
        "numpy": lambda: numpy_step(rows, state, picked),
    }
    if reason is None:
        rotate = torch_step(rows)
        naive["pytorch"] = lambda: rotate(state, picked)
    q = scan(rows, state[None], [picked], INTEGER)[0]
    worst = max(float(np.abs(other() - q).max()) for other in naive.values())
    if worst > 1e-3 * max(1.0, float(np.abs(q).max())):
        raise ValueError(f"{len(rows)} chunks: the versions of Q differ by {worst}, so their times cannot be compared")
    calls: dict[str, Callable[[], object]] = {"step": lambda: scorer(state[None], [picked], 1), "plain_dot": lambda: plain_dot(rows, state)}
    calls |= {name: partial(_best, other, picked) for name, other in naive.items()}
    found = alternate(calls, repeats)
    return {
        "chunks": len(rows),
        **{name: found.get(name) for name in ("step", "plain_dot", "textbook", "numpy", "pytorch")},
        "step_over_plain_dot": ratio(found["step"], found["plain_dot"]),
        "textbook_over_step": ratio(found["textbook"], found["step"]),
        "numpy_over_step": ratio(found["numpy"], found["step"]),
        "pytorch_over_step": ratio(found.get("pytorch"), found["step"]),
        "gb_per_s": 4 * len(rows) * rows.width / found["step"]["median_s"] / 1e9,
        "largest_q_difference": worst,
        "pytorch_reason": reason,
    }


def _best(q: Callable[[], np.ndarray], picked: Sequence[int]) -> Look:
    return look(q(), picked, 1, 0)


def other_positions(retriever: Retriever, document: FirstChunks, question: str, repeats: int) -> list[dict[str, Any]]:
    """One step with each kind of position."""
    picked, state = spread(len(document)), state_of(retriever, document, question)[None]
    scorers = {name: HostScorer(document.rows, config) for name, config in POSITIONS.items()}
    found = alternate({name: partial(scorer, state, [picked], 1) for name, scorer in scorers.items()}, repeats)
    return [{"positions": name, **seconds, "over_integer": ratio(seconds, found["relative, integer"])} for name, seconds in found.items()]


def batches(retriever: Retriever, document: FirstChunks, questions: Sequence[str], repeats: int) -> list[dict[str, Any]]:
    """One step for 1, 8 and 32 questions in one pass; each question has its own three picks."""
    draw, scorer = np.random.default_rng(0), HostScorer(document.rows, INTEGER)
    picked = [tuple(draw.choice(len(document), 3, replace=False).tolist()) for _ in range(32)]
    states = retriever.embed_states(questions, [[document.chunk(i).text for i in picks] for picks in picked], BUDGET)
    found = alternate({str(size): partial(scorer, states[:size], picked[:size], 1) for size in (1, 8, 32)}, repeats)
    each = {int(size): seconds["median_s"] / int(size) for size, seconds in found.items()}
    return [{"questions": n, **found[str(n)], "s_per_question": each[n], "alone_over_together": each[1] / each[n]} for n in each]


def storage(retriever: Retriever, document: FirstChunks, questions: Sequence[str], repeats: int, folder: Path) -> list[dict[str, Any]]:
    """A step over float32, bfloat16 and int8; the top 10 chunks and Q of 32 questions, compared with float32."""
    dtypes: tuple[Dtype, ...] = ("float32", "bfloat16", "int8")
    picked, state = spread(len(document)), state_of(retriever, document, questions[0])[None]
    stored = {dtype: FirstRows(_converted(document.index, dtype, folder / dtype), len(document)) for dtype in dtypes}
    scorers = {dtype: HostScorer(rows, INTEGER) for dtype, rows in stored.items()}
    found = alternate({dtype: partial(scorer, state, [picked], 1) for dtype, scorer in scorers.items()}, repeats)
    asked = retriever.embed_states(questions, [[]] * len(questions), BUDGET)
    q = {dtype: scan(rows, asked, [()] * len(asked), INTEGER) for dtype, rows in stored.items()}
    top = {dtype: [set(look(row.copy(), (), TOP, 0).chunks) for row in values] for dtype, values in q.items()}
    return [
        {
            "dtype": dtype,
            **found[dtype],
            "over_float32": ratio(found[dtype], found["float32"]),
            "recall_at_10": float(np.mean([len(a & b) / TOP for a, b in zip(top[dtype], top["float32"], strict=True)])),
            "q_error_max": float(np.abs(q[dtype] - q["float32"]).max()),
            "q_error_mean": float(np.abs(q[dtype] - q["float32"]).mean()),
            "q_std": float(q["float32"].std(axis=1).mean()),
        }
        for dtype in dtypes
    ]


def _converted(index: Index, dtype: Dtype, folder: Path) -> StoredRows:
    """The rows of a float32 index, stored as a build with ``dtype`` stores them, without texts."""
    if dtype == "float32":
        return index.rows
    folder.mkdir()
    shards = [
        Shard.write(folder, number, [b"\n"] * shard.chunks, [key.tobytes() for key in shard.keys], *pack(shard.vectors, dtype), dtype)
        for number, shard in enumerate(index.meta.shards)
    ]
    return StoredRows(shards, index.rows.width)


def whole_searches(retriever: Retriever, document: FirstChunks, question: str, repeats: int) -> dict[str, Any]:
    """A question, from its text to four picks: greedy, and with a beam of 4."""
    search = lambda beam: lambda: retriever.search(question, document, BUDGET, beam=beam)
    found = alternate({"greedy": search(1), "beam": search(4)}, repeats)
    return {"chunks": len(document), **found, "beam_over_greedy": ratio(found["beam"], found["greedy"])}
