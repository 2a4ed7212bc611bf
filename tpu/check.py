"""Checks that this machine computes correctly. Run it first on a new TPU (or GPU, or CPU): python tpu/check.py

devices      their number and kind
matmul       FLOP/s of one device on a large matrix product, in float32 and bfloat16
split        the work of each device in the first update: episodes, pool rows, and tokens of the pool (range over devices)
gradient     one update's raw gradient on all devices compared with one device: max |g_N - g_1| / max |g_1| over all parameters, with
             products in full precision, and |loss_N - loss_1|; more than 1e-4 is a failure; not measured with one device
compilations XLA compilations in each of the first updates of training: all in the first update, at most one in the second (pmap leaves the
             state in another form), and from the third on, one for each batch of a new shape; more is a failure
update       seconds of the fastest update, after the first two
With several processes (docs/multihost.md), each compares with its own first device; process 0 reports.
Exit codes: 0 all is well, 1 the gradient is wrong or updates compile repeatedly, 64 bad settings.
"""

from __future__ import annotations

import argparse
import time
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from measure import Subject, compilations, describe, flops, main, matmul_peak, report, subject

from qrag_jax.rl.rewards import support_reward
from qrag_jax.train.parallel import make_parallel

TOLERANCE = 1e-4


def raw_gradient(subject: Subject, devices: tuple[jax.Device, ...]) -> tuple[Any, float]:
    """Gradient of the first update (before clipping and Adam, which would hide a wrong scale) and its loss, on the host.

    If there is only one device, it is this process's first, and it gets the whole batch.
    """
    learner = subject.learner

    def gradient(state: Any, batch: Any, axis_name: str | None = None) -> tuple[Any, dict[str, Any]]:
        episode = learner.collect(state, batch, axis_name)
        rewards = jax.vmap(support_reward)(episode.picked, batch.support)
        targets = learner.targets(state, batch, episode, rewards, axis_name)
        grads, metrics = learner.gradient(state, batch, episode, targets, axis_name)
        loss = metrics["loss"] if axis_name is None else jax.lax.pmean(metrics["loss"], axis_name)
        return {"grads": grads, "loss": loss}, {"step": jnp.zeros(())}

    alone = len(devices) == 1
    parallel = make_parallel(gradient, "jit" if alone else subject.learner.config.train.parallel, devices)
    batch = (subject.whole if alone else subject.batches)[0]
    with warnings.catch_warnings(), jax.default_matmul_precision("highest"):
        warnings.filterwarnings("ignore", "Some donated buffers were not usable")  # the state is donated, but the result is a gradient
        found = parallel.fetch(parallel.update(parallel.place(subject.state), batch)[0])
    return found["grads"], float(found["loss"])


def difference(found: Any, expected: Any) -> float:
    """max |found - expected| / max |expected| over the leaves of two trees. Raises ValueError if ``expected`` is all zero."""
    scale = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(expected))
    if scale == 0:
        raise ValueError("the gradient is zero everywhere, so there is nothing to compare")
    return max(float(jnp.abs(a - b).max()) for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)) / scale


def split(subject: Subject) -> dict[str, Any]:
    """Each device's part of the first update's batch."""
    batch, count = subject.whole[0], len(subject.devices)
    tokens = (np.asarray(batch.chunk_pool_ids) >= 0).reshape(count, -1).sum(1)
    return {"episodes": len(batch.chunk_mask) // count, "pool_rows": len(batch.chunk_pool_ids) // count, "pool_tokens": tokens.tolist()}


def first_updates(subject: Subject, updates: int) -> tuple[list[int], list[bool], list[float]]:
    """For each of the first ``updates`` updates: its number of compilations, whether its batch had a new shape, and its seconds."""
    parallel = make_parallel(subject.learner.update, subject.learner.config.train.parallel, subject.devices)
    state = parallel.place(subject.state)
    counts, new, seconds, seen = [], [], [], set()
    for step in range(updates):
        batch = subject.batches[step]
        shapes = tuple(x.shape for x in jax.tree.leaves(batch))
        new.append(shapes not in seen)
        seen.add(shapes)
        began = time.perf_counter()
        with compilations() as found:
            state, metrics = parallel.update(state, batch)
            jax.block_until_ready((state, metrics))
        seconds.append(time.perf_counter() - began)
        counts.append(len(found))
    return counts, new, seconds


def run(options: argparse.Namespace) -> int:
    it = subject(options.preset, options.batch)
    peaks = {name: matmul_peak(name, jax.local_devices()[0], options.matmul_size) for name in ("float32", "bfloat16")}
    error = loss_error = None
    if len(it.devices) > 1:
        (grads, loss), (expected, expected_loss) = (raw_gradient(it, devices) for devices in (it.devices, it.devices[:1]))
        error, loss_error = difference(grads, expected), abs(loss - expected_loss)
    counts, new, seconds = first_updates(it, options.updates)
    share, fastest = split(it), min(seconds[2:], default=seconds[-1])
    tokens = share["pool_tokens"]
    ok = (error is None or error <= TOLERANCE) and sum(counts[2:]) <= sum(new[2:])
    rows = {
        "devices": describe(it.devices),
        "matmul": ", ".join(f"{flops(peak)} {name}" for name, peak in peaks.items()) + " (one device)",
        "split": f"{share['episodes']} episodes, {share['pool_rows']} pool rows, {min(tokens)}-{max(tokens)} pool tokens per device",
        "gradient": f"differs from one device's by {error:.1e} (at most {TOLERANCE:.0e}), the loss by {loss_error:.1e}"
        if error is not None
        else "not compared: there is only one device",
        "compilations": f"{' '.join(map(str, counts))} in updates 1 to {options.updates}, {sum(new)} batch shape(s)",
        "update": f"{fastest:.3f} s",
        "": "OK" if ok else "FAIL",
    }
    values = {"devices": [str(d) for d in it.devices], "kind": it.devices[0].device_kind, "preset": it.name, "matmul_flops": peaks}
    values |= {"processes": jax.process_count(), "split": share, "gradient_difference": error, "loss_difference": loss_error}
    report(rows, {**values, "update_seconds": fastest, "compilations": counts, "new_shapes": new, "ok": ok}, options.out)
    return 0 if ok else 1


if __name__ == "__main__":
    raise SystemExit(main(__doc__ or "", run, updates=5))
