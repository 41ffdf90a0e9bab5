"""Each path's prompt attention against the oracle's patterns, over lengths around its blocks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

from sinkjax.attention import window
from sinkjax.attention.copy import apply_pattern, copied_pattern, keep_pattern
from sinkjax.attention.full import causal_attention
from sinkjax.attention.window import window_attention
from sinkjax.masks.paths import Full, Window
from sinkjax.testing import oracle as reference

LENGTHS = [1, 64, 300]
WINDOWS = [Window(0, 1), Window(1, 1), Window(4, 16), Window(3, 64), Window(70, 5), Window(4, 200)]
B, K, H = 2, 2, 8


def random_heads(length: int, group: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    rng = np.random.default_rng(length)
    shapes = [(B, length, heads, H) for heads in (K * group, K, K)]
    return tuple(jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes)


def oracle(path, q, k, v):
    scores = reference.attention_scores(q, k)
    heads = [reference.head_pattern(path, scores[:, n], {}) for n in range(q.shape[2])]
    return reference.apply_pattern(jnp.stack(heads, axis=1), v)


@pytest.mark.parametrize("group", [1, 3])
@pytest.mark.parametrize("length", LENGTHS)
def test_full(length, group):
    q, k, v = random_heads(length, group)
    np.testing.assert_allclose(causal_attention(q, k, v), oracle(Full(), q, k, v), atol=1e-5)


@pytest.mark.parametrize("path", WINDOWS, ids=str)
@pytest.mark.parametrize("length", LENGTHS)
def test_window(length, path):
    q, k, v = random_heads(length, 3)
    found = window_attention(q, k, v, path)
    np.testing.assert_allclose(found, oracle(path, q, k, v), atol=1e-5)


@pytest.mark.parametrize("path", [Full(), *WINDOWS[2:5]], ids=str)
@pytest.mark.parametrize("length", LENGTHS)
def test_a_kept_pattern_on_other_values(length, path):
    q, k, v = random_heads(length, 2)
    others = v[::-1] + 1
    pattern = keep_pattern(q, k, path, v.dtype)
    found = apply_pattern(pattern, others, path)
    np.testing.assert_allclose(found, oracle(path, q, k, others), atol=1e-5)


def test_copied_heads_are_put_in_order_across_parts():
    one, two = (jnp.arange(8.0).reshape(1, 4, 2, 1) + 100 * i for i in range(2))
    patterns = {(0, 0, 0): (one,), (1, 0, 2): (two,)}
    sources = [((1, 0, 2), 3), ((0, 0, 0), 1), ((0, 0, 0), 0), ((1, 0, 2), 2)]
    (found,) = copied_pattern(patterns, sources)
    wanted = [two[:, 3], one[:, 1], one[:, 0], two[:, 2]]
    np.testing.assert_array_equal(found, jnp.stack(wanted, axis=1))
    everything = [((0, 0, 0), head) for head in range(4)]
    assert copied_pattern(patterns, everything)[0] is one


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
        assert count == B * K * group * length * seen * (2 * H + 1)
        assert largest <= B * K * group * max(length * (H + 1), window.BLOCK * seen)
    full_count, _ = products(jax.make_jaxpr(causal_attention)(*random_heads(2048, group)).jaxpr)
    assert work(2048)[0] < full_count / 8
