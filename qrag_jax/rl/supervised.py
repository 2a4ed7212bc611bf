"""Supervised fine-tuning along the supporting chunks, without rewards.

The supporting chunks are picked one by one, in an order that ``rl.gold_order`` chooses. In each state on the way, the chunks that are not
picked yet compete; those that support and are still missing are positive. The loss is binary (Beam Retriever's trajectory loss, Zhang et
al. 2024; an ablation of the paper, Table 3) or a softmax, which only ranks chunks and so works in haystacks of any size. After all
supporting chunks are picked, or after the budget, nothing is learned: Q says which chunk is next, not when to stop.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from qrag_jax.config import Objective, RunConfig
from qrag_jax.models.embedder import Embedder
from qrag_jax.rl.env import StateLayout
from qrag_jax.rl.gold import gold_only, gold_ranks
from qrag_jax.rl.learner import Learner, Metrics, Params, Rows, TrainState, make_optimizer, pool_share
from qrag_jax.rl.policy import greedy
from qrag_jax.rl.rewards import Reward
from qrag_jax.rl.rollout import offsets, picks_before, rollout, scores, state_rows
from qrag_jax.types import PAD, Episode, TaskBatch


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


class GoldLearner(Learner):
    """A learner that can also learn from the supporting chunks directly."""

    def supervised_gradient(self, state: TrainState, batch: TaskBatch, axis_name: str | None = None) -> tuple[Params, Metrics]:
        """Gradient and metrics of the mean loss (one of ``LOSSES``) over episodes; the gradient averaged over devices."""
        params, dropout = self.varying(self.complete(state, state.params), axis_name), self.dropout(state, batch)
        states, of_pool, metrics = self.supervised_cotangents(params, state, batch, dropout, axis_name)
        pool = pool_share(batch.chunk_pool_ids, of_pool, axis_name)
        return self.encoder_gradient(params, states, pool, dropout, axis_name), metrics

    def supervised_cotangents(
        self, params: Params, state: TrainState, batch: TaskBatch, dropout: PRNGKeyArray | None, axis_name: str | None
    ) -> tuple[Rows, Float[Array, "U D"], Metrics]:
        """The gradient of the mean loss with respect to embeddings, of the states' token rows and of the pool; and metrics.

        Metrics: ``fact_em`` and ``return`` are the share of episodes for which :func:`ranked_first` is True; ``q`` is the mean Q of the
        next picked chunk; there are no targets.
        """
        rl, qhead = self.config.rl, self.config.qhead
        count = batch.chunk_mask.shape[1]
        pool = self.embed_pool(params, batch, axis_name, dropout)
        gold, embedded = self.gold(params, pool, state, batch)
        taken = gold < count
        offset = offsets(self.episode_keys(state, batch), rl.budget, qhead)
        picked = [picks_before(gold, t, count) for t in range(rl.budget)]
        # A state in which no supporting chunk is missing has no loss: its row is left empty, and costs nothing.
        rows = [jnp.where(taken[:, t, None], state_rows(batch, picks, self.layout), PAD) for t, picks in enumerate(picked)]
        state_ids = jnp.concatenate(rows)
        if embedded is None or dropout is not None:
            embedded = self.whole(self.state_embedder, params, pool)(state_ids, dropout)

        def loss(embedded: Array, pool: Array) -> tuple[Float[Array, ""], Metrics]:
            at = embedded.reshape(rl.budget, *gold.shape[:1], -1)
            steps = [scores(at[t], pool[batch.chunk_index], batch, picks, offset, qhead)[:2] for t, picks in enumerate(picked)]
            q, available = jnp.stack([q.sum(-1) for q, _ in steps], axis=1), jnp.stack([free for _, free in steps], axis=1)
            value = jax.vmap(partial(LOSSES[rl.supervised_loss], alpha=rl.alpha))(q, available, batch.support).mean()
            first = jax.vmap(ranked_first)(q, available, batch.support).mean()
            of_gold = jnp.take_along_axis(q, jnp.minimum(gold, count - 1)[..., None], axis=2)[..., 0]
            mean_q = (of_gold * taken).sum() / jnp.maximum(taken.sum(), 1)
            return value, {"loss": value, "return": first, "fact_em": first, "q": mean_q}

        (of_states, of_pool), metrics = jax.grad(loss, argnums=(0, 1), has_aux=True)(embedded, pool)
        return (state_ids, of_states), of_pool, metrics

    def gold(
        self, params: Params, pool: Float[Array, "U D"], state: TrainState, batch: TaskBatch
    ) -> tuple[Int[Array, "B T"], Float[Array, "TB D"] | None]:
        """The supporting chunks as they are picked, in the order of ``rl.gold_order``; N after the last one. And the embeddings of the
        states in which they are picked, one time after another; None if they were not needed.

        The document's order is known beforehand. Otherwise, in each state, the chunk with the highest Q among those that may be next.
        """
        rl = self.config.rl
        if rl.gold_order == "document":
            return jax.vmap(partial(gold_picks, budget=rl.budget))(batch.support), None
        episode = rollout(
            self.whole(self.state_embedder, params, pool),
            pool,
            batch,
            self.episode_keys(state, batch),
            lambda _, q, choices: greedy(q, choices),
            budget=rl.budget,
            layout=self.layout,
            qhead=self.config.qhead,
            ranks=gold_ranks(batch, rl.gold_order),
        )
        states = episode.states.swapaxes(0, 1)
        return jax.vmap(gold_only)(episode.picked, batch.support), states.reshape(-1, states.shape[-1])


class SupervisedLearner(GoldLearner):
    """A learner that learns from the supporting chunks alone. It inherits rollouts (``collect``) but does not use them in training."""

    def update(self, state: TrainState, batch: TaskBatch, axis_name: str | None = None) -> tuple[TrainState, Metrics]:
        """One update on ``batch``, with the same signature and devices as the parent's."""
        grads, metrics = self.supervised_gradient(state, batch, axis_name)
        return self.apply_gradients(state, grads, metrics, axis_name)


