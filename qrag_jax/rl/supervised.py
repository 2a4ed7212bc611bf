"""Supervised fine-tuning along the supporting chunks, without rewards.

The supporting chunks are picked one by one in document order (the data has no other order), independently of the policy. In each state on
the way, the chunks that are not picked yet compete; those that support and are still missing are positive. The loss is binary (Beam
Retriever's trajectory loss, Zhang et al. 2024; an ablation of the paper, Table 3) or a softmax, which says only which chunks are before
which others and so works in haystacks of any size. After all supporting chunks are picked, or after the budget, nothing is learned: Q says
which chunk is next, not when to stop.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from qrag_jax.config import RunConfig
from qrag_jax.models.embedder import Embedder
from qrag_jax.rl.env import StateLayout
from qrag_jax.rl.learner import Learner, Metrics, Params, TrainState, device_share, make_optimizer
from qrag_jax.rl.rollout import offsets, picks_before, scores, state_rows
from qrag_jax.types import TaskBatch


def gold_picks(support: Bool[Array, " N"], budget: int) -> Int[Array, " T"]:
    """The first ``budget`` <= N supporting chunks in document order; empty places hold N."""
    count = support.shape[0]
    return jnp.sort(jnp.where(support, jnp.arange(count), count))[:budget]


def labels(available: Bool[Array, "T N"], support: Bool[Array, " N"]) -> tuple[Bool[Array, "T N"], Bool[Array, " T"]]:
    """The positive chunks in the state at each time, and the times at which a supporting chunk is left to pick."""
    positive = available & support
    return positive, positive.any(-1)


def binary_loss(
    q: Float[Array, "T N"], available: Bool[Array, "T N"], support: Bool[Array, " N"], alpha: Float[Array, ""] | float
) -> Float[Array, ""]:
    """sum_t mean over available chunks of the binary cross-entropy of sigmoid(Q / alpha), over times with a chunk left to pick.

    ``q`` and ``available`` belong to the states along :func:`gold_picks`. 0 without supporting chunks.
    """
    positive, counts = labels(available, support)
    entropy = optax.sigmoid_binary_cross_entropy(q / alpha, positive)
    means = (entropy * available).sum(-1) / jnp.maximum(available.sum(-1), 1)
    return (means * counts).sum()


def softmax_loss(
    q: Float[Array, "T N"], available: Bool[Array, "T N"], support: Bool[Array, " N"], alpha: Float[Array, ""] | float
) -> Float[Array, ""]:
    """sum_t -log(share of the missing supporting chunks in the sum of exp(Q / alpha) over available chunks), over times with one missing.

    ``q`` and ``available`` belong to the states along :func:`gold_picks`. 0 without supporting chunks.
    """
    positive, counts = labels(available, support)
    # At a time that does not count, both sums are over all chunks, so that nothing is infinite.
    total = jax.nn.logsumexp(q / alpha, axis=-1, where=available | ~counts[:, None])
    return (total - jax.nn.logsumexp(q / alpha, axis=-1, where=positive | ~counts[:, None])).sum()


LOSSES = {"binary": binary_loss, "softmax": softmax_loss}
"""The losses of ``rl.supervised_loss``."""


def ranked_first(q: Float[Array, "T N"], available: Bool[Array, "T N"], support: Bool[Array, " N"]) -> Bool[Array, ""]:
    """Whether, in every state along the way, a chunk that is still missing has the highest Q."""
    positive, counts = labels(available, support)
    best = jnp.where(available, q, -jnp.inf).argmax(-1)
    return (jnp.take_along_axis(positive, best[:, None], axis=1)[:, 0] | ~counts).all()


class SupervisedLearner(Learner):
    """A learner with a supervised update. It inherits rollouts (``collect``) but does not use them in training.

    Metrics: ``fact_em`` and ``return`` are the share of episodes for which :func:`ranked_first` is True; ``q`` is the mean Q of the next
    picked chunk; there are no targets.
    """

    def update(self, state: TrainState, batch: TaskBatch, axis_name: str | None = None) -> tuple[TrainState, Metrics]:
        """One update on ``batch``, with the same signature and devices as the parent's."""
        grads, metrics = self.supervised_gradient(state, batch, axis_name)
        return self.apply_gradients(state, grads, metrics, axis_name)

    def supervised_gradient(self, state: TrainState, batch: TaskBatch, axis_name: str | None = None) -> tuple[Params, Metrics]:
        """Gradient and metrics of the mean loss (one of ``LOSSES``) over episodes; the gradient averaged over devices."""
        rl, qhead = self.config.rl, self.config.qhead
        count = batch.chunk_mask.shape[1]
        params, dropout = self.varying(self.complete(state, state.params), axis_name), self.dropout(state, batch)
        gold = jax.vmap(lambda support: gold_picks(support, rl.budget))(batch.support)
        offset = offsets(self.episode_keys(state, batch), rl.budget, qhead)
        picked = [picks_before(gold, t, count) for t in range(rl.budget)]
        state_ids = jnp.concatenate([state_rows(batch, picks, self.layout) for picks in picked])

        def loss(embedded: Array, pool: Array) -> tuple[Float[Array, ""], Metrics]:
            at = embedded.reshape(rl.budget, *gold.shape[:1], -1)
            steps = [scores(at[t], pool[batch.chunk_index], batch, picks, offset, qhead)[:2] for t, picks in enumerate(picked)]
            q, available = jnp.stack([q.sum(-1) for q, _ in steps], axis=1), jnp.stack([free for _, free in steps], axis=1)
            value = jax.vmap(partial(LOSSES[rl.supervised_loss], alpha=rl.alpha))(q, available, batch.support).mean()
            first = jax.vmap(ranked_first)(q, available, batch.support).mean()
            taken = gold < count
            of_gold = jnp.take_along_axis(q, jnp.minimum(gold, count - 1)[..., None], axis=2)[..., 0]
            mean_q = (of_gold * taken).sum() / jnp.maximum(taken.sum(), 1)
            return value, {"loss": value, "return": first, "fact_em": first, "q": mean_q}

        pool = self.embed_pool(params, batch, axis_name, dropout)
        embedded = self.whole(self.state_embedder, params, pool)(state_ids, dropout)
        (of_states, of_pool), metrics = jax.grad(loss, argnums=(0, 1), has_aux=True)(embedded, pool)
        pool_ids = batch.chunk_pool_ids
        if axis_name is not None:
            # Each device embeds its share of the pool for the episodes of all devices.
            pool_ids, of_pool = device_share(pool_ids, axis_name), jax.lax.psum_scatter(of_pool, axis_name, tiled=True)
        return self.encoder_gradient(params, (state_ids, of_states), (pool_ids, of_pool), dropout, axis_name), metrics


def make_learner(
    embedder: Embedder, config: RunConfig, layout: StateLayout, optimizer: optax.GradientTransformation | None = None
) -> Learner:
    """The learner of ``config.rl.objective``; ``optimizer`` None: that of ``config.optim``."""
    kind = SupervisedLearner if config.rl.objective == "supervised" else Learner
    return kind(embedder, config, layout, optimizer or make_optimizer(config.optim, config.train.steps))
