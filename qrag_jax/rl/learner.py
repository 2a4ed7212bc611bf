"""Soft PQN: rollout -> rewards -> lambda-targets -> update, as pure functions of one train state and one batch.

The same ``update`` runs on one device and, with ``axis_name``, inside pmap or shard_map: episodes are split over the devices, the chunk
pool is embedded in equal parts and gathered, gradients and metrics are averaged.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, no_type_check

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jaxtyping import Array, Float, Int, Key, PRNGKeyArray

from qrag_jax.config import OptimConfig, RunConfig
from qrag_jax.models.embedder import Embedder, RowEmbedder
from qrag_jax.models.lora import Adapted, make_adapters, merge, pull_back, shared_base
from qrag_jax.rl import policy, shards
from qrag_jax.rl.env import StateLayout
from qrag_jax.rl.gold import gold_ranks
from qrag_jax.rl.qhead import q_halves
from qrag_jax.rl.returns import lambda_returns, reference_lambda_returns, soft_gap, soft_value
from qrag_jax.rl.rewards import Reward, support_reward
from qrag_jax.rl.rollout import picks_before, rollout, scores, state_rows
from qrag_jax.types import Episode, TaskBatch

Params = Any
Metrics = dict[str, Array]
Rows = tuple[Array, Array]
"""Token rows [R, L], or the places of rows in the pool [R]; and the gradient of their embeddings [R, D]."""
DROPOUT_STREAM, LORA_STREAM = 2**31 - 1, 2**31 - 2  # outside the random streams of all episodes


@no_type_check  # as a pytree, it may also hold axes, shapes and None
@struct.dataclass
class TrainState:
    """The complete state of training between two updates.

    With low-rank adapters (``model.lora_rank``), ``params`` and ``target_params`` are adapters to ``base``, which never changes; otherwise
    ``base`` is None.
    """

    step: Int[Array, ""]
    params: Params
    target_params: Params
    opt_state: optax.OptState
    key: PRNGKeyArray
    base: Params = None


def learning_rate(optim: OptimConfig, steps: int) -> optax.Schedule:
    """Linear warm-up from 0, then decay to ``end_ratio`` times the highest rate at the last of ``steps`` updates.

    With s from 0 to 1 over the decay, the remaining share is 1 - s (linear) or cos(pi s / 2) (quarter_cosine).
    """
    warmup = min(optim.warmup, steps)
    rise = optax.linear_schedule(0.0, optim.learning_rate, max(warmup, 1))
    length = max(steps - warmup, 1)
    fall = optax.linear_schedule(optim.learning_rate, optim.learning_rate * optim.end_ratio, length)
    if optim.schedule == "quarter_cosine":
        left = lambda step: jnp.cos(jnp.pi / 2 * jnp.clip(step / length, 0.0, 1.0))
        fall = lambda step: optim.learning_rate * (optim.end_ratio + (1 - optim.end_ratio) * left(step))
    # The first update has step 0; it uses the first step of the warm-up, not a learning rate of 0.
    return optax.join_schedules([lambda step: rise(step + 1), fall], [warmup])


def clip_by_global_norm(highest: float) -> optax.GradientTransformation:
    """``optax.clip_by_global_norm``, as one factor for all entries: dividing each entry would write the clipped gradient to memory."""

    def update(grads: Params, state: optax.OptState, params: Params | None = None) -> tuple[Params, optax.OptState]:
        norm = shards.norm(grads)
        return optax.tree.scale(highest / jnp.maximum(norm, highest), grads), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def make_optimizer(optim: OptimConfig, steps: int) -> optax.GradientTransformation:
    """AdamW with clipped gradients and the schedule of :func:`learning_rate`."""
    return optax.chain(
        clip_by_global_norm(optim.max_grad_norm),
        optax.adamw(learning_rate(optim, steps), optim.b1, optim.b2, optim.eps, weight_decay=optim.weight_decay),
    )


@dataclass(frozen=True)
class Learner:
    """The algorithm for one embedder and one configuration. Holds no arrays; every method is pure."""

    embedder: Embedder
    config: RunConfig
    layout: StateLayout
    optimizer: optax.GradientTransformation
    reward: Reward | None = None
    """None: the reward for the supporting chunks."""

    def init(self, key: PRNGKeyArray, params: Params) -> TrainState:
        """The state before the first update of an embedder with ``params``, which are host arrays if they get adapters."""
        base, rank = None, self.config.model.lora_rank
        if rank:
            base, params = shared_base(params), make_adapters(jax.random.fold_in(key, LORA_STREAM), params, rank)
        # The target starts as a copy, not an alias: donated buffers must be distinct.
        return TrainState(jnp.zeros((), jnp.int32), params, jax.tree.map(jnp.copy, params), self.optimizer.init(params), key, base)

    def complete(self, state: TrainState, params: Params) -> Params:
        """``params``, which are ``state.params`` or ``state.target_params``, with the weights that they adapt."""
        return params if state.base is None else Adapted(params, state.base, self.config.model.lora_scale)

    def merged(self, params: Params, base: Params) -> Params:
        """The parameters of the embedder, from whole ``state.params`` and ``state.base``."""
        if base is None:
            return params
        found = Adapted(params, base, self.config.model.lora_scale)
        return {"params": {name: merge(*found.of(name), found.scale) for name in params["params"]}}

    def update(self, state: TrainState, batch: TaskBatch, axis_name: str | None = None) -> tuple[TrainState, Metrics]:
        """One update with rewards that need no reader."""
        episode = self.collect(state, batch, axis_name)
        reward = self.reward or partial(support_reward, penalize_extra_steps=self.config.rl.penalize_extra_steps)
        return self.learn(state, batch, episode, jax.vmap(reward)(episode.picked, batch.support), axis_name)

    def collect(self, state: TrainState, batch: TaskBatch, axis_name: str | None = None) -> Episode:
        """Episodes under the current policy: uniform for the first ``random_updates``, Boltzmann afterwards."""
        rl = self.config.rl
        alpha, uniform = self.alpha(state.step), state.step < rl.random_updates
        params = self.complete(state, state.params)
        pool = self.embed_pool(params, batch, axis_name)
        return rollout(
            self.whole(self.state_embedder, params, pool),
            pool,
            batch,
            self.episode_keys(state, batch),
            partial(policy.boltzmann, alpha=alpha, top_k=rl.policy_top_k, uniform=uniform),
            budget=rl.budget,
            layout=self.layout,
            qhead=self.config.qhead,
            ranks=self.demonstrations(state, batch) if rl.demonstrations else None,
        )

    def demonstrations(self, state: TrainState, batch: TaskBatch) -> Int[Array, "B N"]:
        """The ranks of :func:`gold_ranks` for a share ``rl.demonstrations`` of the episodes, falling linearly to 0 over training; N for
        the others. Each episode draws by its own key, on any number of devices."""
        rl, count = self.config.rl, batch.support.shape[1]
        share = rl.demonstrations * jnp.maximum(1.0 - state.step / self.config.train.steps, 0.0)
        draw = lambda key: jax.random.uniform(jax.random.fold_in(key, rl.budget + 1))
        follows = jax.vmap(draw)(self.episode_keys(state, batch)) < share
        return jnp.where(follows[:, None], gold_ranks(batch, rl.gold_order), count)

    def learn(
        self, state: TrainState, batch: TaskBatch, episode: Episode, rewards: Float[Array, "B T"], axis_name: str | None = None
    ) -> tuple[TrainState, Metrics]:
        """Targets, gradient, optimiser step and target average, for given rewards."""
        targets, gaps = self.targets_and_gaps(state, batch, episode, rewards, axis_name)
        grads, metrics = self.gradient(state, batch, episode, targets, axis_name)
        hits = jax.vmap(lambda support, picked: support.at[picked].get(mode="fill", fill_value=False).sum())(batch.support, episode.picked)
        found = hits == batch.support.sum(-1)
        means = {
            **metrics,
            "return": rewards.sum(-1).mean(),
            "fact_em": found.mean(),
            "q": episode.q.mean(),
            "target": targets.mean(),
            **({"soft_gap": gaps.mean()} if gaps.size else {}),
        }
        return self.apply_gradients(state, grads, means, axis_name)

    def apply_gradients(self, state: TrainState, grads: Params, means: Metrics, axis_name: str | None) -> tuple[TrainState, Metrics]:
        """Optimiser step and target average. ``grads`` are already averaged over devices; ``means`` (of this device's episodes) are not."""
        if axis_name is not None:
            means = jax.lax.pmean(means, axis_name)
        updates, opt_state = self.optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        target_params = optax.incremental_update(params, state.target_params, self.config.rl.tau)
        encoders = grads["params"] if len(grads["params"]) > 1 else {}
        norms = {"grad_norm": shards.norm(grads), **{f"grad_norm_{name}": shards.norm(part) for name, part in encoders.items()}}
        metrics = {**means, **norms, "alpha": self.alpha(state.step)}
        return replace(state, step=state.step + 1, params=params, target_params=target_params, opt_state=opt_state), metrics

    def alpha(self, step: Int[Array, ""]) -> Float[Array, ""]:
        """Temperature at an update: linear from ``alpha`` to ``alpha_end``, or tied to the learning rate (parity)."""
        rl, optim, steps = self.config.rl, self.config.optim, self.config.train.steps
        if rl.reference_alpha:
            return jnp.maximum(rl.alpha * learning_rate(optim, steps)(step) / optim.learning_rate, 1e-8)
        return rl.alpha + (rl.alpha_end - rl.alpha) * jnp.minimum(step / steps, 1.0)

    def targets(
        self, state: TrainState, batch: TaskBatch, episode: Episode, rewards: Float[Array, "B T"], axis_name: str | None = None
    ) -> Float[Array, "B T"]:
        """lambda-returns G_t under the target parameters."""
        return self.targets_and_gaps(state, batch, episode, rewards, axis_name)[0]

    def targets_and_gaps(
        self, state: TrainState, batch: TaskBatch, episode: Episode, rewards: Float[Array, "B T"], axis_name: str | None = None
    ) -> tuple[Float[Array, "B T"], Float[Array, "B T-1"]]:
        """lambda-returns G_t under the target parameters, and how far V of each state after the first is above its best Q."""
        rl = self.config.rl
        size, budget = episode.picked.shape
        count = batch.chunk_mask.shape[1]
        params = self.complete(state, state.target_params if rl.target_network else state.params)
        chunks = self.embed_pool(params, batch, axis_name)[batch.chunk_index]
        alpha = self.alpha(state.step)

        def value(embedded: Float[Array, "B D"], t: int) -> tuple[Float[Array, " B"], Float[Array, " B"]]:
            """V of the states in which ``t`` chunks are picked, and its :func:`soft_gap`."""
            q, available, _ = scores(embedded, chunks, batch, picks_before(episode.picked, t, count), episode.offset, self.config.qhead)
            found = jax.vmap(partial(soft_value, alpha=alpha, config=rl))(q, available)
            return found, jax.vmap(soft_gap)(q, available, found)

        embed = self.whole(self.state_embedder, params, chunks)
        later = episode.state_ids[:, 1:]
        # With a budget of 1 there are none.
        embedded = embed(later.reshape(-1, later.shape[-1])).reshape(size, budget - 1, -1) if budget > 1 else later
        later_values = [value(embedded[:, t - 1], t) for t in range(1, budget)]
        v_tp1 = [found for found, _ in later_values]
        gaps = jnp.stack([gap for _, gap in later_values], axis=1) if later_values else jnp.zeros((size, 0))
        discount_t = jnp.full((size, budget), rl.gamma).at[:, -1].set(0.0)
        if not rl.reference_lambda_return:
            v_tp1 += [jnp.zeros(size)]
            return jax.vmap(partial(lambda_returns, lam=rl.lam))(rewards, discount_t, jnp.stack(v_tp1, axis=1)), gaps
        # The reference code looks one step beyond the episode's end, at the state with all picks.
        v_end, _ = value(embed(state_rows(batch, episode.picked, self.layout)), budget)
        v_tp1 += [v_end, v_end]
        pad = lambda x: jnp.pad(x, ((0, 0), (0, 1)))
        return jax.vmap(partial(reference_lambda_returns, lam=rl.lam))(pad(rewards), pad(discount_t), jnp.stack(v_tp1, axis=1)), gaps

    def gradient(
        self, state: TrainState, batch: TaskBatch, episode: Episode, targets: Float[Array, "B T"], axis_name: str | None = None
    ) -> tuple[Params, Metrics]:
        """Gradient and loss of the TD loss, averaged over transitions and devices. An empty pick, of a document with fewer chunks than the
        budget, adds 0.

        The loss is first differentiated with respect to the embeddings, which the rollout has computed; then the embeddings with respect to
        the parameters, tile by tile.
        """
        params, dropout = self.varying(self.complete(state, state.params), axis_name), self.dropout(state, batch)
        states, (rows, of_actions), metrics = self.td_cotangents(params, batch, episode, targets, dropout)
        return self.encoder_gradient(params, states, (batch.chunk_pool_ids[rows], of_actions), dropout, axis_name), metrics

    def td_cotangents(
        self, params: Params, batch: TaskBatch, episode: Episode, targets: Float[Array, "B T"], dropout: PRNGKeyArray | None
    ) -> tuple[Rows, Rows, Metrics]:
        """The TD loss, and its gradient with respect to embeddings: of the states' token rows, and of rows of the pool.

        Mean over transitions and halves of (H q_h - G)^2; with two halves 0.5 MSE(2 q1, G) + 0.5 MSE(2 q2, G).
        """
        qhead = self.config.qhead
        flat = lambda x: x.reshape(-1, x.shape[-1])
        count = batch.chunk_mask.shape[1]
        real = (episode.picked < count).reshape(-1, 1)
        rows = jnp.take_along_axis(batch.chunk_index, jnp.minimum(episode.picked, count - 1), axis=1).reshape(-1)
        state_ids = flat(episode.state_ids)
        s, a = flat(episode.states), flat(episode.actions)
        if dropout is not None:
            s = self.whole(self.state_embedder, params, state_ids)(state_ids, dropout)
            a = self.whole(self.action_embedder, params, s)(batch.chunk_pool_ids[rows], dropout)

        def loss(s: Array, a: Array) -> Float[Array, ""]:
            q = q_halves(s, a, episode.positions.reshape(-1), qhead)
            return jnp.mean(jnp.where(real, qhead.halves * q - targets.reshape(-1, 1), 0.0) ** 2)

        value, (of_s, of_a) = jax.value_and_grad(loss, argnums=(0, 1))(s, a)
        return (state_ids, of_s), (rows, of_a), {"loss": value}

    def encoder_gradient(self, params: Params, states: Rows, actions: Rows, dropout: PRNGKeyArray | None, axis_name: str | None) -> Params:
        """The gradient of the parameters, averaged over devices, from token rows and the gradient of their embeddings."""
        of_states = self.one_gradient(self.state_embedder, params, states, dropout)
        of_actions = self.one_gradient(self.action_embedder, params, actions, dropout, of_states)
        both = jax.tree.map(jnp.add, of_states, of_actions) if self.embedder.tied else of_states | of_actions
        return shards.replicated_mean({"params": both}, axis_name) if axis_name is not None else {"params": both}

    def one_gradient(
        self, encoder: RowEmbedder, params: Params, rows: Rows, dropout: PRNGKeyArray | None, after: Any = ()
    ) -> dict[str, Params]:
        """{name: gradient} of one encoder; averaged over devices only where the parameters are shards."""
        name = encoder.name
        if not isinstance(params, Adapted):
            own = params["params"][name]
            whole = shards.gather(own, self.embedder.dtype, (rows, after))
            return shards.scatter_mean(encoder.gradient({"params": {name: whole}}, *rows, dropout), {name: own})
        own, base = params.of(name)
        adapters, base = shards.gather(own, jnp.float32, (rows, after)), shards.gather(base, self.embedder.dtype, (rows, after))
        found = encoder.gradient({"params": {name: merge(adapters, base, params.scale)}}, *rows, dropout)
        return {name: shards.scatter_mean(pull_back(found[name], adapters, params.scale), own)}

    def whole(self, encoder: RowEmbedder, params: Params, after: Any) -> Callable[..., Float[Array, "R D"]]:
        """``encoder`` with its parameters, gathered if they are shards, merged if they are adapters. ``after``: arrays that must be
        computed first."""
        if not isinstance(params, Adapted):
            own = shards.gather(params["params"][encoder.name], self.embedder.dtype, after)
        else:
            adapters, base = params.of(encoder.name)
            own = merge(shards.gather(adapters, jnp.float32, after), shards.gather(base, self.embedder.dtype, after), params.scale)
        return partial(encoder, {"params": {encoder.name: own}})

    def varying(self, params: Params, axis_name: str | None) -> Params:
        """The parameters, marked as varying over devices: the gradient of replicated ones would be summed over devices."""
        if axis_name is None:
            return params
        mark = lambda x: x if shards.is_shard(x) else jax.lax.pcast(x, axis_name, to="varying")
        return jax.tree.map(mark, params, is_leaf=shards.is_shard)

    def episode_keys(self, state: TrainState, batch: TaskBatch) -> Key[Array, " B"]:
        """A random key for each episode of this update, independent of the device that holds it."""
        return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.fold_in(state.key, state.step), batch.episode_id)

    def dropout(self, state: TrainState, batch: TaskBatch) -> PRNGKeyArray | None:
        """The dropout key of the loss in this update, on this device; None without dropout."""
        if not self.config.model.dropout:
            return None
        key = jax.random.fold_in(jax.random.fold_in(state.key, state.step), DROPOUT_STREAM)
        return jax.random.fold_in(key, batch.episode_id[0])

    @property
    def state_embedder(self) -> RowEmbedder:
        return RowEmbedder(self.embedder, "embed_states", self.config.model.tile_tokens)

    @property
    def action_embedder(self) -> RowEmbedder:
        return RowEmbedder(self.embedder, "embed_actions", self.config.model.tile_tokens)

    def embed_pool(
        self, params: Params, batch: TaskBatch, axis_name: str | None, dropout: PRNGKeyArray | None = None
    ) -> Float[Array, "U D"]:
        """Embeds every text of the pool once; with several devices, each embeds its share."""
        ids = batch.chunk_pool_ids
        embed = self.whole(self.action_embedder, params, ids)
        if axis_name is None:
            return embed(ids, dropout)
        return jax.lax.all_gather(embed(device_share(ids, axis_name), dropout), axis_name, tiled=True)


def pool_share(ids: Int[Array, "U L"], cotangents: Float[Array, "U D"], axis_name: str | None) -> Rows:
    """The rows of a pool that this device embeds for all devices, and the gradient of their embeddings, summed over the devices."""
    if axis_name is None:
        return ids, cotangents
    return device_share(ids, axis_name), jax.lax.psum_scatter(cotangents, axis_name, tiled=True)


def device_share(ids: Int[Array, "U L"], axis_name: str) -> Int[Array, "U2 L"]:
    """The rows of a pool that this device embeds."""
    share = ids.shape[0] // jax.lax.axis_size(axis_name)
    return jax.lax.dynamic_slice_in_dim(ids, jax.lax.axis_index(axis_name) * share, share)
