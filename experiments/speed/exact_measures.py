"""What ``experiments.speed.exact`` measures: times, equal picks, rows read and memory of each kind of stored vectors.

``python -m experiments.speed.exact_measures INDEX STATES`` is the process whose memory is measured.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from experiments.speed.measures import spread
from experiments.speed.memory import STATUS, resident
from experiments.speed.naive import INTEGER, plain_dot
from experiments.speed.timing import alternate, describe_machine, ratio
from qrag_jax.config import QHeadConfig
from qrag_jax.retrieve.coded_scan import CodedScorer
from qrag_jax.retrieve.index import Index
from qrag_jax.retrieve.meta import META, IndexModel, Meta
from qrag_jax.retrieve.records import SourceRecord
from qrag_jax.retrieve.retriever import Retriever
from qrag_jax.retrieve.scan import HostScorer
from qrag_jax.retrieve.search import Scorer
from qrag_jax.retrieve.storage import Dtype, Shard, pack
from qrag_jax.retrieve.stored_rows import CodedRows
from qrag_jax.retrieve.types import Look
from qrag_jax.rundir.log import progress, say

TOP, SHARD = 10, 16384
ALL: tuple[Dtype, ...] = ("float32", "bfloat16", "int8", "int8-exact")
LARGE = 1_000_000  # chunks above which only float32 and int8-exact are measured, one question at a time
POSITIONS = {"none": QHeadConfig(positions="none"), "relative": INTEGER}
PASSES = (1, 8, 19)  # questions in one pass
BLOCKS = (16, 256)  # rows of the blocks whose bounds are counted


class CountedRows(CodedRows):
    """Counts the rows that were read in float32."""

    read = 0

    def take(self, rows: Int[np.ndarray, " C"]) -> Float[np.ndarray, "C D"]:
        self.read += len(rows)
        return super().take(rows)


def enlarged(vectors: Float[np.ndarray, "R D"], count: int, noise: float) -> Iterator[Float[np.ndarray, "S D"]]:
    """``count`` rows in shards: the given ones, then the same again with noise of ``noise`` times their length, scaled to their length."""
    draw = np.random.default_rng(0)
    for start in range(0, count, SHARD):
        at = np.arange(start, min(start + SHARD, count))
        rows = vectors[at % len(vectors)]
        length = np.linalg.norm(rows, axis=1, keepdims=True)
        new = at >= len(vectors)
        moved = rows[new] + draw.standard_normal(rows[new].shape, np.float32) * (noise * length[new] / rows.shape[1] ** 0.5)
        rows[new] = moved * (length[new] / np.linalg.norm(moved, axis=1, keepdims=True))
        yield rows


def write_index(folder: Path, shards: Iterator[Float[np.ndarray, "S D"]], dtype: Dtype) -> Index:
    """An index of vectors without texts."""
    folder.mkdir()
    made = []
    for number, rows in enumerate(shards):
        keys = np.arange(2 * len(rows), dtype="<u8").tobytes()
        made.append(Shard.write(folder, number, [b"\n"] * len(rows), [keys], *pack(rows, dtype), dtype))
    chunks = sum(shard.chunks for shard in made)
    model = IndexModel("0" * 64, 1, "sentence", None)
    Meta(model, dtype, made[0].width, SHARD, tuple(made), (SourceRecord(None, chunks, chunks),)).write(folder / META)
    return Index.open(folder)


def _blocks_of(index: Index) -> Iterator[Float[np.ndarray, "S D"]]:
    return (index.rows.block(*part) for part in index.rows.parts())


def scorer_of(index: Index, config: QHeadConfig) -> Scorer:
    return CodedScorer(index.rows, config) if isinstance(index.rows, CodedRows) else HostScorer(index.rows, config)


def measure(
    index: Index, retriever: Retriever, asked: Sequence[str], sizes: Sequence[int], noise: float, repeats: int, scratch: Path
) -> dict[str, Any]:
    """The content of exact.json."""
    say(f"embedding {len(asked)} questions")
    states = retriever.embed_states(asked, [()] * len(asked), 4)
    vectors = np.array(index.rows.block(0, len(index)))
    report: dict[str, Any] = {
        "schema": 1,
        "machine": describe_machine(1024, 3),
        "settings": {"real_chunks": len(index), "width": index.rows.width, "noise": noise, "questions": len(asked), "repeats": repeats},
        "sizes": [],
    }
    for size in progress(sizes, desc="size", leave=False):
        dtypes = ALL if size <= LARGE else ("float32", "int8-exact")
        exact = write_index(scratch / f"{size}-float32", enlarged(vectors, size, noise), "float32")
        written = {dtype: write_index(scratch / f"{size}-{dtype}", _blocks_of(exact), dtype) for dtype in dtypes[1:]}
        stored: dict[Dtype, Index] = {"float32": exact, **written}
        found = {name: _steps(stored, states, config, repeats) for name, config in POSITIONS.items()}
        row = {
            "chunks": size,
            "steps": found,
            "passes": _passes(stored, states, repeats) if size <= LARGE else [],
            "blocks_skipped": _blocks(stored, states),
        }
        np.save(scratch / "states.npy", states[:32])
        row["memory"] = {dtype: _memory(one.path, scratch / "states.npy") for dtype, one in stored.items()}
        report["sizes"].append(row)
        for one in stored.values():
            for path in one.path.iterdir():
                path.unlink()
    return report


def _steps(stored: Mapping[Dtype, Index], states: Float[np.ndarray, "Q D"], config: QHeadConfig, repeats: int) -> list[dict[str, Any]]:
    """A step of one question with each dtype, and the plain dot product; the best chunks of all questions compared with float32's."""
    picked = spread(len(stored["float32"]))
    scorers = {dtype: scorer_of(index, config) for dtype, index in stored.items()}
    calls: dict[str, Callable[[], object]] = {"plain dot": partial(plain_dot, stored["float32"].rows, states[0])}
    calls |= {dtype: partial(scorer, states[:1], [picked], 1) for dtype, scorer in scorers.items()}
    times = alternate(calls, repeats)
    rows: list[dict[str, Any]] = [{"dtype": "plain dot", **times["plain dot"], "over_plain_dot": 1.0}]
    looks = {dtype: _looks(scorer, states, picked) for dtype, scorer in scorers.items()}
    for dtype, index in stored.items():
        pairs = list(zip(looks[dtype], looks["float32"], strict=True))
        row = {
            "dtype": dtype,
            **times[dtype],
            "over_plain_dot": ratio(times[dtype], times["plain dot"]),
            "recall_at_10": float(np.mean([len(set(a.chunks) & set(b.chunks)) / TOP for a, b in pairs])),
            "same_pick": float(np.mean([a.chunks[0] == b.chunks[0] for a, b in pairs])),
            "same_order": float(np.mean([a.chunks == b.chunks for a, b in pairs])),
            "largest_q_difference": max(abs(x - y) for a, b in pairs for x, y in zip(a.q, b.q, strict=True)),
            "rows_read": None,
        }
        if isinstance(index.rows, CodedRows):
            counted = CountedRows(index.rows.shards, index.rows.width)
            for state in states:
                CodedScorer(counted, config)(state[None], [picked], 1)
            row["rows_read"] = counted.read / len(states)
        rows.append(row)
    return rows


