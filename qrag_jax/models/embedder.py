"""The pair of text encoders: E_s for states, E_a for actions; pooled, normalised where asked, divided, float32 out."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int, PRNGKeyArray

from qrag_jax.config import Attention, RunConfig
from qrag_jax.models.packing import Shape, embed_tiles, tiles_vjp
from qrag_jax.models.registry import BACKBONES, BackboneConfig, Pooling, backbone_of
from qrag_jax.types import Array


def pool(hidden: Float[Array, "R L D"], mask: Bool[Array, "R *S L"], pooling: Pooling) -> Float[Array, "R *S D"]:
    """One vector a row, or a segment of it, float32: the mean over its real tokens, its last one, or its first. Without any: zeros."""
    places = jnp.arange(mask.shape[-1])
    if pooling != "mean":
        best = jnp.where(mask, places, -1).max(-1) if pooling == "last" else jnp.where(mask, places, mask.shape[-1]).min(-1)
        mask = mask & (places == best[..., None])
    # HIGHEST: an accelerator would otherwise round the hidden vectors on their way into the sum.
    total = jnp.einsum("r...l,rld->r...d", mask.astype(jnp.float32), hidden.astype(jnp.float32), precision=jax.lax.Precision.HIGHEST)
    return total / jnp.maximum(mask.sum(-1, keepdims=True), 1)


def normalized(vectors: Float[Array, "*R D"]) -> Float[Array, "*R D"]:
    """Each vector divided by its length (L2). Zeros stay zeros, with a gradient that is finite."""
    squares = jnp.sum(jnp.square(vectors), axis=-1, keepdims=True)
    return vectors * jax.lax.rsqrt(jnp.maximum(squares, 1e-24))


class Embedder(nn.Module):
    """``apply(params, ids, method="embed_states" | "embed_actions")``: token rows [R, L] -> embeddings [R, D].

    With ``segments`` [R, L] and their ``count`` S a row holds several texts and gives one embedding each, [R, S, D]; -1 is padding.

    Parameters: ``{"params": {"state_encoder": ..., "action_encoder": ...}}``; tied: one tree, ``{"params": {"encoder": ...}}``.
    """

    config: BackboneConfig
    tied: bool = False
    pooling: Pooling = "mean"
    normalize: bool = False
    divisor: float = 10.0
    dtype: Any = jnp.float32
    remat: bool = False
    attention: Attention = "auto"

    def setup(self) -> None:
        backbone = BACKBONES[backbone_of(self.config)]
        how = {"attention": self.attention} if backbone.fuses else {}
        make = lambda: backbone.encoder(self.config, dtype=self.dtype, remat=self.remat, **how)
        if self.tied:
            self.encoder = make()
        else:
            self.state_encoder, self.action_encoder = make(), make()

    def embed_states(self, ids: Int[Array, "R Ls"], deterministic: bool = True, **segments: Any) -> Float[Array, "R *S D"]:
        return self._embed(self.encoder if self.tied else self.state_encoder, ids, deterministic, **segments)

    def embed_actions(self, ids: Int[Array, "R Lc"], deterministic: bool = True, **segments: Any) -> Float[Array, "R *S D"]:
        return self._embed(self.encoder if self.tied else self.action_encoder, ids, deterministic, **segments)

    def __call__(self, state_ids: Int[Array, "R Ls"], action_ids: Int[Array, "R Lc"]) -> tuple[Array, Array]:
        """Both encoders once: what ``init`` needs."""
        return self.embed_states(state_ids), self.embed_actions(action_ids)

    def _embed(
        self, encoder: nn.Module, ids: Array, deterministic: bool, segments: Int[Array, "R L"] | None = None, count: int = 1
    ) -> Array:
        if segments is None:
            pooled = pool(encoder(ids, deterministic), ids >= 0, self.pooling)
        else:
            belongs = segments[:, None, :] == jnp.arange(count)[:, None]
            pooled = pool(encoder(ids, deterministic, segments), belongs, self.pooling)
        return (normalized(pooled) if self.normalize else pooled) / self.divisor


def embed_states(embedder: Embedder, params: Any, ids: Int[Array, "R Ls"], **options: Any) -> Float[Array, "R D"]:
    """E_s of token rows; ``options`` are those of ``Module.apply`` (rngs) and of the method (deterministic)."""
    return cast(Array, embedder.apply(params, ids, method="embed_states", **options))


def embed_actions(embedder: Embedder, params: Any, ids: Int[Array, "R Lc"], **options: Any) -> Float[Array, "R D"]:
    """E_a of token rows, un-rotated."""
    return cast(Array, embedder.apply(params, ids, method="embed_actions", **options))


@dataclass(frozen=True)
class RowEmbedder:
    """One of the two encoders over any number of rows, in tiles (:mod:`qrag_jax.models.packing`)."""

    embedder: Embedder
    method: Literal["embed_states", "embed_actions"]
    tile_tokens: int

    @property
    def name(self) -> str:
        """Of its parameters."""
        return "encoder" if self.embedder.tied else "state_encoder" if self.method == "embed_states" else "action_encoder"

    def __call__(self, params: Any, ids: Int[Array, "R L"], dropout: PRNGKeyArray | None = None) -> Float[Array, "R D"]:
        """Embeddings; zeros for a row without tokens. Use :meth:`gradient` to differentiate."""
        shape = self._shape(ids)
        return embed_tiles(partial(self._tile, self.embedder, params, shape, dropout), ids, shape)

    def gradient(
        self, params: Any, ids: Int[Array, "R L"], cotangents: Float[Array, "R D"], dropout: PRNGKeyArray | None = None
    ) -> dict[str, Any]:
        """Gradient of sum(cotangents * embeddings): {name: parameters of the encoder}."""
        shape, words = self._shape(ids), BACKBONES[backbone_of(self.embedder.config)].words
        others = dict(params["params"][self.name])
        table = others.pop(words)["embedding"]
        # Inside a tile the vocabulary is the tile's own tokens.
        local = self.embedder.clone(config=dataclasses.replace(self.embedder.config, vocab_size=shape.bins * shape.width))

        def tile(others: Any, vectors: Array, ids: Array, segments: Array, number: Array) -> Array:
            own = {"params": {self.name: {**others, words: {"embedding": vectors}}}}
            return self._tile(local, own, shape, dropout, ids, segments, number)

        grads, of_table = tiles_vjp(tile, others, table, ids, cotangents, shape)
        return {self.name: {**grads, words: {"embedding": of_table}}}

    def _shape(self, ids: Int[Array, "R L"]) -> Shape:
        rows, length = ids.shape
        return Shape.make(rows, length, self.tile_tokens, BACKBONES[backbone_of(self.embedder.config)].packs)

    def _tile(
        self, embedder: Embedder, params: Any, shape: Shape, dropout: PRNGKeyArray | None, ids: Array, segments: Array, number: Array
    ) -> Float[Array, "K S D"]:
        options: dict[str, Any] = {"method": self.method}
        if dropout is not None:
            options |= {"deterministic": False, "rngs": {"dropout": jax.random.fold_in(dropout, number)}}
        if shape.segments == 1:
            return cast(Array, embedder.apply(params, ids, **options))[:, None]
        return cast(Array, embedder.apply(params, ids, segments=segments, count=shape.segments, **options))


def make_embedder(config: RunConfig, backbone: BackboneConfig, pooling: Pooling | None = None) -> Embedder:
    """The embedder of a run. ``pooling`` None: the backbone's usual one (mean; last token for a decoder).

    Raises ValueError when the run's token rows are longer than the backbone can read, or its width does not suit the value function.
    """
    data, model, budget = config.data, config.model, config.largest_budget
    if backbone.width % (2 * config.qhead.halves):
        raise ValueError(f"width {backbone.width} of the embedder: must be a multiple of {2 * config.qhead.halves} (qhead.halves pairs)")
    for name in ("question_tokens", "chunk_tokens", "state_tokens"):
        if getattr(data, name) > backbone.max_tokens:
            raise ValueError(f"data.{name} = {getattr(data, name)}: the embedder reads at most {backbone.max_tokens} tokens")
    if model.attention == "fused" and not BACKBONES[backbone_of(backbone)].fuses:
        raise ValueError(f"model.attention = 'fused': the attention of {backbone_of(backbone)!r} is plain; use auto")
    full = data.question_tokens + (budget - 1) * data.state_chunk_tokens
    if not data.state_tokens and full > backbone.max_tokens:
        raise ValueError(
            f"a state of {budget - 1} chunks has up to {full} tokens, the embedder reads {backbone.max_tokens}: set data.state_tokens"
        )
    return Embedder(
        dataclasses.replace(backbone, hidden_dropout_prob=model.dropout),
        tied=model.tied,
        pooling=pooling or BACKBONES[backbone_of(backbone)].pooling,
        normalize=model.normalize,
        divisor=model.divisor,
        dtype=jnp.dtype(model.compute_dtype),
        remat=model.remat,
        attention=model.attention,
    )


def pair(state: Mapping[str, Any], action: Mapping[str, Any] | None, tied: bool = False) -> dict[str, Any]:
    """Parameters of an :class:`Embedder` from those of its encoders; ``action`` None: both start from the same ones."""
    if tied:
        return {"params": {"encoder": state}}
    return {"params": {"state_encoder": state, "action_encoder": state if action is None else action}}


def encoders(params: Mapping[str, Any]) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Parameters of the state and of the action encoder, the same ones when tied: the inverse of :func:`pair`."""
    tree = params.get("params", params)
    if set(tree) == {"encoder"}:
        return tree["encoder"], tree["encoder"]
    if set(tree) != {"state_encoder", "action_encoder"}:
        raise ValueError(f"parameters of an Embedder: found {sorted(tree)}, expected state_encoder and action_encoder, or encoder")
    return tree["state_encoder"], tree["action_encoder"]
