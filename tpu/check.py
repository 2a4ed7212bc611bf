"""Does this machine compute what it should? Run it first on a new TPU (or GPU, or CPU): python tpu/check.py

devices      how many, of which kind
matmul       FLOP/s of one device on a large matrix product, in float32 and bfloat16
gradient     one update's raw gradient on one device and on all: max |g_N - g_1| / max |g_1| over all parameters, with products in
             full precision; more than 1e-4 is a failure (not measured with one device)
compilations XLA compilations in each of the first updates of training. The first has all of them, the second at most one (pmap: the
             state comes in as pmap leaves it); from the third on, one for each batch of a new shape, more is a failure
Exit codes: 0 all is well, 1 the gradient is wrong or updates compile again and again, 64 bad settings.
"""

from __future__ import annotations

import argparse
import warnings
from typing import Any

import jax
import jax.numpy as jnp
from measure import Subject, compilations, describe, flops, main, matmul_peak, report, subject

from qrag_jax.parallel import make_parallel
from qrag_jax.rl.rewards import support_reward

TOLERANCE = 1e-4


def raw_gradient(subject: Subject, devices: tuple[jax.Device, ...]) -> Any:
    """Gradient of the first update (before clipping and Adam, which would hide a wrong scale), on the host."""
    learner = subject.learner

    def gradient(state: Any, batch: Any, axis_name: str | None = None) -> tuple[Any, dict[str, Any]]:
        episode = learner.collect(state, batch, axis_name)
        rewards = jax.vmap(support_reward)(episode.picked, batch.support)
        targets = learner.targets(state, batch, episode, rewards, axis_name)
        return learner.gradient(state, batch, episode, targets, axis_name)[0], {"step": jnp.zeros(())}

    parallel = make_parallel(gradient, subject.learner.config.train.parallel, devices)
    with warnings.catch_warnings(), jax.default_matmul_precision("highest"):
        warnings.filterwarnings("ignore", "Some donated buffers were not usable")  # the state is given away for its gradient
        return parallel.fetch(parallel.update(parallel.place(subject.state), subject.batches[0])[0])


def difference(found: Any, expected: Any) -> float:
    """max |found - expected| / max |expected| over the leaves of two trees. Raises ValueError where ``expected`` is zero everywhere."""
    scale = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(expected))
    if scale == 0:
        raise ValueError("the gradient is zero everywhere: nothing to compare")
    return max(float(jnp.abs(a - b).max()) for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)) / scale


def compile_counts(subject: Subject, updates: int) -> tuple[list[int], list[bool]]:
    """Of each of the first ``updates`` updates of training: how many compilations it took, whether its batch had a new shape."""
    parallel = make_parallel(subject.learner.update, subject.learner.config.train.parallel, subject.devices)
    state = parallel.place(subject.state)
    counts, new, seen = [], [], set()
    for step in range(updates):
        batch = subject.batches[step]
        shapes = tuple(x.shape for x in jax.tree.leaves(batch))
        new.append(shapes not in seen)
        seen.add(shapes)
        with compilations() as found:
            state, metrics = parallel.update(state, batch)
            jax.block_until_ready((state, metrics))
        counts.append(len(found))
    return counts, new


def run(options: argparse.Namespace) -> int:
    it = subject(options.preset, options.batch)
    peaks = {name: matmul_peak(name, it.devices[0], options.matmul_size) for name in ("float32", "bfloat16")}
    error = difference(raw_gradient(it, it.devices), raw_gradient(it, it.devices[:1])) if len(it.devices) > 1 else None
    counts, new = compile_counts(it, options.updates)
    ok = (error is None or error <= TOLERANCE) and sum(counts[2:]) <= sum(new[2:])
    rows = {
        "devices": describe(it.devices),
        "matmul": ", ".join(f"{flops(peak)} {name}" for name, peak in peaks.items()) + " (one device)",
        "gradient": "one device: nothing to compare" if error is None else f"{error:.1e} from one device's (at most {TOLERANCE:.0e})",
        "compilations": f"{' '.join(map(str, counts))} in updates 1 to {options.updates}, {sum(new)} shape(s) of batches",
        "": "OK" if ok else "FAIL",
    }
    values = {"devices": [str(d) for d in it.devices], "kind": it.devices[0].device_kind, "preset": it.name, "matmul_flops": peaks}
    report(rows, {**values, "gradient_difference": error, "compilations": counts, "new_shapes": new, "ok": ok}, options.out)
    return 0 if ok else 1


if __name__ == "__main__":
    raise SystemExit(main(__doc__ or "", run, updates=5))
