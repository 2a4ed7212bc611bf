"""The steps of a search as what a caller gets: picks with their places and texts."""

from __future__ import annotations

from qrag_jax.config import QHeadConfig
from qrag_jax.retrieve.scan import runs
from qrag_jax.retrieve.search import SearchPath
from qrag_jax.retrieve.types import Candidate, Document, Pick, Step


def position(document: Document, path: SearchPath, t: int, qhead: QHeadConfig) -> float:
    """The position of pick ``t`` when it was picked (0 without positions)."""
    return runs(path.picked[:t], len(document), qhead, document.restarts).position(path.picked[t])


def as_pick(document: Document, path: SearchPath, t: int, qhead: QHeadConfig) -> Pick:
    """Pick ``t`` of a path."""
    number = path.picked[t]
    chunk, also = document.chunk(number), tuple(map(document.chunk, document.equals(number)))
    place = position(document, path, t, qhead)
    return Pick(number, chunk.text, path.q[t], place, chunk.start, chunk.end, chunk.source, t, chunk.metadata, also)


def as_step(
    document: Document, path: SearchPath, t: int, qhead: QHeadConfig, *, seconds: float, runners_up: int, threshold: float | None
) -> Step:
    """Step ``t`` of a path, with up to ``runners_up`` other chunks. ``threshold``: the stop threshold (None: there is none)."""
    seen = path.looks[t]
    others = [(i, q, document.chunk(i)) for i, q in zip(seen.chunks, seen.q, strict=True) if i != path.picked[t]][:runners_up]
    runners = tuple(Candidate(i, chunk.text, q, chunk.start, chunk.end, chunk.source) for i, q, chunk in others)
    below = t > 0 and threshold is not None and path.q[t] < threshold
    return Step(t, as_pick(document, path, t, qhead), runners, below, seconds, seen.curve)