def _looks(scorer: Scorer, states: Float[np.ndarray, "Q D"], picked: Sequence[int]) -> list[Look]:
    parts = range(0, len(states), 8)
    return [look for start in parts for look in scorer(states[start : start + 8], [picked] * len(states[start : start + 8]), TOP)]


def _passes(stored: Mapping[Dtype, Index], states: Float[np.ndarray, "Q D"], repeats: int) -> list[dict[str, Any]]:
    """A step of several questions in one pass, each with three picks of its own."""
    draw = np.random.default_rng(0)
    count = len(stored["float32"])
    picked = [tuple(draw.choice(count, 3, replace=False).tolist()) for _ in range(max(PASSES))]
    asked = np.resize(states, (max(PASSES), states.shape[1]))
    scorers = {dtype: scorer_of(stored[dtype], INTEGER) for dtype in ("float32", "int8-exact")}
    calls = {f"{dtype} {n}": partial(scorer, asked[:n], picked[:n], 1) for n in PASSES for dtype, scorer in scorers.items()}
    times = alternate(calls, repeats)
    return [
        {
            "questions": n,
            **{dtype: times[f"{dtype} {n}"] for dtype in scorers},
            "over_float32": ratio(times[f"int8-exact {n}"], times[f"float32 {n}"]),
        }
        for n in PASSES
    ]


