"""Small real objects for tests: a trained vocabulary, an embedder, a learner, a batch of BabiLong."""

from __future__ import annotations

import dataclasses
import json
import re
from functools import lru_cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax

from qrag_jax import data
from qrag_jax.config import DataConfig, EvalConfig, ModelConfig, OptimConfig, RunConfig, TrainConfig
from qrag_jax.evaluate.answers import BABILONG_LABELS
from qrag_jax.models.embedder import make_embedder
from qrag_jax.models.pretrained import scratch_backbone
from qrag_jax.models.tokenizer import TextTokenizer, train_wordpiece
from qrag_jax.rl.env import StateLayout
from qrag_jax.rl.learner import Learner, TrainState
from qrag_jax.rl.supervised import make_learner
from qrag_jax.train.batches import make_batch
from qrag_jax.types import TaskBatch

SIZES: dict[str, dict[str, Any]] = {
    "data": {"task": "qa1", "chunks": 16, "shared_noise": 8},
    "model": {"layers": 1, "width": 32, "heads": 2, "mlp_width": 64, "vocab_size": 600, "max_positions": 64},
    "optim": {"batch": 8},
    "train": {"steps": 40, "log_every": 5, "eval_every": 10, "checkpoint_every": 10, "eval_episodes": 8},
    "eval": {"tokens": ("1k",), "episodes": 8},
}
"""The small model and its run: the only place that says how large they are. Section -> field -> value."""

SMALL = RunConfig(
    data=DataConfig(**SIZES["data"], question_tokens=12, chunk_tokens=16, state_chunk_tokens=12),
    model=ModelConfig(**SIZES["model"]),
    optim=OptimConfig(**SIZES["optim"], warmup=2),
    train=TrainConfig(**SIZES["train"]),
    eval=EvalConfig(**SIZES["eval"]),
)


NEEDLE = re.compile(r"One of the special magic (numbers|words|uuids) for (\S+) is: (\S+)\.")
"""A needle of RULER: form, key, value."""


def dotted(**changes: dict[str, object]) -> dict[str, Any]:
    """``SIZES`` with changes, by dotted names, as a sweep's specification has them: ``dotted(train={"steps": 8})``."""
    sections = {name: SIZES.get(name, {}) | changes.get(name, {}) for name in (*SIZES, *(changes.keys() - SIZES.keys()))}
    return {f"{name}.{field}": value for name, fields in sections.items() for field, value in fields.items()}


def options(**changes: dict[str, object]) -> tuple[str, ...]:
    """The same as options of a command: ``--train.steps 8``."""
    words = []
    for name, value in dotted(**changes).items():
        words += ["--" + name.replace("_", "-"), *map(str, value if isinstance(value, tuple) else (value,))]
    return tuple(words)


def changed(config: RunConfig, **sections: dict[str, object]) -> RunConfig:
    """``changed(config, rl={"budget": 2})``."""
    new = {name: dataclasses.replace(getattr(config, name), **values) for name, values in sections.items()}
    return dataclasses.replace(config, **new)


@lru_cache
def small_tokenizer() -> TextTokenizer:
    examples = data.load(SMALL.data, "train", seed=0, group=8)
    return train_wordpiece((text for i in range(64) for text in (examples[i].question, *examples[i].chunks)), SMALL.model.vocab_size)


def small_learner(config: RunConfig = SMALL, optimizer: optax.GradientTransformation | None = None) -> tuple[Learner, TrainState]:
    tokenizer = small_tokenizer()
    embedder = make_embedder(config, scratch_backbone(config.model, tokenizer.vocab_size))
    ids = jnp.zeros((1, 4), jnp.int32)
    params = jax.jit(embedder.init)(jax.random.key(0), ids, ids)
    layout = StateLayout.make(config.data, config.rl.budget, tokenizer)
    learner = make_learner(embedder, config, layout, optimizer)
    return learner, learner.init(jax.random.key(1), params)


def small_batch(step: int = 0, config: RunConfig = SMALL) -> TaskBatch:
    examples = data.load(config.data, "train", seed=0, group=config.optim.batch)
    size = config.optim.batch
    batch = make_batch([examples[i] for i in range(step * size, (step + 1) * size)], step * size, small_tokenizer(), config.data)
    return jax.tree.map(jnp.asarray, batch)


def write_lines(path: Path, *lines: object) -> Path:
    """Lines of text, or of JSON where they are none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines), encoding="utf-8")
    return path


def last_place(user: str) -> str:
    """The answer of a reader that knows the task: the last place to which the person went."""
    text, _, question = user.rpartition("Question: Where is ")
    name = question.split("?")[0]
    places = [word.rstrip(".") for line in text.splitlines() if line.startswith(f"{name} ") for word in line.split()]
    known = [place for place in places if place in BABILONG_LABELS["qa1"]]
    return known[-1] if known else "nowhere"
