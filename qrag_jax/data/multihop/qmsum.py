"""QMSum (Zhong et al. 2021, arXiv 2104.05938): queries about a long meeting, with the spans of turns that answer them.

``meetings_SPLIT.jsonl`` has one meeting per line: ``doc_id`` and ``turns`` [{idx, speaker, text}]. ``queries_SPLIT.jsonl`` has one query
per line: ``id``, ``doc_id``, ``question``, ``answer`` and ``support_spans`` [[first turn, last turn]]. Most turns are a few words long, so
consecutive turns are packed into chunks of at most 80 words, which stay in order. A longer turn is broken between words. A chunk supports
the answer if it holds words of a supporting turn.
"""

from __future__ import annotations

from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from qrag_jax.config.benchmarks import ALL
from qrag_jax.config.trees import parse_json
from qrag_jax.data.multihop import questions as multihop
from qrag_jax.data.multihop.records import BadRecord, ReadReport, Record, check, get, get_text, objects, read_file, read_text

WORDS = 80
"""Words of a chunk, speakers' names included: at most 128 tokens in 999 of 1,000 chunks."""


class Meeting(NamedTuple):
    """``chunks`` in order; ``places``: the first and the last chunk of each turn, or None for a turn without text."""

    chunks: tuple[str, ...]
    places: tuple[tuple[int, int] | None, ...]


def read_qmsum(path: str | Path, *, skip_bad: bool = False) -> tuple[tuple[Record, ...], ReadReport]:
    """The records of a file of queries; the meetings are read from the file beside it. Errors: see
    :func:`qrag_jax.data.multihop.records.read_file`; a bad meeting is never skipped."""
    path = Path(path)
    meetings = read_meetings(path.with_name(path.name.replace("queries", "meetings")))
    return read_file(path, partial(_parse, meetings=meetings), skip_bad=skip_bad)


def read_meetings(path: Path) -> dict[str, Meeting]:
    """Name -> meeting. Raises ValueError, naming file and line."""
    found: dict[str, Meeting] = {}
    for number, line in enumerate(read_text(path).rstrip(" \t\r\n").split("\n"), 1):
        try:
            tree = parse_json(line)
            turns = [(get_text(turn, "speaker"), get(turn, "text", str)) for turn in objects(tree, "turns")]
            name = get_text(tree, "doc_id")
        except ValueError as error:
            raise ValueError(f"{path}:{number}: {error}") from error
        if name in found:
            raise ValueError(f"{path}:{number}: {name!r} is the doc_id of an earlier meeting")
        found[name] = pack(turns)
    return found


def pack(turns: list[tuple[str, str]]) -> Meeting:
    """Packs turns, each a speaker and a text, into chunks of at most ``WORDS`` words."""
    chunks: list[list[str]] = []
    lengths: list[int] = []
    places: list[tuple[int, int] | None] = []
    for speaker, text in turns:
        words = text.split()
        if not words:
            places.append(None)
            continue
        words = [*f"{speaker}:".split(), *words]
        first = None
        for start in range(0, len(words), WORDS):
            part = words[start : start + WORDS]
            if not chunks or lengths[-1] + len(part) > WORDS:
                chunks.append([])
                lengths.append(0)
            chunks[-1].append(" ".join(part))
            lengths[-1] += len(part)
            first = len(chunks) - 1 if first is None else first
        assert first is not None
        places.append((first, len(chunks) - 1))
    return Meeting(tuple("\n".join(parts) for parts in chunks), tuple(places))


def _parse(tree: Any, notes: Counter[str], *, meetings: dict[str, Meeting]) -> Record:
    name = get_text(tree, "doc_id")
    if name not in meetings:
        raise BadRecord("unknown meeting", f"{name!r} is the doc_id of no meeting")
    meeting = meetings[name]
    support: set[int] = set()
    for span in get(tree, "support_spans", list):
        ends = [check(end, int, "support_spans") for end in check(span, list, "support_spans")]
        if len(ends) != 2 or not 0 <= ends[0] <= ends[1] < len(meeting.places):
            raise BadRecord("span out of range", f"{ends}: must be a first and a last turn in 0..{len(meeting.places) - 1}")
        for place in meeting.places[ends[0] : ends[1] + 1]:
            if place is not None:
                support |= set(range(place[0], place[1] + 1))
    if not support:
        raise BadRecord("no support", "no turn with words supports the answer")
    texts = tuple(("", chunk) for chunk in meeting.chunks)
    ids = get_text(tree, "id"), get_text(tree, "question"), get_text(tree, "answer")
    return Record(*ids, (), texts, tuple(sorted(support)), ALL)


def meeting_of(record: Record) -> str:
    """The meeting of a query: its id is MEETING_NUMBER."""
    return record.id.rpartition("_")[0]


QMSUM = multihop.QuestionFiles(
    name="qmsum",
    folder="qmsum",
    files=(("queries_train.jsonl", "queries_val.jsonl"),),
    home="https://github.com/Yale-LILY/QMSum, in the form of qrag_jax/data/multihop/qmsum.py",
    read=read_qmsum,
    group=meeting_of,
)
load = partial(multihop.load, QMSUM)
