"""What the commands `qrag ask` and `qrag index` print of picks and indexes."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from itertools import groupby
from typing import Any

from qrag_jax.retrieve.formats.passages import PLACES
from qrag_jax.retrieve.index import Index
from qrag_jax.retrieve.records import SourceRecord, notices
from qrag_jax.retrieve.types import Step
from qrag_jax.rundir.printable import printable

FORMAT = "qrag-jax-info 1"
SHOWN = 20
"""Number of sources that :func:`index_lines` lists."""


def index_lines(index: Index, verified: bool) -> list[str]:
    """The contents of an index. ``verified``: its checksums were compared, which the last line then says."""
    meta = index.meta
    files = [file for shard in meta.shards for file in shard.files.values()]
    size = sum(file.bytes for file in files)
    model = meta.model
    restart = "run through the whole index" if meta.positions == "index" else "restart with each document"
    lines = [
        f"{index.path}: {len(index):,} chunks by {model.chunk_by}, {model.chunk_tokens} tokens of each embedded, {size / 1e6:,.1f} MB",
        f"vectors: {meta.dtype}, {meta.width} wide; shards: {len(meta.shards)}; positions {restart}",
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
    about = {"format": FORMAT, "index": str(index.path), "chunks": len(index), "positions": meta.positions, "dtype": meta.dtype}
    return {**about, "model": model, "documents": documents, "skipped": dict(meta.skipped), "unread": dict(meta.unread)}


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


def step_lines(step: Step, support: bool) -> str:
    """A step's pick: its Q, place and text, its metadata, and where else the text stands. ``support``: the user marked the chunk."""
    pick = step.pick
    place = "" if pick.source is None else f"  {pick.source}:{pick.start}-{pick.end}"
    below = "  below the stop threshold" if step.stop else ""
    mark = "  support" if support else ""
    text = printable(" ".join(pick.text.split()))
    lines = [f"{step.number + 1:>3}  Q {pick.q:7.3f}  chunk {pick.chunk}{place}  {step.seconds:.3f} s{below}{mark}", f"     {text}"]
    if pick.metadata:
        lines.append(printable(f"     {json.dumps(pick.metadata, ensure_ascii=False)}"))
    if pick.also:
        lines.append("     also in " + printable(", ".join(f"{one.source or 'given chunks'}:{one.start}-{one.end}" for one in pick.also)))
    return "\n".join(lines)


def stop_line(steps: Sequence[Step], threshold: float | None) -> str:
    """How many of the picks the stop threshold keeps."""
    if threshold is None:
        return "stop threshold: this retriever has none"
    if all(step.pick.q < threshold for step in steps):
        return f"stop threshold {threshold:.3f}: every pick is below it, so nothing that fits the question was found"
    kept = next((t for t, step in enumerate(steps) if step.stop), len(steps))
    return f"stop threshold {threshold:.3f}: " + (f"keeps the first {kept}" if kept < len(steps) else "no pick is below it")
