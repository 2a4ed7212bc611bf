"""What the layers of BERT and GTE share: dense products, the exact GELU, attention."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float

from qrag_jax.config import Attention
from qrag_jax.types import Array

NEGATIVE = -1e9  # finite, so that a row of padding only stays free of NaN
INIT = nn.initializers.normal(0.02)
CUDNN_TYPES = (jnp.bfloat16, jnp.float16)
CUDNN_HEAD = 128  # widest head that every generation of GPUs has a kernel for


@jax.custom_vjp
def cpu_product(x: Float[Array, "N I"], kernel: Float[Array, "I O"]) -> Float[Array, "N O"]:
    """``x @ kernel``, for XLA's CPU backend: its products read rows fastest, so the kernel's gradient x^T g is that of a copied x^T."""
    return x @ kernel


def _forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return x @ kernel, (x, kernel)


def _backward(saved: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    x, kernel = saved
    # Without the barrier XLA folds the transpose into the product again.
    return gradient @ kernel.T, jax.lax.optimization_barrier(x.T) @ gradient


cpu_product.defvjp(_forward, _backward)


class Dense(nn.Module):
    """x W + b with the parameters of ``nn.Dense``: ``kernel`` [I, O] and ``bias`` [O]."""

    size: int
    use_bias: bool = True
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "*B I"]) -> Float[Array, "*B O"]:
        kernel = self.param("kernel", INIT, (x.shape[-1], self.size))
        bias = self.param("bias", nn.initializers.zeros_init(), (self.size,)) if self.use_bias else None
        flat, kernel, bias = nn.dtypes.promote_dtype(x.reshape(-1, x.shape[-1]), kernel, bias, dtype=self.dtype)
        y = cpu_product(flat, kernel) if jax.default_backend() == "cpu" else flat @ kernel
        return (y if bias is None else y + bias).reshape(*x.shape[:-1], self.size)


def gelu(x: Float[Array, "*B"]) -> Float[Array, "*B"]:
    """x (1 + erf(x / sqrt 2)) / 2 in float32, as torch has it; jax.nn.gelu takes erfc, which costs more on CPUs."""
    wide = x.astype(jnp.float32)
    return (0.5 * wide * (1 + jax.lax.erf(wide * 0.5**0.5))).astype(x.dtype)


def attend(
    query: Float[Array, "R L heads H"],
    key: Float[Array, "R L heads H"],
    value: Float[Array, "R L heads H"],
    mask: Bool[Array, "R #L L"],
    attention: Attention = "auto",
) -> Float[Array, "R L heads H"]:
    """softmax(Q K^T / sqrt H) V over the tokens that each one sees (``mask``), softmax in float32; of a token that sees none, a mean.

    ``attention``: ``ModelConfig.attention``.
    """
    length, width = query.shape[1], query.shape[-1]
    if attention == "fused" or (attention == "auto" and jax.default_backend() != "cpu"):
        sees = jnp.broadcast_to(mask, (len(mask), length, length))[:, None]  # cuDNN wants all of it
        return jax.nn.dot_product_attention(query, key, value, mask=sees, implementation=_implementation(query))
    query, key, value = (x.swapaxes(1, 2) for x in (query, key, value))
    logits = jnp.einsum("rhqd,rhkd->rhqk", query, key) / jnp.sqrt(jnp.asarray(width, query.dtype))
    logits = jnp.where(mask[:, None], logits.astype(jnp.float32), NEGATIVE)
    weights = jax.nn.softmax(logits, axis=-1).astype(query.dtype)
    return jnp.einsum("rhqk,rhkd->rhqd", weights, value).swapaxes(1, 2)


def _implementation(query: Float[Array, "R L heads H"]) -> Any:
    """ "cudnn" where its flash kernel takes such queries, with a mask and gradients; None leaves the choice to JAX."""
    length, width = query.shape[1], query.shape[-1]
    suits = query.dtype in CUDNN_TYPES and width % 8 == 0 and width <= CUDNN_HEAD and length % 2 == 0
    return "cudnn" if suits and jax.default_backend() == "gpu" else None
