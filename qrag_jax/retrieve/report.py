"""What the commands `qrag ask` and `qrag index` print of picks and indexes."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Sequence
from itertools import groupby
from typing import Any

from qrag_jax.retrieve.answering import CitedAnswer
from qrag_jax.retrieve.clock import SearchClock
from qrag_jax.retrieve.formats.passages import PLACES
from qrag_jax.retrieve.index import Index
from qrag_jax.retrieve.meta import Meta
from qrag_jax.retrieve.places import place
from qrag_jax.retrieve.ranking import SCORES, Mode
from qrag_jax.retrieve.records import SourceRecord, notices
from qrag_jax.retrieve.storage import MORE
from qrag_jax.retrieve.types import Step
from qrag_jax.rundir.printable import printable

ASK_FORMAT = "qrag-jax-ask 1"
ABOUT: dict[Mode, str] = {
    "multi": "a search in several steps",
    "single": "one look by the encoder's similarity",
    "bm25": "one look by words",
    "hybrid": "one look by similarity and by words, fused by ranks",
}
INFO_FORMAT = "qrag-jax-info 1"
SHOWN = 20
"""Number of sources that :func:`index_lines` lists."""


def index_lines(index: Index, verified: bool) -> list[str]:
    """The contents of an index. ``verified``: its checksums were compared, which the last line then says."""
    meta = index.meta
    files = [file for shard in meta.shards for file in shard.files.values()]
    sizes, model = _sizes(meta), meta.model
    size = sum(sizes.values())
    restart = "run through the whole index" if meta.positions == "index" else "restart with each document"
    coded = ""
    if "codes" in sizes:
        codes = sum(sizes[kind] for kind in MORE[meta.dtype])
        coded = f" ({sizes['vectors'] / 1e6:,.1f} MB of float32; {codes / 1e6:,.1f} MB of int8, which a search step on the CPU reads)"
    lines = [
        f"{index.path}: {len(index):,} chunks by {model.chunk_by}, {model.chunk_tokens} tokens of each embedded, {size / 1e6:,.1f} MB",
        f"vectors: {meta.dtype}, {meta.width} wide{coded}; shards: {len(meta.shards)}; positions {restart}",
        *([] if meta.store is None else [f"store: {meta.store.shown}"]),
        f"model: {model.hash[:12]}, loaded from {model.retriever or 'a place that was not recorded'}",
    ]
    documents = _documents(meta.sources)
    lines += map(_source_line, documents[:SHOWN])
    if len(documents) > SHOWN:
        lines.append(f"and {len(documents) - SHOWN:,} more sources")
    if keys := sorted({key for source in meta.sources for key in source.metadata}):
        lines.append(f"metadata: {printable(', '.join(keys))}; `qrag ask --filter KEY=VALUE` picks only from documents that match")
    lines.append(coverage(index))
    lines.extend(notices(meta.sources, meta.skipped, meta.unread))
    if verified:
        lines.append(f"verified: the checksums of {len(files)} files are right")
    return lines


def index_tree(index: Index) -> dict[str, Any]:
    """The contents of an index as the object that ``qrag index info --json`` prints; ``unread`` has the reasons by file."""
    meta = index.meta
    documents = []
    for parts in _documents(meta.sources):
        total = SourceRecord.total(parts)
        counts = {"characters": total.characters, "chunks": total.chunks, "tokens": total.tokens, "tokens_outside": total.outside}
        documents.append({"name": parts[0].name, **counts, "metadata": [record.metadata for record in parts if record.metadata]})
    model = dataclasses.asdict(meta.model)
    about = {"format": INFO_FORMAT, "index": str(index.path), "chunks": len(index), "positions": meta.positions}
    about |= {"dtype": meta.dtype, "bytes": _sizes(meta)}
    about |= {} if meta.store is None else {"store": dataclasses.asdict(meta.store.ref)}
    return {**about, "model": model, "documents": documents, "skipped": dict(meta.skipped), "unread": dict(meta.unread)}


def _sizes(meta: Meta) -> dict[str, int]:
    """Bytes of the files of each kind."""
    sizes: Counter[str] = Counter()
    for shard in meta.shards:
        sizes.update({kind: file.bytes for kind, file in shard.files.items()})
    return dict(sizes)


def _documents(records: Sequence[SourceRecord]) -> list[list[SourceRecord]]:
    """The records of each document: consecutive ones with the same name, or one without a name."""
    return [list(parts) for _, parts in groupby(records, key=lambda record: record.name or id(record))]


def _source_line(parts: Sequence[SourceRecord]) -> str:
    total = SourceRecord.total(parts)
    counts = {key: len({record.metadata.get(key) for record in parts} - {None}) for key in PLACES}
    numbers = counts | {"character": total.characters, "chunk": total.chunks}
    said = [f"{count:,} {what}{'s' * (count != 1)}" for what, count in numbers.items() if count or what not in PLACES]
    return f"source: {', '.join([parts[0].name or 'given chunks', *said])}"


def coverage(index: Index) -> str:
    """How much text the index holds, and how much of it lies outside the embedded windows."""
    total = SourceRecord.total(index.meta.sources)
    if total.tokens is None:
        return f"text: {total.characters:,} characters; an older version wrote this index and did not count its tokens"
    return f"text: {total.characters:,} characters, {total.tokens:,} tokens, {total.outside:,} of them outside the embedded windows"


def step_lines(step: Step, mode: Mode, support: bool) -> str:
    """A step's pick: its score, place and text, its metadata, and where else the text stands. ``support``: the user marked the chunk."""
    pick = step.pick
    where = "" if pick.source is None else f"  {printable(place(pick))}"
    below = "  below the stop threshold" if step.stop else ""
    mark = "  support" if support else ""
    text = printable(" ".join(pick.text.split()))
    score = f"{SCORES[mode]} {pick.q:7.3f}"
    lines = [f"{step.number + 1:>3}  {score}  chunk {pick.chunk}{where}  {step.seconds:.3f} s{below}{mark}", f"     {text}"]
    if pick.metadata:
        lines.append(printable(f"     {json.dumps(pick.metadata, ensure_ascii=False)}"))
    if pick.also:
        lines.append("     also in " + printable(", ".join(map(place, pick.also))))
    return "\n".join(lines)


