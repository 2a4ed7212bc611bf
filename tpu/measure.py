"""Shared by check.py, bench.py and report.py: a run's learner and batches without a run directory, the speed of a matrix product,
memory."""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
from command import Parser, run_command

from qrag_jax.config import RunConfig
from qrag_jax.config.parse import require
from qrag_jax.config.presets import PRESETS, preset, rewards_alone
from qrag_jax.models.pretrained import scratch_backbone
from qrag_jax.models.registry import BackboneConfig
from qrag_jax.rl.env import StateLayout
from qrag_jax.rl.learner import Learner, TrainState
from qrag_jax.rl.supervised import make_learner
from qrag_jax.rundir import hosts
from qrag_jax.rundir.compilations import leave_products_to_cublas
from qrag_jax.rundir.files import write_json
from qrag_jax.rundir.log import say
from qrag_jax.train.batches import Batches, stage_examples
from qrag_jax.train.model import Model, build_model, random_model, train_vocabulary
from qrag_jax.train.parallel import choose_devices
from qrag_jax.types import Share

ComputeDtype = Literal["float32", "bfloat16"]
VOCABULARY_EXAMPLES = 200  # documents from which the vocabulary is made when the weights are random


@dataclass(frozen=True)
class Reference:
    """A measurement of the reference code: model size, chunks per document, transitions/s, and its machine's matrix-product FLOP/s."""

    layers: int
    width: int
    chunks: int
    transitions_per_second: float
    matmul_flops: float = 120e9

    def config(self) -> RunConfig:
        """The same work here: the same vocabulary size and token lengths, random weights, no random policy at the start."""
        config = rewards_alone(preset("tiny", "babilong", "qa2"))
        return replace(
            config,
            data=replace(config.data, chunks=self.chunks, question_tokens=16, chunk_tokens=24, state_chunk_tokens=24),
            model=replace(
                config.model,
                layers=self.layers,
                width=self.width,
                heads=self.width // 32,
                mlp_width=4 * self.width,
                vocab_size=30_522,
                max_positions=256,
            ),
            rl=replace(config.rl, random_updates=0),
        )


REFERENCES = {"reference-small": Reference(2, 128, 40, 22.0), "reference-minilm": Reference(6, 384, 160, 0.96)}


@dataclass(frozen=True)
class Subject:
    """A run before its first update: generated BabiLong qa2 with the settings of a preset, or with a size of ``REFERENCES``. It learns from
    rewards alone, as in the paper, so that times can be compared."""

    name: str
    model: Model
    learner: Learner
    batches: Batches  # this process's share of them
    whole: Batches
    devices: tuple[jax.Device, ...]

    def start(self) -> TrainState:
        """The state before the first update. Each call makes a new one; it is large, so keep it no longer than needed."""
        return self.learner.init(jax.random.key(self.learner.config.train.seed), self.model.params)

    def computing_in(self, dtype: ComputeDtype) -> Subject:
        """The same weights and batches with another ``model.compute_dtype``."""
        config = self.learner.config
        config = replace(config, model=replace(config.model, compute_dtype=dtype))
        embedder = self.model.embedder.clone(dtype=jnp.dtype(dtype))
        return replace(self, model=replace(self.model, embedder=embedder), learner=make_learner(embedder, config, self.learner.layout))


def subject(name: str, batch: int = 0) -> Subject:
    """The preset or reference size ``name``, with ``batch`` episodes per update (0: its own number).

    Raises ValueError on an unknown name and on a batch that the devices do not divide.
    """
    config = REFERENCES[name].config() if name in REFERENCES else rewards_alone(preset(name, "babilong", "qa2"))
    if batch:
        config = replace(config, optim=replace(config.optim, batch=batch))
    # The vocabulary of these texts is smaller, but the embedding table has the size of the reference's.
    backbone = scratch_backbone(config.model, config.model.vocab_size) if name in REFERENCES else None
    return make_subject(name, config, backbone)


