"""Three attentions on the same packed rows: the three operations of models/blocks.py ("plain"), jax.nn.dot_product_attention by XLA and,
on NVIDIA GPUs, by cuDNN."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float
from measure import ComputeDtype, fastest

from qrag_jax.models.blocks import attend

Attention = Callable[..., Array]


def attentions() -> dict[str, Attention]:
    """(query, key, value, mask [R, L, L]) -> values [R, L, heads, H], by name; "cudnn" where there is a GPU."""

    def fused(kind: Any, query: Array, key: Array, value: Array, mask: Array) -> Array:
        return jax.nn.dot_product_attention(query, key, value, mask=mask[:, None], implementation=kind)

    found: dict[str, Attention] = {"plain": partial(attend, attention="plain"), "xla": partial(fused, "xla")}
    return found | ({"cudnn": partial(fused, "cudnn")} if jax.default_backend() == "gpu" else {})


def packed_mask(rows: int, length: int, text: int) -> Bool[Array, "R L L"]:
    """Which tokens see each other when texts of ``text`` tokens share rows of ``length``."""
    number = jnp.arange(length) // text
    return jnp.broadcast_to(number[:, None] == number, (rows, length, length))


def attention_flops(rows: int, length: int, heads: int, width: int) -> float:
    """FLOP of a forward and a backward pass: Q K^T and A V are 2 R heads L^2 H each, and each has two products more in the backward."""
    return 3 * 2 * 2.0 * rows * heads * length**2 * width


def compare_attentions(
    shapes: dict[str, tuple[int, int, int]], heads: int, width: int, dtypes: tuple[ComputeDtype, ...]
) -> Iterator[dict[str, Any]]:
    """The seconds of each attention, forward, and forward with backward; and its largest difference from the plain one.

    ``shapes``: name -> rows, tokens of a row, tokens of a text in it; each in all of ``dtypes``. What cannot run has "error".
    """
    for (name, (rows, length, text)), dtype in ((shape, dtype) for shape in shapes.items() for dtype in dtypes):
        keys = jax.random.split(jax.random.key(0), 3)
        arrays = [jax.random.normal(key, (rows, length, heads, width), dtype) for key in keys]
        mask = packed_mask(rows, length, text)
        expected = jax.jit(attentions()["plain"])(*arrays, mask)
        for kind, attention in attentions().items():
            found: dict[str, Any] = {"shape": name, "rows": rows, "tokens": length, "dtype": dtype, "attention": kind}
            try:
                found |= _measure(attention, arrays, mask, expected)
            except Exception as error:  # XLA and cuDNN raise many kinds of errors; the other attentions are measured all the same
                found["error"] = f"{type(error).__name__}: {str(error)[:200]}"
            else:
                found["flops"] = attention_flops(rows, length, heads, width) / found["both_seconds"]
            yield found


def _measure(
    attention: Attention, arrays: list[Float[Array, "R L heads H"]], mask: Bool[Array, "R L L"], expected: Float[Array, "R L heads H"]
) -> dict[str, float]:
    forward = jax.jit(attention)
    both = jax.jit(jax.value_and_grad(lambda q, k, v, mask: attention(q, k, v, mask).astype(jnp.float32).sum(), argnums=(0, 1, 2)))
    apart = jnp.abs(forward(*arrays, mask).astype(jnp.float32) - expected.astype(jnp.float32)).max()
    return {
        "forward_seconds": fastest(lambda: forward(*arrays, mask)),
        "both_seconds": fastest(lambda: both(*arrays, mask)),
        "difference": float(apart),
    }
