"""The data types shared by all packages, and the letters of their shapes.

B episodes in a batch, N chunks of a document, U distinct texts of a batch (its pool), T retrieval budget,
Lq / Lc / Ls tokens of a question / a chunk / a state, D embedding width, V vocabulary.
Token rows are int32 and padded with ``PAD`` = -1, whatever the tokenizer's own padding id: ``ids >= 0`` is the mask.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, no_type_check

from flax import struct
from jaxtyping import Bool, Float, Int

PAD = -1
VALUES_SEPARATOR = ", "  # separates the values of an answer with several (RULER); no value holds it
Array = Any  # numpy on the host, jax on the device


@dataclass(frozen=True)
class Share:
    """Part ``index`` of ``count`` equal parts: one process's share of a batch. All parts together are on ``devices`` devices."""

    index: int = 0
    count: int = 1
    devices: int = 1

    def of(self, size: int) -> slice:
        """This part of ``size`` rows."""
        part = size // self.count
        return slice(self.index * part, (self.index + 1) * part)


WHOLE = Share()


@dataclass(frozen=True)
class QAExample:
    """One question over one document, on the host.

    ``chunks`` are in document order; ``support`` holds the indices of the supporting chunks, ascending and without
    repeats. ``support`` is empty only if the data has no labels, or if the document lacks every supporting chunk. ``aliases`` are other
    correct answers. ``missing``: number of supporting chunks that the document lacks, so that no search can find them all.
    ``titles``: the titles of the chunks; empty if they have none. ``path``: the supporting chunks in the order in which the question needs
    them; empty if the data does not say.
    """

    id: str
    question: str
    chunks: tuple[str, ...]
    answer: str
    support: tuple[int, ...]
    aliases: tuple[str, ...] = ()
    missing: int = 0
    titles: tuple[str, ...] = ()
    path: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not self.chunks:
            raise ValueError(f"example {self.id!r}: chunks is empty; a document needs at least one chunk")
        if list(self.support) != sorted(set(self.support)):
            raise ValueError(f"example {self.id!r}: support {self.support} must be ascending and without repeats")
        if self.support and not 0 <= self.support[0] <= self.support[-1] < len(self.chunks):
            raise ValueError(f"example {self.id!r}: support {self.support} must lie in 0..{len(self.chunks) - 1}")
        if self.missing < 0:
            raise ValueError(f"example {self.id!r}: missing = {self.missing}: must be >= 0")
        if self.titles and len(self.titles) != len(self.chunks):
            raise ValueError(f"example {self.id!r}: has {len(self.titles)} titles for {len(self.chunks)} chunks")
        if self.path and sorted(self.path) != list(self.support):
            raise ValueError(f"example {self.id!r}: path {self.path} must hold the supporting chunks {self.support}, each once")


@no_type_check  # as a pytree, it may also hold axes, shapes and None
@struct.dataclass
class TaskBatch:
    """B questions and their documents as static arrays. ``chunk_pool_ids`` is shared by all episodes of the batch."""

    question_ids: Int[Array, "B Lq"]
    chunk_pool_ids: Int[Array, "U Lc"]
    chunk_index: Int[Array, "B N"]  # chunk n of the document is this row of the pool
    chunk_mask: Bool[Array, "B N"]  # False for padding, if the document has fewer than N chunks
    support: Bool[Array, "B N"]
    episode_id: Int[Array, " B"]  # global number of the episode, which seeds its randomness on any number of devices
    hop: Int[Array, "B N"]  # place of a supporting chunk in the order in which the question needs them; 0 if unknown, and for other chunks


@no_type_check  # as a pytree, it may also hold axes, shapes and None
@struct.dataclass
class Episode:
    """The result of a rollout; time runs along T. ``state_ids[:, t]`` is the state in which ``picked[:, t]`` was chosen."""

    picked: Int[Array, "B T"]  # N: an empty pick, since no chunk of the document was left
    positions: Float[Array, "B T"]  # position of the picked chunk, in the state before the pick
    state_ids: Int[Array, "B T Ls"]
    q: Float[Array, "B T"]  # Q of the picked chunk under the acting parameters
    states: Float[Array, "B T D"]  # E_s of the states and, un-rotated, E_a of the picked chunks, under the acting parameters
    actions: Float[Array, "B T D"]
    offset: Int[Array, " B"]  # for positions "random": the offset that the episode adds to every index
