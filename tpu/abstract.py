"""The shapes of a preset's run, enough to compile its update. Loads no weights or tokenizers, and data only from a given folder."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from sizes import NETWORKS

from qrag_jax.config import RunConfig, benchmarks
from qrag_jax.models.embedder import make_embedder
from qrag_jax.models.pretrained import ALIASES, scratch_backbone
from qrag_jax.models.registry import BackboneConfig, config_from_hf
from qrag_jax.rl.env import StateLayout
from qrag_jax.rl.learner import Learner, TrainState
from qrag_jax.rl.supervised import make_learner
from qrag_jax.train.batches import POOL_SAMPLE, pool_rows, stage_examples
from qrag_jax.types import TaskBatch

# Paragraphs of the longest document, for benchmarks that are read from files. For "own": data.chunks.
PARAGRAPHS = {"hotpotqa": 10, "musique": 20, "twowiki": 10}


@dataclass
class OneToken:
    """Stands for a tokenizer with one special token before a text and one after it, as most have."""

    prefix: tuple[int, ...] = (0,)
    suffix: tuple[int, ...] = (1,)
    space: tuple[int, ...] = ()


def network(config: RunConfig) -> BackboneConfig:
    """The network of ``model.embedder``. Raises ValueError unless it is tiny, an embedder of the paper, or a folder."""
    name = config.model.embedder
    if name == "tiny":
        return scratch_backbone(config.model, config.model.vocab_size)
    short = {repo: short for short, repo in ALIASES.items()}.get(name, name)
    if short in NETWORKS:
        return NETWORKS[short]
    file = Path(name).expanduser() / "config.json"
    if not file.is_file():
        raise ValueError(
            f"model.embedder = {name!r}: its size is not known here; use a folder with a config.json, or {', '.join(NETWORKS)}"
        )
    return config_from_hf(json.loads(file.read_text(encoding="utf-8")))


def make_abstract(config: RunConfig, layers: int) -> tuple[Learner, TrainState]:
    """The learner of a run whose network has ``layers`` layers, and the shapes of its state. Nothing is allocated."""
    embedder = make_embedder(config, replace(network(config), num_hidden_layers=layers))
    learner = make_learner(embedder, config, StateLayout.make(config.data, config.rl.budget, OneToken()))

    def start() -> Any:
        key, ids = jax.random.key(config.train.seed), jnp.zeros((1, 4), jnp.int32)
        return learner.init(key, embedder.init(key, ids, ids))

    return learner, jax.eval_shape(start)


def batch_shapes(config: RunConfig, devices: int) -> TaskBatch:
    """The shapes of a batch of the run's main stage, with the largest pool that is expected."""
    data, size = config.data, config.optim.batch
    rows = -(-pool_rows(most_texts(config)) // devices) * devices
    chunks = pool_rows(most_texts(config)) if data.haystack == "batch" else data.chunks
    whole = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.int32)
    flags = jax.ShapeDtypeStruct((size, chunks), jnp.bool_)
    return TaskBatch(
        question_ids=whole(size, data.question_tokens),
        chunk_pool_ids=whole(rows, data.chunk_tokens),
        chunk_index=whole(size, chunks),
        chunk_mask=flags,
        support=flags,
        episode_id=whole(size),
        hop=whole(size, chunks),
    )


def most_texts(config: RunConfig) -> int:
    """The largest number of distinct texts in a batch: counted in the first batches; without files, as if all texts were different."""
    data, size = config.data, config.optim.batch
    names = benchmarks.weights(data.benchmark)
    if data.data_dir is None and not benchmarks.made_to_length(data.benchmark):
        return size * max(min(PARAGRAPHS.get(name, data.chunks), data.chunks) for name in names)
    examples = stage_examples(config, config.train.stages(data)[-1])
    batches = ([examples[i] for i in range(size * step, size * (step + 1))] for step in range(POOL_SAMPLE))
    return max(len({text for example in batch for text in example.chunks}) for batch in batches)
