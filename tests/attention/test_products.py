"""Products of few rows, whatever form they take, are products."""

import jax
import numpy as np
import pytest

from sinkjax.attention.products import CpuProducts


@pytest.mark.parametrize("rows", [1, 2, 3, 5, 8, 9, 12, 13, 17, 20, 22, 25, 31, 64, 65])
@pytest.mark.parametrize("inputs", [96, 1536])
def test_few_rows_multiply_as_many_do(rows, inputs):
    rng = np.random.default_rng(rows)
    x = rng.standard_normal((rows, 1, inputs), np.float32)
    weights = [rng.standard_normal((outputs, inputs), np.float32) for outputs in (24, 40)]
    products = jax.jit(lambda x, *weights: CpuProducts().project(x, *weights))(x, *weights)
    for product, weight in zip(products, weights, strict=True):
        assert product.shape == (rows, 1, len(weight))
        expected = x.astype(np.float64) @ weight.T.astype(np.float64)
        np.testing.assert_allclose(product, expected, atol=1e-5 * inputs**0.5)
