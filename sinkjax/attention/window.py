"""The `window` path: the first tokens and the most recent ones, in work that grows with T·(c + w).

Queries come in blocks. A block sees two runs of keys, cut out by slices: the sinks, and a band from
the oldest key that its first query sees to its last query. A sink among a query's recent keys
counts there and not among the sinks, so that no key counts twice.
"""

import jax
import jax.numpy as jnp

from sinkjax.attention.blocks import (
    group_keys,
    group_queries,
    map_blocks,
    scores,
    ungroup,
    weighted_sums,
)
from sinkjax.attention.full import Pattern, apply_causal_pattern, causal_attention, causal_pattern
from sinkjax.attention.products import PLAIN, Products
from sinkjax.masks.paths import Window

BLOCK = 64
"""Queries a block."""


def window_attention(
    q: jax.Array, k: jax.Array, v: jax.Array, window: Window, products: Products = PLAIN
) -> jax.Array:
    """Attention to s < c and t - w < s <= t alone.

    Args:
      q: [B, T, N, H], rotated.
      k: [B, T, K, H], rotated; head n reads key/value head n // (N / K).
      v: [B, T, K, H].
      window: c and w.
      products: how they are written.

    Returns:
      [B, T, N, H] in v's dtype, before `o_proj`. Scores and softmax are float32.
    """
    if covers(window, q.shape[1]):
        return causal_attention(q, k, v, products)
    queries = products.settle(group_queries(q, k.shape[2]))
    keys = products.settle(group_keys(k))
    values, sums = products.settle(products.counted(group_keys(v))), []
    for start, stop, block in _runs(q.shape[1]):

        def attend(begin: jax.Array | int, block: int = block) -> jax.Array:
            found, visible = _block_scores(queries, keys, window, begin, block)
            weights = products.unnormalized(found, visible)
            return products.sum_counted(weights, _cut(values, window, begin, block))

        sums.append(map_blocks(attend, start, stop, block))
    sums = jnp.concatenate(sums, axis=3)
    return ungroup((sums[..., :-1] / sums[..., -1:]).astype(v.dtype))


def window_pattern(q: jax.Array, k: jax.Array, window: Window, dtype: jnp.dtype) -> Pattern:
    """The attention of `window_attention` itself, in `dtype`: [B, N, T, sinks and band] a run."""
    if covers(window, q.shape[1]):
        return causal_pattern(q, k, dtype)
    queries, keys, runs = group_queries(q, k.shape[2]), group_keys(k), []
    for start, stop, block in _runs(q.shape[1]):

        def attend(begin: jax.Array | int, block: int = block) -> jax.Array:
            found, visible = _block_scores(queries, keys, window, begin, block)
            return jax.nn.softmax(jnp.where(visible, found, -jnp.inf), axis=-1).astype(dtype)

        weights = map_blocks(attend, start, stop, block)
        runs.append(weights.reshape(q.shape[0], q.shape[2], *weights.shape[3:]))
    return tuple(runs)


def apply_window_pattern(pattern: Pattern, v: jax.Array, window: Window) -> jax.Array:
    """A pattern of N heads on values [B, T, K, H] -> [B, T, N, H] in v's dtype."""
    if covers(window, v.shape[1]):
        return apply_causal_pattern(pattern, v)
    values, sums = group_keys(v), []
    for (start, stop, block), weights in zip(_runs(v.shape[1]), pattern, strict=True):
        grouped = weights.reshape(*values.shape[:2], -1, *weights.shape[2:])

        def attend(
            begin: jax.Array | int,
            grouped: jax.Array = grouped,
            start: int = start,
            block: int = block,
        ) -> jax.Array:
            weights = jax.lax.dynamic_slice_in_dim(grouped, begin - start, block, axis=3)
            return weighted_sums(weights, _cut(values, window, begin, block))

        sums.append(map_blocks(attend, start, stop, block))
    return ungroup(jnp.concatenate(sums, axis=3)).astype(v.dtype)


def covers(window: Window, length: int) -> bool:
    """Whether every query of so many tokens sees all keys up to its own."""
    return window.sinks + window.recent >= length


def _runs(length: int) -> list[tuple[int, int, int]]:
    """(start, stop, block): the whole blocks of queries, and what is left over."""
    rest = length % BLOCK
    runs = [(0, length - rest, BLOCK), (length - rest, length, rest)]
    return [run for run in runs if run[0] < run[1]]


def _block_scores(
    q: jax.Array, k: jax.Array, window: Window, begin: jax.Array | int, block: int
) -> tuple[jax.Array, jax.Array]:
    """Scores of one block of queries, from `begin` on, with its sinks and band, and who sees whom.

    Args:
      q: [B, K, G, T, H], scaled. k: [B, K, T, H].

    Returns:
      float32 [B, K, G, block, E] and bool [block, E].
    """
    start, size = _band(window, begin, block, k.shape[2])
    t = begin + jnp.arange(block, dtype=jnp.int32)[:, None]
    sinks = jnp.arange(window.sinks, dtype=jnp.int32)[None, :]
    band = start + jnp.arange(size, dtype=jnp.int32)[None, :]
    recent = (band <= t) & (band > t - window.recent)
    visible = jnp.concatenate([sinks <= t - window.recent, recent], axis=1)
    q = jax.lax.dynamic_slice_in_dim(q, begin, block, axis=3)
    return scores(q, _cut(k, window, begin, block)), visible


def _cut(x: jax.Array, window: Window, begin: jax.Array | int, block: int) -> jax.Array:
    """The sinks and the band of one block, of keys or values [B, K, T, M]: [B, K, E, M]."""
    start, size = _band(window, begin, block, x.shape[2])
    band = jax.lax.dynamic_slice_in_dim(x, start, size, axis=2)
    return jnp.concatenate([x[:, :, : window.sinks], band], axis=2)


def _band(window: Window, begin: jax.Array | int, block: int, length: int) -> tuple[jax.Array, int]:
    """First position and number of the recent keys that a block of queries sees between them."""
    size = min(window.recent - 1 + block, length)
    return jnp.clip(begin + block - size, 0, length - size), size
