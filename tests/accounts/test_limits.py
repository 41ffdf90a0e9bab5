"""What a step needs at least, against counting pairs and bytes one by one."""

import jax
import numpy as np
import pytest
import tiny
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from sinkjax.accounts.limits import Limit, decode_limit, prefill_limit
from sinkjax.masks.mask import SinkMask
from sinkjax.masks.paths import Full, Window

pytestmark = pytest.mark.quick

CONFIG = tiny.make(num_layers=1).config


def pairs_seen(path, length):
    """(t, s) that the definition of a path lets meet."""
    t, s = np.arange(length)[:, None], np.arange(length)[None, :]
    seen = s <= t
    if isinstance(path, Window):
        seen &= (s < path.sinks) | (t - path.recent < s)
    return int(seen.sum())


@given(
    st.one_of(st.just(Full()), st.builds(Window, st.integers(0, 4), st.integers(1, 9))),
    st.integers(1, 24),
)
@settings(max_examples=60, deadline=None)
def test_flops_of_a_prompt_grow_by_the_pairs_that_are_seen(path, length):
    config = CONFIG
    mask = SinkMask(((path,) * config.num_heads,))
    B, D, H, N, K = 2, config.embed_dim, config.head_dim, config.num_heads, config.num_kv_heads
    limit = prefill_limit(config, mask, B, length, itemsize=4)
    projections = 2 * B * length * D * H * (2 * N + 2 * K)
    feed_forward = 2 * B * length * 3 * D * config.mlp_dim
    head = 2 * B * D * config.vocab_size
    attention = 2 * B * N * 2 * H * pairs_seen(path, length)
    assert limit.flops == projections + feed_forward + head + attention


@pytest.mark.parametrize("tied", [True, False])
def test_bytes_of_a_step_are_parameters_and_what_the_cache_holds(tied):
    """An embedding that is no head is not read whole: a row of it for each token."""
    model = tiny.make(tie_embeddings=tied)
    config, B, context = model.config, 2, 9
    limit = decode_limit(config, SinkMask.full(config), B, context, itemsize=4)
    parameters = sum(leaf.nbytes for leaf in jax.tree.leaves(nnx.state(model)))
    if not tied:
        parameters -= (config.vocab_size - B) * config.embed_dim * 4
    keys = config.num_layers * B * config.num_kv_heads * context * config.head_dim * 4
    assert limit.bytes == parameters + 2 * keys + 4 * B


def test_the_slower_of_memory_and_arithmetic_decides():
    rates = {"read": 10.0, "multiply": 100.0}
    assert Limit(flops=1000, bytes=10).seconds(rates) == 10
    assert Limit(flops=10, bytes=1000).seconds(rates) == 100
    assert (Limit(flops=10, bytes=1000) * 3).seconds(rates) == 300
