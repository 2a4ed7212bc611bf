"""How fast does this machine train? python tpu/bench.py --updates 30 [--preset minilm] [--out bench.json]

transitions/s    updates x episodes x picks / wall
FLOP an update   what the encoders' matrix products need, counted from shapes (model_flops below), padding included
utilisation      FLOP an update x updates / wall / (devices x FLOP/s of a large matrix product, measured here in the same dtype)
input-bound      time waiting for the host's next batch / wall; batches are made on a thread while the devices work, as in training
Updates are waited for one by one, so wall = waiting + updating. The first updates, which compile, are not counted.
"""

from __future__ import annotations

import argparse
import time

import jax
import numpy as np
from measure import Subject, compilations, compute_dtype, describe, flops, main, matmul_peak, report, subject

from qrag_jax.parallel import make_parallel
from qrag_jax.types import TaskBatch

WARM_UP = 2


def encoder_flops(kernels: int, layers: int, width: int, rows: int, length: int) -> float:
    """FLOP of one forward pass over [rows, length] tokens.

    A token costs 2 FLOP a weight (``kernels``: entries of all dense kernels of an encoder), and attention 4 L D a layer (its row of
    Q K^T and of A V: 2 L D each). Look-ups, norms, softmax and the pooling are left out.
    """
    return float(rows * length * (2 * kernels + 4 * length * width * layers))


def model_flops(subject: Subject, batch: TaskBatch) -> float:
    """FLOP of one update, F(rows, length) being a forward pass and a backward pass two of them:

    rollout   F_a(U, Lc) + sum over t < T of F_s(B, Ls_t)
    targets   F_a(U, Lc) + sum over 1 <= t < T of F_s(B, Ls_t)
    loss      3 (F_a(B T, Lc) + sum over t < T of F_s(B, Ls_t))

    Ls_t is the length that a state with t picks is embedded at. Scores, B N D a step, are left out.
    """
    config, backbone = subject.learner.config, subject.model.backbone
    budget, size = config.rl.budget, batch.chunk_index.shape[0]
    pool, chunk = batch.chunk_pool_ids.shape
    trees = subject.model.params["params"]

    def forward(name: str, rows: int, length: int) -> float:
        leaves = jax.tree.leaves_with_path(trees["encoder" if config.model.tied else name])
        kernels = sum(x.size for path, x in leaves if getattr(path[-1], "key", None) == "kernel")
        return encoder_flops(kernels, backbone.num_hidden_layers, backbone.width, rows, length)

    states = [forward("state_encoder", size, subject.learner.layout.tokens_at(t)) for t in range(budget)]
    pools = forward("action_encoder", pool, chunk)
    return 2 * pools + sum(states) + sum(states[1:]) + 3 * (forward("action_encoder", size * budget, chunk) + sum(states))


def run(options: argparse.Namespace) -> int:
    it = subject(options.preset, options.batch)
    config = it.learner.config
    parallel = make_parallel(it.learner.update, config.train.parallel, it.devices)
    state = parallel.place(it.state)
    batches = it.batches.ahead(0, WARM_UP + options.updates)
    for _ in range(WARM_UP):
        state, metrics = parallel.update(state, next(batches))
        jax.block_until_ready((state, metrics))

    waited, needed = 0.0, []
    with compilations() as compiled:
        began = time.perf_counter()
        for _ in range(options.updates):
            asked = time.perf_counter()
            batch = next(batches)
            waited += time.perf_counter() - asked
            state, metrics = parallel.update(state, batch)
            jax.block_until_ready((state, metrics))
            needed.append(batch)
        wall = time.perf_counter() - began
    if not np.isfinite(float(metrics["loss"])):
        raise FloatingPointError(f"loss is {float(metrics['loss'])} after {options.updates} updates: these times mean nothing")

    work = sum(model_flops(it, batch) for batch in needed) / options.updates
    peak = matmul_peak(compute_dtype(it), it.devices[0], options.matmul_size)
    transitions = options.updates * config.optim.batch * config.rl.budget / wall
    values = {
        "devices": [str(d) for d in it.devices],
        "kind": it.devices[0].device_kind,
        "preset": it.name,
        "compute_dtype": config.model.compute_dtype,
        "updates": options.updates,
        "batch": config.optim.batch,
        "budget": config.rl.budget,
        "chunks": config.data.chunks,
        "wall_seconds": wall,
        "transitions_per_second": transitions,
        "flop_per_update": work,
        "matmul_flops": peak,
        "utilisation": work * options.updates / wall / (peak * len(it.devices)),
        "input_bound": waited / wall,
        "compilations": len(compiled),
    }
    rows = {
        "devices": describe(it.devices),
        "run": f"{it.name}: {options.updates} updates of {config.optim.batch} episodes x {config.rl.budget} picks, {wall:.1f} s",
        "transitions/s": f"{transitions:.1f}",
        "FLOP an update": f"{work:.2e}",
        "utilisation": f"{values['utilisation']:.1%} of {len(it.devices)} x {flops(peak)} ({config.model.compute_dtype} product)",
        "input-bound": f"{waited / wall:.1%}",
    }
    if compiled:
        rows["note"] = f"{len(compiled)} compilation(s), {sum(compiled):.1f} s, are part of the time: batches of a new shape"
    report(rows, values, options.out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(__doc__ or "", run, updates=30))
