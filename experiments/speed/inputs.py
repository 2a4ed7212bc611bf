"""What the measurements of speed search: many texts, and a retriever."""

from __future__ import annotations

import math
from collections.abc import Sequence
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


class DrawnVectors:
    """Embeds chunks as unit vectors that are drawn at random, in no time; everything else is that of ``retriever``."""

    def __init__(self, retriever: Retriever) -> None:
        self.config, self.embedder, self.params, self.tokenizer = (
            retriever.config,
            retriever.embedder,
            retriever.params,
            retriever.tokenizer,
        )
        self._draw = np.random.default_rng(0)

    def embed_chunks(self, texts: Sequence[str], *, label: str | None = None) -> Float[np.ndarray, "U D"]:
        found = self._draw.standard_normal((len(texts), self.embedder.config.width), np.float32)
        return found / np.linalg.norm(found, axis=1, keepdims=True)