class JointLearner(GoldLearner):
    """A learner by temporal differences whose gradient also has ``rl.supervised_weight`` times that of the supervised loss."""

    def gradient(
        self, state: TrainState, batch: TaskBatch, episode: Episode, targets: Float[Array, "B T"], axis_name: str | None = None
    ) -> tuple[Params, Metrics]:
        """As the parent's; the metric ``supervised_loss`` is the unweighted supervised loss, ``loss`` the parent's.

        The texts of both losses go through the encoders together, so that those in both, such as the questions, are read once.
        """
        weight = self.config.rl.supervised_weight
        params, dropout = self.varying(self.complete(state, state.params), axis_name), self.dropout(state, batch)
        if dropout is not None:  # which depends on the rows that go through an encoder together
            grads, metrics = super().gradient(state, batch, episode, targets, axis_name)
            other, found = self.supervised_gradient(state, batch, axis_name)
            both = jax.tree.map(lambda one, two: one + weight * two, grads, other)
            return both, {**metrics, "supervised_loss": found["loss"]}
        (state_ids, of_states), (rows, of_actions), metrics = self.td_cotangents(params, batch, episode, targets, None)
        (gold_ids, of_gold), of_pool, found = self.supervised_cotangents(params, state, batch, None, axis_name)
        states = jnp.concatenate([state_ids, gold_ids]), jnp.concatenate([of_states, weight * of_gold])
        pool = pool_share(batch.chunk_pool_ids, (weight * of_pool).at[rows].add(of_actions), axis_name)
        return self.encoder_gradient(params, states, pool, None, axis_name), {**metrics, "supervised_loss": found["loss"]}


def make_learner(
    embedder: Embedder,
    config: RunConfig,
    layout: StateLayout,
    optimizer: optax.GradientTransformation | None = None,
    objective: Objective | None = None,
    reward: Reward | None = None,
) -> Learner:
    """The learner of ``objective`` (None: ``config.rl.objective``); ``optimizer`` None: that of ``config.optim``; ``reward`` None: the one
    for the supporting chunks."""
    td = JointLearner if config.rl.supervised_weight else Learner
    kind = SupervisedLearner if (objective or config.rl.objective) == "supervised" else td
    return kind(embedder, config, layout, optimizer or make_optimizer(config.optim, config.train.steps), reward)
