"""Parameters split over the devices of an update: each device keeps a part, and gathers the whole for as long as it is used.

A tree of parameters, gradients or moments may hold a :class:`Shard` where it otherwise holds an array. Optimisers and averages work on
such a tree as they are, because they treat each number alone. Only what needs all numbers does not: an encoder, the mean of a gradient
over devices, its norm. Those are here. On a tree without shards, each function here does what the replicated update has always done.
"""

from __future__ import annotations

from typing import Any, no_type_check

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jaxtyping import Array, Float


@no_type_check  # as a pytree, it may also hold shapes and None
@struct.dataclass
class Shard:
    """This device's part of an array that is split along ``axis`` over the devices of ``axis_name``, in equal parts."""

    part: Array
    axis: int = struct.field(pytree_node=False)
    axis_name: str = struct.field(pytree_node=False)


def is_shard(x: Any) -> bool:
    return isinstance(x, Shard)


def gather(tree: Any, dtype: Any, after: Any = ()) -> Any:
    """The tree with each shard replaced by the whole array, as ``dtype``; other leaves stay as they are.

    ``dtype`` must be the type in which the array is used: less is sent then, and nothing else changes. ``after``: arrays that must be
    computed first. Without it, a compiler might gather everything at the start, or keep it from one use to the next.
    """
    leaves, structure = jax.tree.flatten(tree, is_leaf=is_shard)
    parts = [leaf.part.astype(dtype) for leaf in leaves if is_shard(leaf)]
    if not parts:
        return tree
    parts, _ = jax.lax.optimization_barrier((parts, after))
    following = iter(parts)
    wholes = [jax.lax.all_gather(next(following), x.axis_name, axis=x.axis, tiled=True) if is_shard(x) else x for x in leaves]
    return jax.tree.unflatten(structure, wholes)


def scatter_mean(grads: Any, like: Any) -> Any:
    """Gradients of whole arrays -> those of this device's shards, averaged over devices, where ``like`` (parameters) holds a shard.

    Other leaves stay as they are: :func:`replicated_mean` averages them.
    """

    def one(shard: Any, whole: Array) -> Any:
        if not is_shard(shard):
            return whole
        total = jax.lax.psum_scatter(whole, shard.axis_name, scatter_dimension=shard.axis, tiled=True)
        return shard.replace(part=total / jax.lax.axis_size(shard.axis_name))

    return jax.tree.map(one, like, grads, is_leaf=is_shard)


def replicated_mean(grads: Any, axis_name: str) -> Any:
    """The mean over devices of all leaves that are no shards."""
    leaves, structure = jax.tree.flatten(grads, is_leaf=is_shard)
    if not any(map(is_shard, leaves)):
        return jax.lax.pmean(grads, axis_name)
    means = iter(jax.lax.pmean([x for x in leaves if not is_shard(x)], axis_name))
    return jax.tree.unflatten(structure, [x if is_shard(x) else next(means) for x in leaves])


def norm(tree: Any) -> Float[Array, ""]:
    """The L2 norm of all numbers of the tree, on every device the same; those outside of shards are counted once."""
    leaves = jax.tree.leaves(tree, is_leaf=is_shard)
    names = {x.axis_name for x in leaves if is_shard(x)}
    if not names:
        return optax.tree.norm(tree)
    (name,) = names
    squares = lambda arrays: sum((jnp.sum(jnp.square(x)) for x in arrays), jnp.zeros(()))
    split = jax.lax.psum(squares(x.part for x in leaves if is_shard(x)), name)
    return jnp.sqrt(split + squares(x for x in leaves if not is_shard(x)))
