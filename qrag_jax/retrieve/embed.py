"""Embeds texts (without rotation) in blocks of a few static shapes, so that memory does not grow with the length of a document."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import tempfile
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict
from jaxtyping import Array, Bool, Float, Int

from qrag_jax.config import RunConfig
from qrag_jax.models.embedder import Embedder, embed_actions, embed_states, encoders
from qrag_jax.models.registry import backbone_of
from qrag_jax.models.tokenizer import TextTokenizer
from qrag_jax.retrieve.questions import state_lengths
from qrag_jax.rl.env import StateLayout, state_row
from qrag_jax.rundir.log import progress
from qrag_jax.types import PAD

SIZES = (8, 64, 256)  # rows embedded at once
WIDTHS = (8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096, 6144)

STATES = (1, 8, 64)  # states embedded at once
FEW = 8  # so many states are padded to the longest that is possible: few shapes, so few compilations

EmbedRows = Callable[[np.ndarray], jax.Array]


@partial(jax.jit, static_argnames="embedder")
def embed_action_rows(params: Any, ids: Int[Array, "R L"], *, embedder: Embedder) -> Float[Array, "R D"]:
    return embed_actions(embedder, params, ids)


@partial(jax.jit, static_argnames="layout")
def _state_rows(
    question_ids: Int[Array, "R Lq"], chunk_rows: Int[Array, "R T Lc"], taken: Bool[Array, "R T"], *, layout: StateLayout
) -> Int[Array, "R Ls"]:
    return jax.vmap(partial(state_row, layout=layout))(question_ids, chunk_rows, taken)


@partial(jax.jit, static_argnames="embedder")
def _embed_state_rows(params: Any, ids: Int[Array, "R Ls"], *, embedder: Embedder) -> Float[Array, "R D"]:
    return embed_states(embedder, params, ids)


def embed_texts(
    embed_rows: EmbedRows, tokenizer: TextTokenizer, texts: Sequence[str], max_tokens: int, *, ahead: int = 1, label: str | None = None
) -> Float[np.ndarray, "U D"]:
    """One embedding per text, in order. ``embed_rows`` and ``ahead``: see :func:`embed_by_length`. ``label`` shows a progress bar."""
    if not texts:
        raise ValueError("texts is empty: nothing to embed")
    extra = len(tokenizer.prefix) + len(tokenizer.suffix)
    lengths = np.minimum([len(ids) + extra for ids in tokenizer.lookup(texts)], max_tokens)
    rows = lambda block, width: tokenizer.rows([texts[i] for i in block], width)
    return embed_by_length(embed_rows, rows, lengths, max_tokens, SIZES, ahead=ahead, label=label)


@dataclass(frozen=True)
class States:
    """The embeddings of P states; the ``lengths`` of these states in tokens; how many ``tokens`` of a state are read."""

    vectors: Float[np.ndarray, "P D"]
    lengths: Int[np.ndarray, " P"]
    tokens: int


def embed_state_texts(
    retriever: ChunkEmbedder,
    questions: Sequence[str],
    picked: Sequence[Sequence[str]],
    budget: int,
    *,
    sizes: Sequence[int] = STATES,
    label: str | None = None,
) -> States:
    """Embeds P states, each a question and the texts of its picks in the order of ``data.state_order``. ``budget`` sets the length of the
    longest state; ``sizes``: as many are embedded at once."""
    data, tokenizer = retriever.config.data, retriever.tokenizer
    layout = StateLayout.make(data, budget, tokenizer)
    asked = tokenizer.rows(questions, data.question_tokens)
    taken = np.array([[t < len(texts) for t in range(budget - 1)] for texts in picked], bool).reshape(len(picked), budget - 1)
    rows = np.full((*taken.shape, data.chunk_tokens), PAD, np.int32)
    rows[taken] = tokenizer.rows([text for texts in picked for text in texts], data.chunk_tokens)
    states = in_blocks(partial(_state_rows, layout=layout), sizes, asked, rows, taken)
    lengths = state_lengths(asked, rows, layout)
    embed = lambda rows: _embed_state_rows(retriever.params, rows, embedder=retriever.embedder)
    if len(states) <= FEW:
        return States(in_blocks(embed, sizes, states), lengths, layout.tokens)
    cut = lambda block, width: states[block, :width]
    embedded = embed_by_length(embed, cut, (states >= 0).sum(1), layout.tokens, sizes, label=label, unit="state")
    return States(embedded, lengths, layout.tokens)


def embed_by_length(
    embed_rows: EmbedRows,
    rows: Callable[[Int[np.ndarray, " R"], int], Int[np.ndarray, "R L"]],
    lengths: Int[np.ndarray, " U"],
    longest: int,
    sizes: Sequence[int],
    *,
    ahead: int = 1,
    label: str | None = None,
    unit: str = "chunk",
) -> Float[np.ndarray, "U D"]:
    """The embeddings of U token rows of ``lengths``, up to ``longest``. ``rows`` makes those of the given numbers, of a given width;
    ``embed_rows`` is a jitted [R, L] -> [R, D], of which ``ahead`` calls may be under way.

    Rows of similar length are embedded together, so that short ones need little padding. ``label`` shows a progress bar.
    """
    order = np.argsort(lengths, kind="stable")
    found: list[np.ndarray] = []
    waiting: deque[tuple[jax.Array, int]] = deque()
    bar = progress(total=len(lengths), unit=unit, desc=label, disable=label is None, leave=False)

    def collect() -> None:
        vectors, count = waiting.popleft()
        found.append(np.asarray(vectors)[:count])
        bar.update(count)

    for start in range(0, len(order), sizes[-1]):
        block = order[start : start + sizes[-1]]
        width = next((w for w in WIDTHS if lengths[block[-1]] <= w <= longest), longest)
        waiting.append((embed_rows(*_filled(sizes, [rows(block, width)])), len(block)))
        if len(waiting) == ahead:
            collect()
    while waiting:
        collect()
    bar.close()
    vectors = np.concatenate(found)
    out = np.empty((len(lengths), vectors.shape[1]), np.float32)
    out[order] = vectors
    return out


def in_blocks(function: Callable[..., jax.Array], sizes: Sequence[int], *arrays: np.ndarray) -> np.ndarray:
    """``function`` of the rows of ``arrays``, as many at once as the largest of ``sizes``; the last ones are padded to one of ``sizes``."""
    found = []
    for start in range(0, len(arrays[0]), sizes[-1]):
        parts = [array[start : start + sizes[-1]] for array in arrays]
        found.append(np.asarray(function(*_filled(sizes, parts)))[: len(parts[0])])
    return np.concatenate(found)


def _filled(sizes: Sequence[int], parts: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Arrays of equally many rows, filled up to one of ``sizes``."""
    missing = next(size for size in sizes if size >= len(parts[0])) - len(parts[0])
    empty = [np.full((missing, *part.shape[1:]), False if part.dtype == bool else PAD, part.dtype) for part in parts]
    return [np.concatenate(both) for both in zip(parts, empty, strict=True)]