def make_subject(name: str, config: RunConfig, backbone: BackboneConfig | None = None) -> Subject:
    """A run of ``config``, called ``name``. With a ``backbone``, weights are random and the vocabulary comes from the texts; else both are
    those of ``config.model.embedder``."""
    devices = choose_devices(config.train, config.optim.batch)
    stages = [(stage, stage_examples(config, stage)) for stage in config.train.stages(config.data)]
    texts = [examples for _, examples in stages]
    if backbone is None:
        with tempfile.TemporaryDirectory() as folder:
            model = build_model(config, Path(folder), texts)
    else:
        words = min(backbone.vocab_size, config.model.vocab_size)
        model = random_model(config, backbone, train_vocabulary(texts, words, VOCABULARY_EXAMPLES))
    layout = StateLayout.make(config.data, config.rl.budget, model.tokenizer)
    learner = make_learner(model.embedder, config, layout)
    share = Share(jax.process_index(), jax.process_count(), len(devices))
    shared, whole = (
        Batches(config.data, config.optim.batch, model.tokenizer, stages, part) for part in (share, Share(devices=len(devices)))
    )
    return Subject(name, model, learner, shared, whole, devices)


def matmul_peak(dtype: Any, device: jax.Device, size: int = 0, repeats: int = 8) -> float:
    """FLOP/s of [n, n] @ [n, n] in ``dtype`` on one device, the best of three: 2 n^3 repeats / seconds.

    ``size`` 0: n = 8192 on accelerators, 1024 on CPU. The default precision of matrix products is used, as in training (TPUs then
    multiply float32 in bfloat16 passes).
    """
    n = size or (1024 if device.platform == "cpu" else 8192)
    key = jax.random.key(0)
    # Columns of length about 1 keep the entries in range, however often the product is repeated.
    x, w = (jax.device_put((jax.random.normal(k, (n, n)) / n**0.5).astype(dtype), device) for k in jax.random.split(key))
    run = jax.jit(lambda x, w: jax.lax.fori_loop(0, repeats, lambda _, x: x @ w, x))
    return 2 * n**3 * repeats / fastest(lambda: run(x, w))


def fastest(call: Callable[[], Any], repeats: int = 3) -> float:
    """Seconds of the fastest of ``repeats`` calls, after one that compiles. Each call is waited for."""
    jax.block_until_ready(call())
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        jax.block_until_ready(call())
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def peak_memory(device: jax.Device) -> int | None:
    """The largest number of bytes that this process has had on a device at once; None if the device does not say."""
    return (device.memory_stats() or {}).get("peak_bytes_in_use")


def describe(devices: tuple[jax.Device, ...]) -> str:
    return f"{len(devices)} x {devices[0].device_kind} ({devices[0].platform}), jax {jax.__version__}"


def report(rows: dict[str, str], values: dict[str, Any], out: str | None) -> None:
    """On process 0: prints a two-column table, and writes ``values`` as JSON to ``out`` if given."""
    if not hosts.is_leader():
        return
    width = max(map(len, rows))
    say("\n".join(f"{name:<{width}}  {text}" for name, text in rows.items()))
    if out:
        write_json(out, {"schema": 1, **values})


def main(description: str, run: Callable[[argparse.Namespace], int], **defaults: int) -> int:
    """Runs check.py or bench.py: reads the shared options and one whole number for each of ``defaults``. Returns the exit code."""
    parser = Parser(description)
    parser.add_argument(
        "--preset",
        default="tiny",
        choices=[*PRESETS, *REFERENCES],
        help="a preset of the experiments, or a size at which the reference code was measured (default: tiny)",
    )
    parser.add_argument("--batch", type=int, default=0, help="episodes per update (default: the preset's)")
    parser.add_argument("--matmul-size", type=int, default=0, help="n of the n x n matrix product (default: 8192; on a CPU 1024)")
    parser.add_argument("--out", help="JSON file for the results (default: none)")
    for name, value in defaults.items():
        parser.add_argument(f"--{name}", type=int, default=value, help=f"number of {name} (default: {value})")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    leave_products_to_cublas()

    def checked(options: argparse.Namespace) -> int:
        for name, least in (*((name, 1) for name in defaults), ("batch", 0), ("matmul_size", 0)):
            require(getattr(options, name) >= least, f"--{name.replace('_', '-')}", getattr(options, name), f">= {least}")
        hosts.start()
        return run(options)

    return run_command(parser, checked)


def compute_dtype(subject: Subject) -> Any:
    return jnp.dtype(subject.learner.config.model.compute_dtype)
