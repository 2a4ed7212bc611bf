"""Low-rank adapters (LoRA, Hu et al. 2022): a dense layer computes with W + s A B. A [D, r] and B [r, O] are trained, W is not.

Every kernel of an encoder's dense layers gets an adapter; its other parameters stay as they are. A tree of adapters has the places of the
kernels in the encoder's tree, with {"a": A, "b": B} instead of the kernel.
"""

from __future__ import annotations

import zlib
from typing import Any, no_type_check

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import PRNGKeyArray

KERNEL = "kernel"
SHARED = "encoder"  # the name of weights from which both encoders start


@no_type_check  # as a pytree, it may also hold shards and shapes
@struct.dataclass
class Adapted:
    """Parameters of an embedder as ``adapters`` to the weights ``base``, which has one tree, SHARED, if both encoders start from it."""

    adapters: Any
    base: Any
    scale: float = struct.field(pytree_node=False)

    def of(self, name: str) -> tuple[dict[str, Any], dict[str, Any]]:
        """The adapters and the weights of an encoder."""
        base = self.base["params"]
        return self.adapters["params"][name], base[name] if name in base else base[SHARED]


def make_adapters(key: PRNGKeyArray, params: Any, rank: int) -> Any:
    """Adapters that change nothing yet: A is normal with variance 1 / r, B is zero. ``params``: of an embedder.

    What is drawn for a kernel depends on ``key`` and on its place alone.
    """
    found: dict[tuple[str, ...], Any] = {}
    for path, leaf in flatten_dict(params["params"]).items():
        if path[-1] == KERNEL and len(leaf.shape) == 2:
            own = jax.random.fold_in(key, zlib.crc32("/".join(path).encode()))
            a = jax.random.normal(own, (leaf.shape[0], rank)) / rank**0.5
            found |= {(*path, "a"): a, (*path, "b"): jnp.zeros((rank, leaf.shape[1]))}
    return {"params": unflatten_dict(found)}


def shared_base(params: Any) -> Any:
    """The weights of an embedder (host arrays), once if both encoders hold the same numbers."""
    trees = list(params["params"].values())
    if len(trees) > 1 and all(x is y or np.array_equal(x, y) for x, y in zip(*map(jax.tree.leaves, trees), strict=True)):
        return {"params": {SHARED: trees[0]}}
    return params


def merge(adapters: dict[str, Any], base: dict[str, Any], scale: float) -> dict[str, Any]:
    """The parameters of an encoder: W + s A B in each kernel with an adapter."""
    found, flat = flatten_dict(adapters), flatten_dict(base)
    for *path, which in found:
        if which == "a":
            a, b = found[(*path, "a")], found[(*path, "b")]
            flat[tuple(path)] = flat[tuple(path)] + scale * jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)
    return unflatten_dict(flat)


def pull_back(gradient: dict[str, Any], adapters: dict[str, Any], scale: float) -> dict[str, Any]:
    """The gradient of adapters, from that of the parameters that :func:`merge` makes of them."""
    found, flat = flatten_dict(adapters), flatten_dict(gradient)
    product = lambda x, y: scale * jnp.matmul(x, y, precision=jax.lax.Precision.HIGHEST)
    of = {"a": lambda path: product(flat[path], found[(*path, "b")].T), "b": lambda path: product(found[(*path, "a")].T, flat[path])}
    return unflatten_dict({(*path, which): of[which](tuple(path)) for *path, which in found})
