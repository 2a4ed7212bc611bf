"""Dense layers in one product, and GELU."""

from __future__ import annotations

from math import erf

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qrag_jax.models.blocks import INIT, Affine, gelu, project


class Apart(nn.Module):
    @nn.compact
    def __call__(self, x):
        return [nn.Dense(8, kernel_init=INIT, bias_init=nn.initializers.zeros, name=name)(x) for name in "ab"]


class Together(nn.Module):
    @nn.compact
    def __call__(self, x):
        return project(x, *(Affine(8, name=name)(x.shape[-1]) for name in "ab"))


def test_layers_in_one_product_are_those_apart():
    x = jax.random.normal(jax.random.key(0), (5, 6))
    apart, together = (model.init(jax.random.key(1), x) for model in (Apart(), Together()))
    jax.tree.map(np.testing.assert_array_equal, together, apart)
    params = jax.tree.map(lambda leaf: leaf + 1.0, apart)
    for found, expected in zip(Together().apply(params, x), Apart().apply(params, x), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("dtype", "atol"), [(jnp.float32, 1e-6), (jnp.bfloat16, 2e-2)])
def test_gelu_by_the_error_function(dtype, atol):
    x = np.linspace(-6, 6, 121)
    found = gelu(jnp.asarray(x, dtype))
    assert found.dtype == dtype
    # x Phi(x), of the input as it was rounded
    rounded = np.asarray(jnp.asarray(x, dtype), np.float64)
    np.testing.assert_allclose(np.asarray(found, np.float64), [0.5 * v * (1 + erf(v / 2**0.5)) for v in rounded], atol=atol)
    # Phi(x) + x phi(x) at 1: 0.841345 + 0.241971
    np.testing.assert_allclose(float(jax.grad(gelu)(jnp.asarray(1.0))), 1.083316, atol=1e-5)
