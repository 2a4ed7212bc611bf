"""The measurements of ``experiments.speed``: times of alternatives in turn, the machine's peak, a search step and its naive versions."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import math
import os
import platform
import statistics
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from qrag_jax.config import QHeadConfig
from qrag_jax.retrieve.chunks import Chunk
from qrag_jax.retrieve.embed import ChunkEmbedder
from qrag_jax.retrieve.index import Index
from qrag_jax.retrieve.records import SourceRecord
from qrag_jax.retrieve.retriever import Retriever
from qrag_jax.retrieve.scan import HostScorer, look, rotations, scan
from qrag_jax.retrieve.storage import Dtype, Shard, StoredRows, pack
from qrag_jax.retrieve.types import Look, Rows

PAUSE = 0.05  # seconds before each sample, so that the threads of the previous call fall asleep
SAMPLE = 0.02  # seconds: shorter calls are repeated until they fill this time, and make one sample together
PATIENCE, ENOUGH = 20.0, 3  # a call with ENOUGH samples gets no more after PATIENCE seconds in all
BUDGET, TOP = 4, 10
DOT_ROWS, DOT_WIDTH = 2**18, 256  # 256 MiB of float32: more than any cache
INTEGER = QHeadConfig()
POSITIONS = {
    "relative, integer": INTEGER,
    "relative, continuous": QHeadConfig(position_resolution="continuous"),
    "absolute": QHeadConfig(positions="absolute"),
}


def times(seconds: Sequence[float]) -> dict[str, Any]:
    return {"median_s": statistics.median(seconds), "min_s": min(seconds), "max_s": max(seconds), "samples": len(seconds)}


def alternate(
    calls: Mapping[str, Callable[[], object]], repeats: int, prepare: Callable[[], object] | None = None
) -> dict[str, dict[str, Any]]:
    """Seconds of each call, measured in turn (A B A B ...) after a first round that does not count.

    ``prepare`` runs before each sample and is not timed; each sample is then a single call.
    """

    def sample(name: str, loops: int) -> float:
        if prepare:
            prepare()
        start = time.perf_counter()
        for _ in range(loops):
            calls[name]()
        return (time.perf_counter() - start) / loops

    loops = {}
    for name in calls:
        once = sample(name, 1)
        if prepare is None and once < 1:  # the first call also compiles and reads from disk
            once = sample(name, 1)
        loops[name] = 1 if prepare else math.ceil(SAMPLE / max(once, 1e-7))
    found: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, seconds in found.items():
            if len(seconds) < ENOUGH or sum(seconds) * loops[name] < PATIENCE:
                time.sleep(PAUSE)
                seconds.append(sample(name, loops[name]))
    return {name: times(seconds) for name, seconds in found.items()}


def ratio(slow: Mapping[str, Any] | None, fast: Mapping[str, Any] | None) -> float | None:
    """Ratio of the medians; None if one was not measured."""
    return None if slow is None or fast is None else slow["median_s"] / fast["median_s"]


# The machine --------------------------------------------------------------------------------------------------------------------


def cores() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def missing_torch() -> str | None:
    """Why PyTorch and sentence-transformers cannot be compared with; None if they can."""
    absent = [name for name in ("torch", "sentence_transformers") if importlib.util.find_spec(name) is None]
    return f"not installed: {', '.join(absent)} (pip install 'qrag-jax[torch]')" if absent else None


def machine(size: int, repeats: int) -> dict[str, Any]:
    """Describes the machine and its peak speed: GFLOP/s of a float32 matrix product of ``size`` (2 size^3 operations) in JAX and in NumPy,
    and the GB/s (10^9 bytes) that ``np.dot`` reads when it multiplies a matrix in memory with a vector."""
    draw = np.random.default_rng(0)
    a, b = (draw.standard_normal((size, size), np.float32) for _ in range(2))
    matrix, vector = np.ones((DOT_ROWS, DOT_WIDTH), np.float32), np.ones(DOT_WIDTH, np.float32)
    product, x, y = jax.jit(jnp.dot), jnp.asarray(a), jnp.asarray(b)
    calls = {"jax": lambda: product(x, y).block_until_ready(), "numpy": lambda: a @ b, "dot": lambda: matrix @ vector}
    found = alternate(calls, repeats)
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    packages = ("jax", "jaxlib", "flax", "numpy", "tokenizers", "torch", "sentence-transformers")
    installed = {name: importlib.metadata.version(name) for name in packages if importlib.util.find_spec(name.replace("-", "_"))}
    peak = {name: found[name] | {"gflops": 2 * size**3 / found[name]["median_s"] / 1e9} for name in ("jax", "numpy")}
    return {
        "cpu": next(names, platform.processor() or None),
        "cores": cores(),
        "python": platform.python_version(),
        "packages": {name: installed.get(name) for name in packages},
        "matmul": {"size": size} | peak,
        "plain_dot": found["dot"] | {"bytes": matrix.nbytes, "gb_per_s": matrix.nbytes / found["dot"]["median_s"] / 1e9},
    }


# The beginning of an index ------------------------------------------------------------------------------------------------------


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


# A step and its alternatives ----------------------------------------------------------------------------------------------------


def positions(picked: Sequence[int], length: int) -> Int[np.ndarray, " N"]:
    """Relative integer positions (eq. 6) of every chunk, by the definition."""
    cuts = np.sort(np.asarray(picked, np.int64))
    index = np.arange(length)
    interval = np.searchsorted(cuts, index, side="right")
    k, n = index - np.append(0, cuts)[interval], np.diff([0, *cuts, length])[interval]
    return interval * int(INTEGER.delta) + int(INTEGER.span) * k // np.maximum(n - 1, 1)


def table(at: Int[np.ndarray, " N"], width: int) -> np.ndarray:
    """exp(i p w) for every position p up to the largest: a table of rotations for the naive versions."""
    return rotations(np.arange(at.max() + 1.0), width, INTEGER).conj()


def textbook_step(vectors: Float[np.ndarray, "N D"], state: Float[np.ndarray, " D"], picked: Sequence[int]) -> Float[np.ndarray, " N"]:
    """Q computed literally by eq. 5 and 6, on whole arrays: an angle for every chunk and pair, every embedding rotated, inner products."""
    width = vectors.shape[1] // INTEGER.halves
    frequency = (INTEGER.theta ** (-np.arange(0, width, 2) / width)).astype(np.float32)
    angle = positions(picked, len(vectors))[:, None].astype(np.float32) * np.tile(frequency, INTEGER.halves)
    cos, sin = np.cos(angle), np.sin(angle)
    x0, x1 = vectors[:, ::2], vectors[:, 1::2]
    rotated = np.empty_like(vectors)
    rotated[:, ::2] = x0 * cos - x1 * sin
    rotated[:, 1::2] = x0 * sin + x1 * cos
    return rotated @ state


def numpy_step(rows: Rows, state: Float[np.ndarray, " D"], picked: Sequence[int]) -> Float[np.ndarray, " N"]:
    """:func:`textbook_step` with rotations from a table, in complex numbers, block by block: the fastest version in NumPy."""
    at, q = positions(picked, len(rows)), np.empty(len(rows), np.float32)
    turns = table(at, rows.width)
    for start, end in rows.parts():
        turned = rows.block(start, end).view(np.complex64) * turns[at[start:end]]
        np.dot(turned.view(np.float32), state, out=q[start:end])
    return q


def torch_step(rows: Rows) -> Callable[[Float[np.ndarray, " D"], Sequence[int]], Float[np.ndarray, " N"]]:
    """:func:`numpy_step` in PyTorch, with the same memory and the same blocks."""
    import torch

    torch.set_num_threads(cores())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # about tensors of read-only memory; nothing writes to them
        blocks = [torch.view_as_complex(torch.from_numpy(rows.block(*part)).reshape(part[1] - part[0], -1, 2)) for part in rows.parts()]

    def step(state: Float[np.ndarray, " D"], picked: Sequence[int]) -> Float[np.ndarray, " N"]:
        with torch.inference_mode():
            numbers = positions(picked, len(rows))
            turns, at, vector = torch.from_numpy(table(numbers, rows.width)), torch.from_numpy(numbers), torch.from_numpy(state)
            found = [
                torch.view_as_real(block * turns[at[start:end]]).reshape(end - start, -1) @ vector
                for block, (start, end) in zip(blocks, rows.parts(), strict=True)
            ]
            return torch.cat(found).numpy()

    return step


def plain_dot(rows: Rows, state: Float[np.ndarray, " D"]) -> Float[np.ndarray, " N"]:
    """<s, e> without rotation: the lower limit of every exhaustive search."""
    q = np.empty(len(rows), np.float32)
    for start, end in rows.parts():
        np.dot(rows.block(start, end), state, out=q[start:end])
    return q


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
