"""Three attentions on the same packed rows: the three operations of models/blocks.py ("plain"), and its fused one by XLA and, on NVIDIA
GPUs, by cuDNN. The last texts of a row are padding, as in training."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float
from measure import ComputeDtype, fastest

from qrag_jax.models.blocks import attend, attend_fused

Attention = Callable[..., Array]


def attentions() -> dict[str, Attention]:
    """(query, key, value, mask [R, L, L]) -> values [R, L, heads, H], by name; "cudnn" where there is a GPU."""

    found: dict[str, Attention] = {"plain": partial(attend, attention="plain"), "xla": partial(attend_fused, implementation="xla")}
    return found | ({"cudnn": partial(attend_fused, implementation="cudnn")} if jax.default_backend() == "gpu" else {})


def packed_mask(rows: int, length: int, text: int) -> Bool[Array, "R L L"]:
    """Which tokens see each other when texts of ``text`` tokens share rows of ``length``. The last quarter of a row is padding: its tokens
    see none."""
    place = jnp.arange(length)
    number = place // text
    sees = (number[:, None] == number) & (place < length - length // 4)
    return jnp.broadcast_to(sees & sees.T, (rows, length, length))


def attention_flops(rows: int, length: int, heads: int, width: int) -> float:
    """FLOP of a forward and a backward pass: Q K^T and A V are 2 R heads L^2 H each, with two more products each in the backward pass."""
    return 3 * 2 * 2.0 * rows * heads * length**2 * width


def compare_attentions(
    shapes: dict[str, tuple[int, int, int]], heads: int, width: int, dtypes: tuple[ComputeDtype, ...]
) -> Iterator[dict[str, Any]]:
    """Yields, for each attention, its seconds (forward; forward with backward) and the largest difference of its values and gradients
    from those of the plain one, without padding.

    ``shapes``: name -> rows, tokens of a row, tokens of a text in it; each in all of ``dtypes``. An attention that cannot run has "error".
    """
    for (name, (rows, length, text)), dtype in ((shape, dtype) for shape in shapes.items() for dtype in dtypes):
        keys = jax.random.split(jax.random.key(0), 3)
        arrays = [jax.random.normal(key, (rows, length, heads, width), dtype) for key in keys]
        mask = packed_mask(rows, length, text)
        expected = _outcome(attentions()["plain"])(*arrays, mask)
        for kind, attention in attentions().items():
            found: dict[str, Any] = {"shape": name, "rows": rows, "tokens": length, "dtype": dtype, "attention": kind}
            try:
                found |= _measure(attention, arrays, mask, expected)
            except Exception as error:  # XLA and cuDNN raise many kinds of errors; the other attentions are still measured
                found["error"] = f"{type(error).__name__}: {str(error)[:200]}"
            else:
                found["flops"] = attention_flops(rows, length, heads, width) / found["both_seconds"]
            yield found


def _outcome(attention: Attention) -> Callable[..., list[Array]]:
    """Compiles (query, key, value, mask) -> values and gradients in all three, 0 where a token sees none; padding has no cotangent."""

    def outcome(query: Array, key: Array, value: Array, mask: Array) -> list[Array]:
        real = mask.any(-1)[:, :, None, None]
        values, vjp = jax.vjp(lambda *x: attention(*x, mask), query, key, value)
        gradients = vjp(jnp.where(real, jnp.cos(values.astype(jnp.float32)), 0).astype(values.dtype))
        return [jnp.where(real, values, 0), *gradients]

    return jax.jit(outcome)


def _measure(
    attention: Attention, arrays: list[Float[Array, "R L heads H"]], mask: Bool[Array, "R L L"], expected: list[Float[Array, "R L heads H"]]
) -> dict[str, float]:
    forward, both = jax.jit(attention), _outcome(attention)
    apart = [jnp.abs(a.astype(jnp.float32) - b.astype(jnp.float32)).max() for a, b in zip(both(*arrays, mask), expected, strict=True)]
    if not all(map(jnp.isfinite, apart)):
        raise FloatingPointError("values or gradients are not finite")
    return {
        "forward_seconds": fastest(lambda: forward(*arrays, mask)),
        "both_seconds": fastest(lambda: both(*arrays, mask)),
        "difference": max(map(float, apart)),
    }
