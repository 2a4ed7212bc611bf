"""What an index knows about each document, and what it says of the text that a search does not see."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from qrag_jax.config.parse import decode
from qrag_jax.models.tokenizer import TextTokenizer
from qrag_jax.retrieve.formats.table import READERS
from qrag_jax.retrieve.metadata import Metadata

SUFFIXES = f"{', '.join(sorted(READERS)[:-1])} and {sorted(READERS)[-1]}"
"""The files that are read, in words."""
SHOWN = 5  # names of files, or numbers of pages, that a line lists


@dataclass(frozen=True)
class SourceRecord:
    """A document that was read, or a part of one: records with the same name are parts of one document, in order.

    ``name``: the file, relative to the folder, or the name that was given with it (None: it has none). Then numbers: of its characters, its
    chunks and their ``tokens`` (without special ones); of the chunks that are ``cut`` because they are longer than what is embedded, and of
    their tokens that lie ``outside``; of the chunks that are mostly ``unknown``: half of their tokens or more are not in the vocabulary.
    The last four are None in an index that was written before they were counted. ``digest``: hex SHA-256 of its text, or None in an index
    before version 3.
    """

    name: str | None
    characters: int
    chunks: int
    tokens: int | None = None
    outside: int | None = None
    cut: int | None = None
    unknown: int | None = None
    digest: str | None = None
    metadata: Metadata = field(default_factory=dict, hash=False)

    @classmethod
    def count(cls, name: str | None, characters: int, texts: Sequence[str], tokenizer: TextTokenizer, max_tokens: int) -> SourceRecord:
        """Of chunks that are embedded with at most ``max_tokens`` tokens, special ones included."""
        sizes = np.array([len(ids) for ids in tokenizer.lookup(texts)], int)
        outside = np.maximum(sizes - tokenizer.room(max_tokens), 0)
        unknown = 2 * np.array(tokenizer.unknown(texts), int) >= sizes
        return cls(name, characters, len(texts), int(sizes.sum()), int(outside.sum()), int((outside > 0).sum()), int(unknown.sum()))

    @classmethod
    def total(cls, records: Iterable[SourceRecord]) -> SourceRecord:
        """The sums over all records; None where one of them has None."""
        records = tuple(records)
        every = lambda counts: None if None in counts else sum(counts)
        counted: dict[str, Any] = {
            name: every([getattr(record, name) for record in records]) for name in ("tokens", "outside", "cut", "unknown")
        }
        return cls(None, sum(record.characters for record in records), sum(record.chunks for record in records), **counted)

    def followed_by(self, rest: SourceRecord) -> SourceRecord:
        """The record of a document that was read in two blocks; the digest of ``rest`` covers both."""
        return replace(SourceRecord.total([self, rest]), name=self.name, digest=rest.digest, metadata=self.metadata)

    def tree(self) -> dict[str, Any]:
        return {name: value for name, value in dataclasses.asdict(self).items() if name != "metadata" or value}

    @classmethod
    def from_tree(cls, tree: Any) -> SourceRecord:
        """The inverse of :meth:`tree`. Raises ValueError or TypeError on anything else."""
        if not isinstance(tree, dict) or not isinstance(tree.get("metadata", {}), dict):
            raise ValueError("sources: must be objects, with metadata that are objects")
        record = decode(cls, {name: value for name, value in tree.items() if name != "metadata"}, "sources")
        if record.chunks < 0:
            raise ValueError(f"sources.chunks = {record.chunks}: must be 0 or more")
        return replace(record, metadata=tree.get("metadata", {}))


def notices(records: Iterable[SourceRecord], skipped: Mapping[str, int], unread: Mapping[str, str]) -> list[str]:
    """One line for each thing that a search does not see: tokens that are not embedded, chunks it cannot read, files that were skipped, and
    files that could not be read, by reason."""
    found = []
    total = SourceRecord.total(records)
    if total.cut:
        found.append(
            f"cut: {total.cut:,} of {total.chunks:,} chunks are longer than what is embedded; {total.outside:,} of {total.tokens:,} tokens "
            "lie outside; build with --chunk-by parts to embed all of a text, or give shorter chunks"
        )
    if total.unknown:
        found.append(
            f"unknown: {total.unknown:,} of {total.chunks:,} chunks are mostly tokens that the retriever's vocabulary does not have "
            "([UNK]); it cannot tell them apart: use a retriever for this language"
        )
    if skipped:
        kinds = ", ".join(f"{kind} {count:,}" for kind, count in sorted(skipped.items(), key=lambda item: (-item[1], item[0])))
        found.append(f"skipped: {kinds}; only {SUFFIXES} files are read; hidden ones and links out of the folder are not")
    reasons: dict[str, list[str]] = {}
    for name, reason in sorted(unread.items()):
        reasons.setdefault(reason, []).append(name)
    for reason, names in reasons.items():
        more = f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
        found.append(f"not read: {', '.join(names[:SHOWN])}{more}: {reason}")
    return found
