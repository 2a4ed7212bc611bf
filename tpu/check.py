"""Checks that this machine computes correctly. Run it first on a new TPU (or GPU, or CPU): python tpu/check.py

devices      their number and kind
matmul       FLOP/s of one device on a large matrix product, in float32 and bfloat16
split        what each device has in the first update: episodes, rows of the pool, and tokens of the pool (lowest and highest)
gradient     raw gradient of one update, on all devices compared with one: max |g_N - g_1| / max |g_1| over all parameters, with matrix
             products in full precision; above 1e-4 it fails; and |loss_N - loss_1| (not measured with one device)
host         the same for the gradient on one accelerator and on this machine's CPU; above 1e-3 it fails (not measured on a CPU, or with
             several processes)
compilations number of XLA compilations in each of the first updates. Any number is allowed in the first update, one in the second
             (pmap changes the form of the state), and later one for each batch of a new shape; more is a failure
update       seconds of the fastest update after the first two

With several processes (docs/multihost.md), each process compares with its own first device, and process 0 reports.
Exit codes: 0 all is well, 1 the gradient is wrong or updates compile too often, 64 bad settings, 75 SIGTERM, 130 Ctrl-C.
"""

from __future__ import annotations

import argparse
import time
import warnings
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from measure import Subject, describe, main, matmul_peak, report, subject
from summary import flops

from qrag_jax.rl.rewards import support_reward
from qrag_jax.rundir.compilations import compilations
from qrag_jax.train.parallel import make_parallel

TOLERANCE = 1e-4
HOST_TOLERANCE = 1e-3  # two kinds of machines compute erf and the logarithm differently


def raw_gradient(subject: Subject, devices: tuple[jax.Device, ...], alone: jax.Device | None = None) -> tuple[Any, float]:
    """Gradient of the first update (before clipping and Adam, which would hide a wrong scale) and its loss, on the host.

    ``alone``: use only this device, with the whole batch, instead of ``devices``.
    """
    learner = subject.learner

    def gradient(state: Any, batch: Any, axis_name: str | None = None) -> tuple[Any, dict[str, Any]]:
        episode = learner.collect(state, batch, axis_name)
        rewards = jax.vmap(support_reward)(episode.picked, batch.support)
        targets = learner.targets(state, batch, episode, rewards, axis_name)
        grads, metrics = learner.gradient(state, batch, episode, targets, axis_name)
        loss = metrics["loss"] if axis_name is None else jax.lax.pmean(metrics["loss"], axis_name)
        return {"grads": grads, "loss": loss}, {"step": jnp.zeros(())}

    batch = (subject.batches if alone is None else subject.whole)[0]
    kind = subject.learner.config.train.parallel if alone is None else "jit"
    with warnings.catch_warnings(), jax.default_matmul_precision("highest"), jax.default_device(alone):
        warnings.filterwarnings("ignore", "Some donated buffers were not usable")  # the state is given away for its gradient
        parallel = make_parallel(gradient, kind, devices if alone is None else (alone,))
        found = parallel.fetch(parallel.update(parallel.place(subject.start()), batch)[0])
    return found["grads"], float(found["loss"])


@dataclass(frozen=True)
class Gradients:
    """Differences of the first update's gradient from that on this process's first device: on all devices, and on the CPU of this
    machine. None: not measured."""

    devices: float | None
    loss: float | None
    host: float | None

    @property
    def ok(self) -> bool:
        return (self.devices is None or self.devices <= TOLERANCE) and (self.host is None or self.host <= HOST_TOLERANCE)


def compare_gradients(subject: Subject) -> Gradients:
    several, cpu = len(subject.devices) > 1, host_device()
    if not several and cpu is None:
        return Gradients(None, None, None)
    expected, expected_loss = raw_gradient(subject, subject.devices, jax.local_devices()[0])
    error = loss_error = None
    if several:
        grads, loss = raw_gradient(subject, subject.devices)
        error, loss_error = difference(grads, expected), abs(loss - expected_loss)
    host = None if cpu is None else difference(expected, raw_gradient(subject, subject.devices, cpu)[0])
    return Gradients(error, loss_error, host)


def host_device() -> jax.Device | None:
    """The CPU beside accelerators, if JAX has it and there is one process."""
    if jax.default_backend() == "cpu" or jax.process_count() > 1:
        return None
    try:
        return jax.devices("cpu")[0]
    except RuntimeError:  # JAX_PLATFORMS excludes it
        return None


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
    state = parallel.place(subject.start())
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
    gradients = compare_gradients(it)
    counts, new, seconds = first_updates(it, options.updates)
    share, fastest = split(it), min(seconds[2:], default=seconds[-1])
    tokens = share["pool_tokens"]
    ok = gradients.ok and sum(counts[2:]) <= sum(new[2:])
    rows = {
        "devices": describe(it.devices),
        "matmul": ", ".join(f"{flops(peak)} {name}" for name, peak in peaks.items()) + " (one device)",
        "split": f"{share['episodes']} episodes, {share['pool_rows']} pool rows, {min(tokens)}-{max(tokens)} pool tokens a device",
        "gradient": f"{gradients.devices:.1e} from one device's (at most {TOLERANCE:.0e}), the loss {gradients.loss:.1e}"
        if gradients.devices is not None
        else "one device: nothing to compare",
        "host": f"the gradient of one device is {gradients.host:.1e} from the CPU's (at most {HOST_TOLERANCE:.0e})"
        if gradients.host is not None
        else "not compared",
        "compilations": f"{' '.join(map(str, counts))} in updates 1 to {options.updates}, {sum(new)} shape(s) of batches",
        "update": f"{fastest:.3f} s",
        "": "OK" if ok else "FAIL",
    }
    values = {"devices": [str(d) for d in it.devices], "kind": it.devices[0].device_kind, "preset": it.name, "matmul_flops": peaks}
    values |= {
        "processes": jax.process_count(),
        "split": share,
        "gradient_difference": gradients.devices,
        "loss_difference": gradients.loss,
    }
    values |= {"host_difference": gradients.host}
    report(rows, {**values, "update_seconds": fastest, "compilations": counts, "new_shapes": new, "ok": ok}, options.out)
    return 0 if ok else 1


if __name__ == "__main__":
    raise SystemExit(main(__doc__ or "", run, updates=5))
