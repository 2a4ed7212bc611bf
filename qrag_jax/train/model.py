"""The model that a run starts from: encoders and tokenizer, from another run, from pretrained weights, or from scratch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from qrag_jax.config import RunConfig
from qrag_jax.export.hub import load_model
from qrag_jax.models.embedder import Embedder, encoders, make_embedder, pair
from qrag_jax.models.pretrained import load_pretrained, scratch_backbone
from qrag_jax.models.registry import BackboneConfig
from qrag_jax.models.tokenizer import TextTokenizer, train_wordpiece
from qrag_jax.rl.learner import Params
from qrag_jax.train.parallel import on_host
from qrag_jax.types import QAExample

VOCABULARY_EXAMPLES = 2000  # number of training documents from which the vocabulary of a from-scratch run is made


@dataclass(frozen=True)
class Model:
    """The model that a run starts from."""

    backbone: BackboneConfig
    embedder: Embedder
    tokenizer: TextTokenizer
    params: Params
    """On the host, float32: a run keeps them, but its devices need the room for the train state."""


def build_model(config: RunConfig, run_dir: Path, examples: Sequence[Sequence[QAExample]]) -> Model:
    """Encoders and tokenizer: from another run, from pretrained weights, or from scratch with a vocabulary of the training text.

    ``examples``: the training examples of each stage. Raises ValueError when the weights cannot be read or do not fit ``config``.
    """
    if config.train.init_from is not None:
        try:
            export = load_model(config.train.init_from)
        except ValueError as error:
            raise ValueError(f"train.init_from: {error}") from error
        backbone, tokenizer, start = export.backbone, export.tokenizer, export.params
        embedder = make_embedder(config, backbone, export.pooling)
    elif config.model.embedder != "tiny":
        folder = load_pretrained(config.model.embedder)
        backbone, tokenizer = folder.backbone, folder.tokenizer
        embedder = make_embedder(config, backbone, folder.pooling)
        names = ("encoder",) if config.model.tied else ("state_encoder", "action_encoder")
        start = {"params": dict.fromkeys(names, folder.params)}
    else:
        saved = run_dir / "tokenizer.json"
        tokenizer = TextTokenizer.load(saved) if saved.exists() else train_vocabulary(examples, config.model.vocab_size)
        return scratch_model(config, tokenizer, tokenizer.vocab_size)
    wanted = jax.eval_shape(embedder.init, jax.random.key(0), jnp.zeros((1, 4), jnp.int32), jnp.zeros((1, 4), jnp.int32))
    if _shapes(wanted) != _shapes(start):
        raise ValueError(f"train.init_from = {config.train.init_from!r}: model.tied = {config.model.tied} does not suit its parameters")
    return Model(backbone, embedder, tokenizer, jax.tree.map(lambda x: np.asarray(x, np.float32), start))


def scratch_model(config: RunConfig, tokenizer: TextTokenizer, vocab_size: int) -> Model:
    """Random weights in the network of ``config.model``, with a table of ``vocab_size`` words."""
    return random_model(config, scratch_backbone(config.model, vocab_size), tokenizer)


def random_model(config: RunConfig, backbone: BackboneConfig, tokenizer: TextTokenizer) -> Model:
    """Random weights, the same in both encoders, as with pretrained ones: so equal words are alike from the first update."""
    embedder = make_embedder(config, backbone)
    ids = jnp.zeros((1, 4), jnp.int32)
    with on_host():  # compiled for a GPU, the random numbers of twelve layers take over a minute
        start = jax.device_get(jax.jit(embedder.init)(jax.random.key(config.train.seed), ids, ids))
    return Model(backbone, embedder, tokenizer, pair(encoders(start)[0], None, config.model.tied))


def _shapes(params: Params) -> list[tuple[Any, tuple[int, ...]]]:
    return [(path, tuple(x.shape)) for path, x in jax.tree.leaves_with_path(params)]


def train_vocabulary(examples: Sequence[Sequence[QAExample]], vocab_size: int, documents: int | None = None) -> TextTokenizer:
    """A WordPiece vocabulary counted on the beginning of each stage's ``examples``, ``documents`` in all (VOCABULARY_EXAMPLES)."""
    share = range((documents or VOCABULARY_EXAMPLES) // len(examples))
    some = (stage[i] for stage in examples for i in share)
    return train_wordpiece((text for example in some for text in (example.question, *example.chunks)), vocab_size)