def stop_line(steps: Sequence[Step], mode: Mode, threshold: float | None, least_q: float | None) -> str:
    """How many of the picks the stop threshold keeps, and whether none reaches ``least_q``."""
    if mode != "multi":
        return f"mode {mode}: {ABOUT[mode]}; it has no stop threshold"
    if threshold is None:
        line = "stop threshold: this retriever has none"
    elif all(step.pick.q < threshold for step in steps):
        line = f"stop threshold {threshold:.3f}: every pick is below it"
    else:
        kept = next((t for t, step in enumerate(steps) if step.stop), len(steps))
        line = f"stop threshold {threshold:.3f}: " + (f"keeps the first {kept}" if kept < len(steps) else "no pick is below it")
    if least_q is None or any(step.pick.q >= least_q for step in steps):
        return line
    limit = "" if least_q == threshold else f"; no pick reaches {least_q:.3f}"
    return f"{line}{limit}, so nothing that fits the question was found"


def search_tree(
    question: str, index: Index, mode: Mode, steps: Sequence[Step], threshold: float | None, least_q: float | None, clock: SearchClock
) -> dict[str, Any]:
    """A search as the object that ``qrag ask --json`` prints. ``fits``: whether a pick reaches ``least_q``; null without one."""
    return {
        "format": ASK_FORMAT,
        "question": question,
        "index": str(index.path),
        "chunks": len(index),
        "mode": mode,
        "score": SCORES[mode],
        "threshold": threshold if mode == "multi" else None,
        "least_q": least_q,
        "fits": None if least_q is None else any(step.pick.q >= least_q for step in steps),
        "steps": [_step_tree(step) for step in steps],
        "seconds": {"search": round(sum(step.seconds for step in steps), 6), "compiling": round(clock.compiling, 6)},
    }


def _step_tree(step: Step) -> dict[str, Any]:
    pick = step.pick
    tree = {name: getattr(pick, name) for name in ("chunk", "q", "source", "start", "end", "text", "metadata")}
    tree |= {"step": step.number, "place": place(pick), "also": [place(one) for one in pick.also]}
    return tree | {"below_threshold": step.stop, "seconds": round(step.seconds, 6)}


def answer_lines(answer: CitedAnswer) -> list[str]:
    """What stands below an answer: its citations, what else was read or left out, and what it cost."""
    lines = [f"[{one.number}] {one.place}" for one in answer.citations]
    if answer.also_read:
        lines.append("also read: " + "; ".join(f"[{one.number}] {one.place}" for one in answer.also_read))
    if answer.left_out:
        lines.append("left out, since the reader's context has no room: " + "; ".join(map(place, answer.left_out)))
    if answer.removed:
        lines.append(f"removed from the answer: {', '.join(f'[{n}]' for n in answer.removed)}, since no passage has that number")
    if answer.judge == "stop rule":
        lines.append("the reader was not asked, since no pick reaches the Q that fits the question (the calibrated limit, or --least-q)")
    if answer.finish == "length":
        lines.append("the answer was cut off at its longest length; --reader-tokens N allows more")
    if answer.reader is not None:
        read = [] if answer.prompt_tokens is None else [f"{answer.prompt_tokens} tokens read"]
        written = [] if answer.completion_tokens is None else [f"{answer.completion_tokens} tokens written"]
        lines.append(f"reader: {', '.join([*read, *written, f'{answer.reader_seconds:.2f} s'])}")
    return [printable(line) for line in lines]
