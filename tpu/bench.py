"""Measures how fast this machine trains: python tpu/bench.py --updates 30 [--preset minilm] [--out bench.json]

transitions/s    updates x episodes x picks / wall time
FLOP per update  FLOP of the encoders' matrix products for the real tokens, without padding (see model_flops in the source)
utilisation      FLOP per update x updates / wall time / (devices x FLOP/s of a large matrix product in the same dtype; it is measured
                 before and after the updates, and the higher value is used)
input-bound      time spent waiting for the host's next batch / wall time; as in training, a thread makes batches while the devices work
Each update is waited for, so wall time = waiting for batches + updating. The first updates, which compile, are not measured.
Exit codes: 0 done, 64 bad settings, 70 the loss is NaN or infinite, 75 SIGTERM, 130 Ctrl-C.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from measure import REFERENCES, Subject, compute_dtype, describe, main, matmul_peak, peak_memory, report, subject
from numpy.typing import ArrayLike
from summary import flops

from qrag_jax.rl.learner import TrainState
from qrag_jax.rundir.compilations import compilations
from qrag_jax.rundir.log import NotFinite
from qrag_jax.train.parallel import Parallel, Update, make_parallel
from qrag_jax.types import TaskBatch

WARM_UP = 2


def encoder_flops(kernels: int, layers: int, width: int, lengths: ArrayLike) -> float:
    """FLOP of one forward pass over rows of these ``lengths``, in tokens.

    A token costs 2 FLOP per weight (``kernels``: entries in all dense kernels of an encoder), and attention 4 L D per layer (2 L D
    each for its row of Q K^T and of A V). Look-ups, norms, softmax and pooling are not counted.
    """
    tokens = np.asarray(lengths, np.float64)
    return float((tokens * (2 * kernels + 4 * tokens * width * layers)).sum())


def model_flops(subject: Subject, batch: TaskBatch, picked: ArrayLike, state_ids: ArrayLike) -> float:
    """FLOP of one update for its real tokens, given the picks [B, T] and states [B, T, Ls] of its episodes. F(rows) is a forward
    pass, and a backward pass is two of them:

    rollout   F_a(pool) + sum over t < T of F_s(states at t)
    targets   F_a(pool) + sum over 1 <= t < T of F_s(states at t)
    loss      3 (F_a(distinct picks) + sum over t < T of F_s(states at t))

    Scores, B N D per step, are not counted.
    """
    config, backbone = subject.learner.config, subject.model.backbone
    trees = subject.model.params["params"]

    def forward(name: str, ids: ArrayLike) -> float:
        leaves = jax.tree.leaves_with_path(trees["encoder" if config.model.tied else name])
        kernels = sum(x.size for path, x in leaves if getattr(path[-1], "key", None) == "kernel")
        return encoder_flops(kernels, backbone.num_hidden_layers, backbone.width, (np.asarray(ids) >= 0).sum(-1))

    distinct = np.unique(np.take_along_axis(np.asarray(batch.chunk_index), np.asarray(picked), axis=1))
    pools, picks = (forward("action_encoder", ids) for ids in (batch.chunk_pool_ids, np.asarray(batch.chunk_pool_ids)[distinct]))
    states, first = (forward("state_encoder", ids) for ids in (np.asarray(state_ids), np.asarray(state_ids)[:, 0]))
    return 2 * pools + 2 * states - first + 3 * (picks + states)


@dataclass(frozen=True)
class Timing:
    """Times of some updates: all seconds, seconds of waiting for batches, seconds of each compilation; and the state afterwards."""

    wall: float
    waited: float
    compiled: list[float]
    state: TrainState


def time_updates(update: Update, state: TrainState, batches: Iterator[TaskBatch], updates: int) -> Timing:
    """Runs and times ``updates`` updates. Raises NotFinite if the last loss is not finite."""
    waited = 0.0
    with compilations() as compiled:
        began = time.perf_counter()
        for _ in range(updates):
            asked = time.perf_counter()
            batch = next(batches)
            waited += time.perf_counter() - asked
            state, metrics = update(state, batch)
            jax.block_until_ready((state, metrics))
        wall = time.perf_counter() - began
    if not np.isfinite(float(metrics["loss"])):
        raise NotFinite(f"the loss is {float(metrics['loss'])} after {updates} updates, so their times mean nothing")
    return Timing(wall, waited, compiled, state)


def run(options: argparse.Namespace) -> int:
    it = subject(options.preset, options.batch)
    config, parallel = it.learner.config, make_parallel(it.learner.update, it.learner.config.train.parallel, it.devices)
    product = lambda: matmul_peak(compute_dtype(it), jax.local_devices()[0], options.matmul_size)
    peak = product()
    timing = time_training(it, parallel, options.updates)
    # The policies of neighbouring updates pick alike, so the last batch represents all.
    batch = it.whole[WARM_UP + options.updates - 1]
    episode = jax.jit(it.learner.collect)(parallel.fetch(timing.state), batch)
    speed = speed_of(it, timing, options.updates, model_flops(it, batch, episode.picked, episode.state_ids))
    peak = max(peak, product())
    values = {
        "devices": [str(d) for d in it.devices],
        "kind": it.devices[0].device_kind,
        "preset": it.name,
        "compute_dtype": config.model.compute_dtype,
        "batch": config.optim.batch,
        "budget": config.rl.budget,
        "chunks": config.data.chunks,
        **speed,
        "matmul_flops": peak,
        "utilisation": speed["flops"] / (peak * len(it.devices)),
        "times_reference": times_reference(it.name, speed["transitions_per_second"], peak * len(it.devices)),
    }
    report(rows(it, values, timing), values, options.out)
    return 0


def time_training(it: Subject, parallel: Parallel, updates: int) -> Timing:
    """Times the first ``updates`` updates of a run, made by ``parallel``, after ``WARM_UP`` updates that compile."""
    state = parallel.place(it.start())
    batches = it.batches.ahead(0, WARM_UP + updates)
    for _ in range(WARM_UP):
        state, metrics = parallel.update(state, next(batches))
        jax.block_until_ready((state, metrics))
    return time_updates(parallel.update, state, batches, updates)


def speed_of(it: Subject, timing: Timing, updates: int, work: float) -> dict[str, Any]:
    """The figures of ``updates`` timed updates of ``work`` FLOP each, by the names of the JSON file."""
    config = it.learner.config
    return {
        "updates": updates,
        "wall_seconds": timing.wall,
        "transitions_per_second": updates * config.optim.batch * config.rl.budget / timing.wall,
        "flop_per_update": work,
        "flops": work * updates / timing.wall,
        "input_bound": timing.waited / timing.wall,
        "compilations": len(timing.compiled),
        "peak_bytes": peak_memory(it.devices[0]),
    }


def times_reference(name: str, transitions: float, matmul_flops: float) -> float | None:
    """Transitions/s relative to the reference code, each divided by its machine's matrix-product speed; None if it has no such size."""
    reference = REFERENCES.get(name)
    if reference is None:
        return None
    return transitions / matmul_flops / (reference.transitions_per_second / reference.matmul_flops)


def rows(it: Subject, values: Mapping[str, Any], timing: Timing) -> dict[str, str]:
    """The table to print."""
    config = it.learner.config
    table = {
        "devices": describe(it.devices),
        "run": f"{it.name}: {values['updates']} updates of {config.optim.batch} episodes x {config.rl.budget} picks, {timing.wall:.1f} s",
        "transitions/s": f"{values['transitions_per_second']:.1f}",
        "FLOP per update": f"{values['flop_per_update']:.2e}",
        "utilisation": (
            f"{values['utilisation']:.1%} of {len(it.devices)} x {flops(values['matmul_flops'])} ({config.model.compute_dtype} product)"
        ),
        "input-bound": f"{values['input_bound']:.1%}",
    }
    if (times := values["times_reference"]) is not None:
        table["compared with the reference"] = f"{times:.1f} times its transitions/s, each divided by the machine's matrix-product speed"
    if timing.compiled:
        seconds = sum(timing.compiled)
        table["note"] = f"the time includes {len(timing.compiled)} compilation(s), {seconds:.1f} s, for batches of a new shape"
    return table


if __name__ == "__main__":
    raise SystemExit(main(__doc__ or "", run, updates=30))
