"""Parts of the layers of BERT and GTE: initial weights, dense layers in one product, GELU, attention."""

from __future__ import annotations

import math
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float

from qrag_jax.config import Attention
from qrag_jax.types import Array

NEGATIVE = -1e9  # finite, so that a row of padding only stays free of NaN
INIT = nn.initializers.normal(0.02)
# Added to what a token must not see. cuDNN takes differences of such numbers; those of much larger ones overflow to NaN.
UNSEEN = -1e4
CUDNN_TYPES = (jnp.bfloat16, jnp.float16)
CUDNN_LENGTH = 256  # shorter rows take longer than with plain operations
CUDNN_HEAD = 128  # widest head that every generation of GPUs has a kernel for


class Affine(nn.Module):
    """Kernel [D, O] and bias [O] of a dense layer from D to ``size`` = O, with the names and start values of ``nn.Dense``."""

    size: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, width: int) -> tuple[Float[Array, "D O"], Float[Array, " O"]]:
        kernel, bias = self.param("kernel", INIT, (width, self.size)), self.param("bias", nn.initializers.zeros, (self.size,))
        return kernel.astype(self.dtype), bias.astype(self.dtype)


def project(x: Float[Array, "R D"], *layers: tuple[Float[Array, "D O"], Float[Array, " O"]]) -> list[Float[Array, "R O"]]:
    """The outputs of several dense layers of one size, computed in one product: small products leave a processor idle."""
    kernels, biases = zip(*layers, strict=True)
    out = x.astype(kernels[0].dtype) @ jnp.concatenate(kernels, axis=1) + jnp.concatenate(biases)
    return jnp.split(out, len(layers), axis=-1)


@jax.custom_jvp
def erf(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """``jax.lax.erf`` with its derivative written out: JAX 0.12 cannot differentiate its own inside ``jax.shard_map``."""
    return jax.lax.erf(x)


erf.defjvps(lambda tangent, _, x: 2 / math.sqrt(math.pi) * (tangent * jnp.exp(-jnp.square(x))))


def gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """x Phi(x) by erf in float32, as in PyTorch. (``jax.nn.gelu`` uses erfc, which costs a CPU more.)"""
    wide = x.astype(jnp.float32)
    return (0.5 * wide * (1 + erf(wide * 0.5**0.5))).astype(x.dtype)


def attend(
    query: Float[Array, "R L heads H"],
    key: Float[Array, "R L heads H"],
    value: Float[Array, "R L heads H"],
    mask: Bool[Array, "R #L L"],
    attention: Attention = "auto",
) -> Float[Array, "R L heads H"]:
    """softmax(Q K^T / sqrt H) V over the tokens that each token sees (``mask``), softmax in float32. A token that sees none gets some mean.

    ``attention``: ``ModelConfig.attention``.
    """
    width = query.shape[-1]
    if attention == "fused" or (attention == "auto" and _fuses(query)):
        return attend_fused(query, key, value, mask, _implementation(query))
    query, key, value = (x.swapaxes(1, 2) for x in (query, key, value))
    logits = jnp.einsum("rhqd,rhkd->rhqk", query, key) / jnp.sqrt(jnp.asarray(width, query.dtype))
    logits = jnp.where(mask[:, None], logits.astype(jnp.float32), NEGATIVE)
    weights = jax.nn.softmax(logits, axis=-1).astype(query.dtype)
    return jnp.einsum("rhqk,rhkd->rhqd", weights, value).swapaxes(1, 2)


def attend_fused(
    query: Float[Array, "R L heads H"],
    key: Float[Array, "R L heads H"],
    value: Float[Array, "R L heads H"],
    mask: Bool[Array, "R #L L"],
    implementation: Literal["xla", "cudnn"] | None,
) -> Float[Array, "R L heads H"]:
    """:func:`attend` by ``jax.nn.dot_product_attention``."""
    bias = jnp.where(mask, 0, UNSEEN).astype(query.dtype)
    whole = jnp.broadcast_to(bias, (len(mask), query.shape[1], key.shape[1]))[:, None]  # cuDNN does not broadcast
    return jax.nn.dot_product_attention(query, key, value, bias=whole, implementation=implementation)


def _fuses(query: Float[Array, "R L heads H"]) -> bool:
    """Whether the fused attention is the faster one (docs/results/h100.md; not measured on TPUs)."""
    device = jax.default_backend()
    return device == "tpu" or (device == "gpu" and query.shape[1] >= CUDNN_LENGTH and _implementation(query) is not None)


def _implementation(query: Float[Array, "R L heads H"]) -> Literal["cudnn"] | None:
    """ "cudnn" if its flash kernel supports these queries, with a mask and gradients; None leaves the choice to JAX."""
    length, width = query.shape[1], query.shape[-1]
    suits = query.dtype in CUDNN_TYPES and width % 8 == 0 and width <= CUDNN_HEAD and length % 2 == 0
    return "cudnn" if suits and jax.default_backend() == "gpu" else None
