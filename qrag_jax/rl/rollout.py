"""The retrieval episode as one ``lax.scan`` on the device: embed the state, score every chunk, pick, update the state."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, PRNGKeyArray

from qrag_jax.config import QHeadConfig
from qrag_jax.rl.env import StateLayout, picked_mask, state_row
from qrag_jax.rl.gold import next_gold
from qrag_jax.rl.positions import chunk_positions
from qrag_jax.rl.qhead import q_halves
from qrag_jax.types import Episode, TaskBatch

EmbedStates = Callable[[Int[Array, "B Ls"]], Float[Array, "B D"]]
Policy = Callable[[PRNGKeyArray, Float[Array, " N"], Bool[Array, " N"]], Int[Array, ""]]


def state_rows(batch: TaskBatch, picked: Int[Array, "B T"], layout: StateLayout) -> Int[Array, "B Ls"]:
    """Token rows of the states after the picks ``picked``, in order of picking. Empty places, at the end, hold N."""

    def row(question: Array, index: Array, picks: Array) -> Array:
        if layout.order == "document":
            picks = jnp.sort(picks)
        return state_row(question, batch.chunk_pool_ids[index.at[picks].get(mode="clip")], picks < index.shape[0], layout)

    return jax.vmap(row)(batch.question_ids, batch.chunk_index, picked)


def scores(
    state: Float[Array, "B D"],
    chunks: Float[Array, "B N D"],
    batch: TaskBatch,
    picked: Int[Array, "B T"],
    offset: Int[Array, " B"],
    qhead: QHeadConfig,
) -> tuple[Float[Array, "B N H"], Bool[Array, "B N"], Float[Array, "B N"]]:
    """For states given by their embeddings and picks: Q of every chunk by halves, the available chunks, and the positions."""

    def one(s: Array, e: Array, mask: Array, picks: Array, shift: Array) -> tuple[Array, Array, Array]:
        taken = picked_mask(picks, mask.shape[0])
        position = chunk_positions(taken, mask.sum(), shift, qhead)
        return q_halves(s, e, position, qhead), mask & ~taken, position

    return jax.vmap(one)(state, chunks, batch.chunk_mask, picked, offset)


def rollout(
    embed_states: EmbedStates,
    pool: Float[Array, "U D"],
    batch: TaskBatch,
    keys: Key[Array, " B"],
    policy: Policy,
    *,
    budget: int,
    layout: StateLayout,
    qhead: QHeadConfig,
    ranks: Int[Array, "B N"] | None = None,
) -> Episode:
    """B episodes of ``budget`` picks, each seeded by its key. ``pool``: un-rotated embeddings of ``batch.chunk_pool_ids``.

    A document with fewer chunks is picked empty; the rest of its picks are empty: ``picked`` holds N there, and Q is 0. With ``ranks`` (of
    :func:`qrag_jax.rl.gold.gold_ranks`), the policy chooses among the chunks of the lowest rank first; N in all of a row leaves it free.
    """
    size, count = batch.chunk_index.shape
    chunks = pool[batch.chunk_index]
    offset = offsets(keys, budget, qhead)

    def step(picked: Array, t: Array) -> tuple[Array, tuple[Array, ...]]:
        state_ids = state_rows(batch, picked, layout)
        state = embed_states(state_ids)
        q, available, position = scores(state, chunks, batch, picked, offset, qhead)
        q = q.sum(-1)
        choices = available if ranks is None else jax.vmap(next_gold)(available, ranks)
        best = jax.vmap(policy)(jax.vmap(jax.random.fold_in, (0, None))(keys, t), q, choices)
        left = available.any(-1)
        at = lambda x: jnp.take_along_axis(x, best[:, None], axis=1)[:, 0]
        return picked.at[:, t].set(jnp.where(left, best, count)), (state_ids, at(position), jnp.where(left, at(q), 0.0), state)

    # Computed from the batch, so that with several devices the carry is marked as varying over them, as the picks are.
    empty = jnp.broadcast_to(0 * batch.episode_id[:, None] + count, (size, budget))
    picked, (state_ids, position, q, state) = jax.lax.scan(step, empty, jnp.arange(budget))
    return Episode(
        picked=picked,
        positions=position.T,
        state_ids=state_ids.transpose(1, 0, 2),
        q=q.T,
        offset=offset,
        states=state.transpose(1, 0, 2),
        actions=jnp.take_along_axis(chunks, jnp.minimum(picked, count - 1)[..., None], axis=1),
    )


def offsets(keys: Key[Array, " B"], budget: int, qhead: QHeadConfig) -> Int[Array, " B"]:
    """For positions "random": the offset that each episode adds to every index."""
    return jax.vmap(lambda key: jax.random.randint(jax.random.fold_in(key, budget), (), 0, qhead.max_offset))(keys)


def picks_before(picked: Int[Array, "B T"], t: int, count: int) -> Int[Array, "B T"]:
    """The picks of the state at time ``t``: later picks are made empty."""
    return jnp.where(jnp.arange(picked.shape[1]) < t, picked, count)