def _blocks(stored: Mapping[Dtype, Index], states: Float[np.ndarray, "Q D"]) -> dict[str, float]:
    """Share of blocks of neighbouring rows that their mean and radius rule out, in the first rows, for up to 32 questions."""
    rows = stored["float32"].rows.block(0, min(len(stored["float32"]), SHARD)).astype(float)
    found = {}
    for size in (size for size in BLOCKS if size <= len(rows)):
        blocks = rows[: len(rows) // size * size].reshape(-1, size, rows.shape[1])
        mean = blocks.mean(axis=1)
        radius = np.linalg.norm(blocks - mean[:, None], axis=2).max(axis=1)
        asked = states[:32].astype(float)
        most = asked @ mean.T + np.linalg.norm(asked, axis=1)[:, None] * radius
        tenth = np.sort(asked @ rows.T, axis=1)[:, -TOP, None]
        found[str(size)] = float((most < tenth).mean())
    return found


def _memory(index: Path, states: Path) -> dict[str, Any]:
    """Resident memory that a search adds in a fresh process, mapped pages included; null where the system does not say."""
    if not STATUS.exists():
        return {"bytes": None, "reason": f"this system has no {STATUS}"}
    command = [sys.executable, "-m", "experiments.speed.exact_measures", str(index.resolve()), str(states.resolve())]
    done = subprocess.run(command, cwd=Path(__file__).resolve().parents[2], capture_output=True, text=True, check=False)
    if done.returncode:
        raise ValueError(f"the process whose memory is measured ended with exit code {done.returncode}: {done.stderr.strip()[-500:]}")
    return {"bytes": json.loads(done.stdout.splitlines()[-1]), "reason": None}


def measured_process(path: str, states: str) -> None:
    """Searches an index for some questions, one after another, and prints by how much the resident memory has grown."""
    index, asked = Index.open(path), np.load(states)
    before = resident()["VmRSS"]
    scorer = scorer_of(index, INTEGER)
    for state in asked:
        scorer(state[None], [spread(len(index))], TOP)
    say(json.dumps(resident()["VmRSS"] - before))


def markdown(report: Mapping[str, Any]) -> str:
    """The text of exact.md."""
    settings, machine = report["settings"], report["machine"]
    lines = [
        "# A search step over each kind of stored vectors",
        f"{machine['cpu'] or 'CPU of unknown name'}, {machine['cores']} cores. {settings['real_chunks']:,} real chunks, "
        f"{settings['width']} wide, repeated with noise of {settings['noise']:g} of their length; {settings['questions']} questions; "
        f"medians of {settings['repeats']} samples in turn, after three picks.",
    ]
    for row in report["sizes"]:
        lines.append(f"## {row['chunks']:,} chunks")
        table = [
            "| positions | vectors | ms | / plain dot | same pick | same 10 in order | recall@10 | largest difference of Q | rows read |"
        ]
        table.append("|---|---|---|---|---|---|---|---|---|")
        for name, steps in row["steps"].items():
            table += [_step_row(name, one) for one in steps]
        lines.append("\n".join(table))
        if row["passes"]:
            each = (f"{one['questions']}: {one['over_float32']:.2f} x" for one in row["passes"])
            lines.append(f"Questions in one pass, int8-exact compared with float32: {', '.join(each)}.")
        sizes = {name: one["bytes"] for name, one in row["memory"].items()}
        each = (f"{name} {'not measured' if size is None else f'{size / 1e6:,.0f} MB'}" for name, size in sizes.items())
        lines.append(f"Memory of 32 searches in a fresh process: {', '.join(each)}.")
        each = (f"{size} rows {share:.1%}" for size, share in row["blocks_skipped"].items())
        lines.append(f"Blocks skipped by mean and radius: {', '.join(each)}.")
    return "\n\n".join(lines) + "\n"


def _step_row(positions: str, row: Mapping[str, Any]) -> str:
    start = f"| {positions} | {row['dtype']} | {row['median_s'] * 1e3:.2f} | {row['over_plain_dot']:.2f} |"
    if row["dtype"] == "plain dot":
        return f"{start} | | | | |"
    read = "all" if row["rows_read"] is None else f"{row['rows_read']:.0f}"
    same = f"{row['same_pick']:.3f} | {row['same_order']:.3f} | {row['recall_at_10']:.3f}"
    return f"{start} {same} | {row['largest_q_difference']:.1e} | {read} |"


if __name__ == "__main__":
    measured_process(*sys.argv[1:])
