"""What the paths share: heads by their key/value head, queries in blocks, and the two products.

The queries of one key/value head lie together, so that each product is one matrix product a
key/value head and not one a query head.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp


def group_queries(q: jax.Array, kv_heads: int) -> jax.Array:
    """[B, T, N, H] -> [B, K, G, T, H], scaled by 1 / sqrt(H).

    Scaling the queries touches T·H numbers a head, scaling the scores T².
    """
    batch, length, num_heads, head_dim = q.shape
    q = scale_queries(q).reshape(batch, length, kv_heads, num_heads // kv_heads, head_dim)
    return q.transpose(0, 2, 3, 1, 4)


def scale_queries(q: jax.Array) -> jax.Array:
    """q / sqrt(H), in q's dtype."""
    return (q.astype(jnp.float32) / math.sqrt(q.shape[-1])).astype(q.dtype)


def group_keys(k: jax.Array) -> jax.Array:
    """Keys or values [B, S, K, H] -> [B, K, S, H]."""
    return k.transpose(0, 2, 1, 3)


def ungroup(outputs: jax.Array) -> jax.Array:
    """[B, K, G, T, H] -> [B, T, N, H]."""
    batch, kv_heads, group, length, head_dim = outputs.shape
    return outputs.transpose(0, 3, 1, 2, 4).reshape(batch, length, kv_heads * group, head_dim)


def scores(q: jax.Array, k: jax.Array) -> jax.Array:
    """q . k: [B, K, G, T, H], [B, K, S, H] -> float32 [B, K, G, T, S]."""
    product = jnp.einsum("bkth,bksh->bkts", _rows(q), k, preferred_element_type=jnp.float32)
    return product.reshape(*q.shape[:-1], k.shape[2])


def weighted_sums(weights: jax.Array, values: jax.Array) -> jax.Array:
    """Σ_s weights_ts values_s: [B, K, G, T, S], [B, K, S, M] -> float32 [B, K, G, T, M]."""
    rows = _rows(weights.astype(values.dtype))
    sums = jnp.einsum("bkts,bksm->bktm", rows, values, preferred_element_type=jnp.float32)
    return sums.reshape(*weights.shape[:-1], values.shape[-1])


def map_blocks(
    function: Callable[[jax.Array | int], jax.Array], start: int, stop: int, block: int
) -> jax.Array:
    """`function(begin)` of every block of queries in a run, side by side.

    Args:
      function: from a block's first query to [B, K, G, block, M].
      start, stop: of the run, a whole number of blocks.
      block: queries a block.

    Returns:
      [B, K, G, stop - start, M].
    """
    if stop - start == block:
        return function(start)
    blocks = jnp.moveaxis(jax.lax.map(function, jnp.arange(start, stop, block)), 0, 3)
    return blocks.reshape(*blocks.shape[:3], stop - start, blocks.shape[-1])


def _rows(x: jax.Array) -> jax.Array:
    """[B, K, G, T, M] -> [B, K, G · T, M]."""
    batch, kv_heads, group, length, columns = x.shape
    return x.reshape(batch, kv_heads, group * length, columns)
