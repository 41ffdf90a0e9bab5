"""The work that a window's attention is."""

import jax
import numpy as np
import pytest
from heads import random_heads
from jax.extend.core import jaxprs_in_params

from sinkjax.attention import window
from sinkjax.attention.full import causal_attention
from sinkjax.attention.window import window_attention
from sinkjax.masks.paths import Window

pytestmark = pytest.mark.quick


def products(jaxpr) -> tuple[int, int]:
    """Multiplications in all matrix products, loops counted by their turns; the largest array."""
    count, largest = 0, 0
    for equation in jaxpr.eqns:
        largest = max(largest, *(v.aval.size for v in equation.outvars))
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            count += equation.outvars[0].aval.size * int(np.prod([shape[i] for i in contracted]))
        for inner in jaxprs_in_params(equation.params):
            inner_count, inner_largest = products(inner)
            count += inner_count * equation.params.get("length", 1)
            largest = max(largest, inner_largest)
    return count, largest


def test_a_windows_work_grows_with_the_length_and_not_its_square():
    path, group = Window(4, 60), 3

    def work(length: int) -> tuple[int, int]:
        q, k, v = random_heads(length, group)
        return products(
            jax.make_jaxpr(lambda q, k, v: window_attention(q, k, v, path))(q, k, v).jaxpr
        )

    seen = path.sinks + path.recent - 1 + window.BLOCK  # by a block of queries
    for length in (512, 2048):
        count, largest = work(length)
        assert count == 4 * group * length * seen * (2 * 8 + 1)
        assert largest <= 4 * group * max(length * (8 + 1), window.BLOCK * seen)
    full_count, _ = products(jax.make_jaxpr(causal_attention)(*random_heads(2048, group)).jaxpr)
    assert work(2048)[0] < full_count / 8
