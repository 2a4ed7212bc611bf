"""What the measurements of speed search: many texts, and a retriever."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from qrag_jax.config import ModelConfig, RunConfig
from qrag_jax.data.text.haystack import load_haystack
from qrag_jax.export.folder import Export, find_export, write_export
from qrag_jax.models.embedder import make_embedder
from qrag_jax.models.pretrained import scratch_backbone
from qrag_jax.models.tokenizer import train_wordpiece
from qrag_jax.retrieve.retriever import Retriever

VOCABULARY_SENTENCES = 20_000


def many_texts(data_dir: str | None, count: int) -> tuple[list[str], dict[str, Any]]:
    """``count`` sentences. The haystack is repeated as needed; repeated sentences begin with the number of the pass, since an index embeds
    equal texts only once."""
    found = load_haystack(data_dir, "train", count)
    sentences = found.sentences
    passes = math.ceil(count / len(sentences))
    texts = [text if turn == 1 else f"{turn} {text}" for turn in range(1, passes + 1) for text in sentences][:count]
    return texts, {"source": "python documentation" if data_dir is None else "books", "sentences": len(sentences), "passes": passes}


def read_questions(path: Path | None, data_dir: str | None, count: int) -> list[str]:
    """At most ``count`` questions: the lines of a file, or without one, sentences. Raises ValueError when it cannot be read or is empty."""
    if path is None:
        return list(load_haystack(data_dir, "validation", count).sentences)[:count]
    try:
        found = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"questions = {path}: cannot be read ({error})") from None
    if not found:
        raise ValueError(f"questions = {path}: holds no question; give one a line")
    return found[:count]


def given_or_untrained(place: Path | None, texts: Sequence[str], folder: Path) -> Path:
    """The export to measure: that of ``place``, or an untrained one, written to ``folder``: a BERT with one layer of width 384."""
    if place is not None:
        return find_export(place)
    config = RunConfig(model=ModelConfig(layers=1, width=384, heads=6, mlp_width=768))
    tokenizer = train_wordpiece(texts[:VOCABULARY_SENTENCES], config.model.vocab_size)
    backbone = scratch_backbone(config.model, tokenizer.vocab_size)
    ids = jnp.zeros((1, 4), jnp.int32)
    embedder = make_embedder(config, backbone)
    params = jax.jit(embedder.init)(jax.random.key(0), ids, ids)
    return write_export(folder, Export(config, backbone, params, tokenizer, embedder.pooling))


class _OtherVectors:
    """A :class:`~qrag_jax.retrieve.embed.ChunkEmbedder` that is ``retriever`` but for its vectors, which take no time."""

    def __init__(self, retriever: Retriever) -> None:
        self.config, self.embedder = retriever.config, retriever.embedder
        self.params, self.tokenizer = retriever.params, retriever.tokenizer


class DrawnVectors(_OtherVectors):
    """Embeds chunks as unit vectors that are drawn at random."""

    def __init__(self, retriever: Retriever) -> None:
        super().__init__(retriever)
        self._draw = np.random.default_rng(0)

    def embed_chunks(self, texts: Sequence[str], *, label: str | None = None) -> Float[np.ndarray, "U D"]:
        found = self._draw.standard_normal((len(texts), self.embedder.config.width), np.float32)
        return found / np.linalg.norm(found, axis=1, keepdims=True)


class GivenVectors(_OtherVectors):
    """Embeds chunks as ``vectors`` says, by their texts."""

    def __init__(self, retriever: Retriever, vectors: Mapping[str, Float[np.ndarray, " D"]]) -> None:
        super().__init__(retriever)
        self._vectors = vectors

    def embed_chunks(self, texts: Sequence[str], *, label: str | None = None) -> Float[np.ndarray, "U D"]:
        return np.array([self._vectors[text] for text in texts], np.float32)