@runtime_checkable
class ChunkEmbedder(Protocol):
    """The part of a :class:`~qrag_jax.retrieve.retriever.Retriever` that an index uses: chunks in, un-rotated vectors out."""

    config: RunConfig
    embedder: Embedder
    params: Any
    tokenizer: TextTokenizer

    def embed_chunks(self, texts: Sequence[str], *, label: str | None = None) -> Float[np.ndarray, "U D"]: ...


def model_hash(retriever: ChunkEmbedder) -> str:
    """Hex SHA-256 of everything a chunk's vector depends on, apart from its text.

    These are the action encoder's parameters (as float32), its network, pooling, normalisation, divisor and compute type, the tokenizer,
    and the tokens a chunk is cut to; not the state encoder, nor anything about positions: an index serves every retriever that differs
    only there.
    """
    embedder = retriever.embedder
    network = dataclasses.asdict(embedder.config) | {"hidden_dropout_prob": None}
    settings = {
        "backbone": backbone_of(embedder.config),
        "network": network,
        "pooling": embedder.pooling,
        "divisor": embedder.divisor,
        "compute_dtype": jnp.dtype(embedder.dtype).name,
        "chunk_tokens": retriever.config.data.chunk_tokens,
    }
    if embedder.normalize:  # left out otherwise: indexes from before this setting stay valid
        settings["normalize"] = True
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    with tempfile.TemporaryDirectory() as folder:
        retriever.tokenizer.save(Path(folder, "tokenizer.json"))
        digest.update(Path(folder, "tokenizer.json").read_bytes())
    for path, leaf in sorted(flatten_dict(encoders(retriever.params)[1], sep="/").items()):
        array = np.ascontiguousarray(leaf, np.dtype("<f4"))
        digest.update(f"{path} {array.shape}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
