"""What sink heads add, head by head in NumPy."""

import jax.numpy as jnp
import numpy as np
import pytest

from sinkjax.attention.products import PLAIN
from sinkjax.attention.sink import add_biases, first_token_term

pytestmark = pytest.mark.quick

B, T, G, K, H, D = 3, 5, 4, 2, 8, 10
RNG = np.random.default_rng(0)


def draw(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


def test_heads_of_a_group_are_summed_before_the_product():
    """With which each head's own o v_0, of the value that its group shares, is meant."""
    v0, o = draw(B, K, H), draw(D, K, G, H)
    wanted = sum(v0[:, k] @ o[:, k, g].T for k in range(K) for g in range(G))
    term = first_token_term(jnp.asarray(v0), jnp.asarray(o.sum(2)), PLAIN)
    np.testing.assert_allclose(term, wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_term_has_its_values_dtype_and_is_rounded_once(dtype):
    v0, o = (jnp.asarray(draw(*shape), dtype) for shape in ((B, K, H), (D, K, H)))
    term = first_token_term(v0, o, PLAIN)
    wanted = np.einsum("bkh,dkh->bd", *(np.asarray(x, np.float64) for x in (v0, o)))
    assert term.dtype == dtype
    # Half of the last place of numbers of this size; float32's sums are of 16 products.
    np.testing.assert_allclose(
        np.asarray(term, np.float64), wanted, rtol=jnp.finfo(dtype).eps / 2, atol=1e-5
    )


def test_one_bias_is_the_first_positions_the_other_all_later_ones():
    out, first, later = draw(B, T, D), draw(B, D), draw(B, D)
    wanted = out.copy()
    for t in range(T):
        wanted[:, t] += later if t else first
    np.testing.assert_array_equal(add_biases(*map(jnp.asarray, (out, first, later))), wanted)
