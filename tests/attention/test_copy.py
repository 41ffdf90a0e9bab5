"""Patterns that are kept for the heads that copy them."""

import jax.numpy as jnp
import numpy as np
import pytest
from heads import attended, random_heads

from sinkjax.attention.copy import apply_pattern, copied_pattern, keep_pattern
from sinkjax.masks.paths import Full, Window

pytestmark = pytest.mark.quick


@pytest.mark.parametrize("path", [Full(), Window(4, 16), Window(3, 64), Window(70, 5)], ids=str)
@pytest.mark.parametrize("length", [1, 64, 300])
def test_a_kept_pattern_on_other_values(length, path):
    q, k, v = random_heads(length, 2)
    others = v[::-1] + 1
    pattern = keep_pattern(q, k, path, v.dtype, None)
    outputs = apply_pattern(pattern, others, path)
    np.testing.assert_allclose(outputs, attended(path, q, k, others), atol=1e-5)


def test_copied_heads_are_put_in_order_across_parts():
    first, second = (jnp.arange(8.0).reshape(1, 4, 2, 1) + 100 * i for i in range(2))
    patterns = {(0, 0, 0): (first,), (1, 0, 2): (second,)}
    sources = [((1, 0, 2), 3), ((0, 0, 0), 1), ((0, 0, 0), 0), ((1, 0, 2), 2)]
    (pattern,) = copied_pattern(patterns, sources)
    wanted = [second[:, 3], first[:, 1], first[:, 0], second[:, 2]]
    np.testing.assert_array_equal(pattern, jnp.stack(wanted, axis=1))
    everything = [((0, 0, 0), head) for head in range(4)]
    assert copied_pattern(patterns, everything)[0] is first
