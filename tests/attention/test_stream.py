"""Keys in blocks against the oracle's patterns."""

import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from heads import attended, random_heads

from sinkjax.attention.kernels import Xla
from sinkjax.attention.products import PLAIN, CpuProducts
from sinkjax.masks.paths import Full, Window


def assert_equals_oracle(attend, path, heads):
    np.testing.assert_allclose(attend(*heads), attended(path, *heads), rtol=0, atol=1e-5)


@pytest.mark.parametrize("products", [PLAIN, CpuProducts()], ids=["plain", "cpu"])
@pytest.mark.parametrize("length", [1025, 1300, 1536])  # around blocks of keys
def test_attention_by_blocks_of_keys_equals_the_oracle(length, products):
    heads = random_heads(length, 3, dtype=jnp.float32)
    attend = tiny.quick_jit(lambda *heads: Xla(streams=True).attend(*heads, Full(), products))
    assert_equals_oracle(attend, Full(), heads)
    large = (4 * heads[0], heads[1], heads[2])  # scores whose largest changes from block to block
    assert_equals_oracle(attend, Full(), large)
    capped = tiny.quick_jit(
        lambda *heads: Xla(streams=True).attend(*heads, Full(), products, cap=1.5)
    )
    wanted = attended(Full(), *large, cap=1.5)
    np.testing.assert_allclose(capped(*large), wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("products", [PLAIN, CpuProducts()], ids=["plain", "cpu"])
@pytest.mark.parametrize("length", [1025, 1536, 2100])
@pytest.mark.parametrize(
    "window",
    [
        Window(4, 512),  # no block of keys is seen whole but a query's own
        Window(0, 513),
        Window(3, 700),
        Window(600, 1024),  # first tokens that later blocks of queries see, and earlier ones do
        Window(5, 1022),
        Window(4, 600, within=900),  # first tokens that the model itself no longer sees
    ],
    ids=str,
)
def test_wide_windows_by_blocks_of_keys_equal_the_oracle(window, length, products):
    heads = random_heads(length, 3, dtype=jnp.float32)
    heads = (4 * heads[0], heads[1], heads[2])
    attend = tiny.quick_jit(lambda *heads: Xla(streams=True).attend(*heads, window, products))
    assert_equals_oracle(attend, window, heads)
