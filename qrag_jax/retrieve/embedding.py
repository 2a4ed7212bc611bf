"""Texts to vectors: what a retriever does before it searches."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import cycle
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from qrag_jax.config import RunConfig
from qrag_jax.models.embedder import Embedder
from qrag_jax.models.tokenizer import TextTokenizer
from qrag_jax.retrieve.chunks import Chunk
from qrag_jax.retrieve.embed import embed_action_rows, embed_state_texts, embed_texts
from qrag_jax.retrieve.questions import cut_states
from qrag_jax.retrieve.records import notices
from qrag_jax.retrieve.sources import ChunkStream
from qrag_jax.retrieve.types import Document, MemoryDocument, PoolRows
from qrag_jax.rundir.log import say

Source = str | Path | Iterable[Any] | Document
"""A ``str`` is a text; a ``Path`` is a text file or a folder of them. Other values are the chunks of a document in order (texts, or
documents of LangChain, LlamaIndex or Haystack), or an index."""


AHEAD = 2  # blocks of texts under way on a device: one is sent while another one is embedded


class TextEmbedder:
    """A pair of encoders with its tokenizer. What it cannot read in full it says, once.

    ``embeds_on``: the devices that embed chunks, each a block in turn; None: all accelerators of this process, or one CPU device. A block
    has the same shape on whichever device it is embedded, so vectors do not depend on how many there are.
    """

    def __init__(self, config: RunConfig, embedder: Embedder, params: Any, tokenizer: TextTokenizer) -> None:
        self.config = config
        self.embedder = embedder
        self.params = params
        self.tokenizer = tokenizer
        self.embeds_on: Sequence[jax.Device] | None = None
        self._copied: tuple[Any, tuple[jax.Device, ...]] = (None, ())
        self._copies: list[Any] = []  # of these parameters, on these devices
        self._told: set[str] = set()  # what the user was told already

    def document(self, source: Source, *, label: str | None = None) -> Document:
        """Prepares a source for searching: an index is checked; texts and files are cut into chunks; chunks are embedded.

        ``label`` shows a progress bar of the embedding.
        """
        if isinstance(source, Document):
            source.check(self)
            return source
        stream = ChunkStream(source, self.tokenizer, self.config.data.chunk_tokens, self.config.data.chunk_by)
        chunks = tuple(stream)
        for notice in notices(stream.read, stream.skipped, stream.unread):
            self._tell_once(notice)
        return replace(self._embedded([chunks], label)[0], sources=tuple(stream.read))

    def _embedded(self, documents: Sequence[Sequence[Chunk]], label: str | None = None) -> list[MemoryDocument]:
        """Documents in memory; each distinct text of all of them is embedded once."""
        pool: dict[str, int] = {}
        rows = [np.array([pool.setdefault(chunk.text, len(pool)) for chunk in chunks], np.int32) for chunks in documents]
        vectors = self.embed_chunks(list(pool), label=label)
        return [MemoryDocument(chunks, PoolRows(vectors, index), self) for chunks, index in zip(documents, rows, strict=True)]

    def embed_chunks(self, texts: Sequence[str], *, label: str | None = None) -> Float[np.ndarray, "U D"]:
        """Un-rotated action embeddings, one per text."""
        copies = self._on_devices()
        turn = cycle(copies)
        embed = lambda rows: embed_action_rows(next(turn), rows, embedder=self.embedder)
        return embed_texts(embed, self.tokenizer, texts, self.config.data.chunk_tokens, ahead=AHEAD * len(copies), label=label)

    def _on_devices(self) -> list[Any]:
        """The parameters on each device that embeds chunks."""
        devices = tuple(self.embeds_on or (jax.local_devices() if jax.default_backend() != "cpu" else ()))
        if len(devices) < 2:
            return [self.params]
        if self._copied[0] is not self.params or self._copied[1] != devices:
            self._copied, self._copies = (self.params, devices), [jax.device_put(self.params, device) for device in devices]
        return self._copies

    def embed_states(
        self, questions: Sequence[str], picked: Sequence[Sequence[str]], budget: int, *, label: str | None = None
    ) -> Float[np.ndarray, "P D"]:
        """State embeddings. A state is a question and the texts of its picked chunks, in the order of ``data.state_order``. ``budget`` sets
        the length of the longest state. ``label`` shows a progress bar, if there are more than a few."""
        embedded = embed_state_texts(self, questions, picked, budget, label=label)
        if cut := cut_states(embedded.lengths, embedded.tokens):
            self._tell_once(cut, "cut states")
        return embedded.vectors

    def _tell_once(self, line: str, kind: str | None = None) -> None:
        """Prints a line unless it (or a line of its ``kind``) was printed before."""
        if (kind or line) not in self._told:
            self._told.add(kind or line)
            say(line)
