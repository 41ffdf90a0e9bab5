"""The `window` path: the first tokens and the most recent ones, in work that grows with T·(c + w).

Queries come in blocks. A block sees two runs of keys, cut out by slices: the sinks, and a band from
the oldest key that its first query sees to its last query. A sink among a query's recent keys
counts there and not among the sinks, so that no key counts twice.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, DTypeLike, Float, Float32

from sinkjax.attention.blocks import (
    PerHead,
    PerKvHead,
    Position,
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
    q: PerHead, k: PerKvHead, v: PerKvHead, window: Window, products: Products = PLAIN
) -> PerHead:
    """Returns attention to s < c and t - w < s <= t alone, in v's dtype.

    Scores and softmax are float32.
    """
    if covers(window, q.shape[1]):
        return causal_attention(q, k, v, products)
    queries = products.settle(group_queries(q, k.shape[2]))
    keys = products.settle(group_keys(k))
    values, runs = products.settle(products.counted(group_keys(v))), []
    for start, stop, block in _runs(q.shape[1]):

        def attend(begin: Position, block: int = block) -> Float32[Array, "B K G T M"]:
            weights = products.unnormalized(*_block_scores(queries, keys, window, begin, block))
            return products.sum_counted(weights, _cut(values, window, begin, block))

        runs.append(map_blocks(attend, start, stop, block))
    sums = jnp.concatenate(runs, axis=3)
    return ungroup((sums[..., :-1] / sums[..., -1:]).astype(v.dtype))


def window_pattern(q: PerHead, k: PerKvHead, window: Window, dtype: DTypeLike) -> Pattern:
    """Returns the weights of `window_attention`, in `dtype`; S is the sinks and the band."""
    if covers(window, q.shape[1]):
        return causal_pattern(q, k, dtype)
    queries, keys, runs = group_queries(q, k.shape[2]), group_keys(k), []
    for start, stop, block in _runs(q.shape[1]):

        def attend(begin: Position, block: int = block) -> Float[Array, "B K G T S"]:
            seen, visible = _block_scores(queries, keys, window, begin, block)
            return jax.nn.softmax(jnp.where(visible, seen, -jnp.inf), axis=-1).astype(dtype)

        weights = map_blocks(attend, start, stop, block)
        runs.append(weights.reshape(q.shape[0], q.shape[2], *weights.shape[3:]))
    return tuple(runs)


def apply_window_pattern(pattern: Pattern, v: PerKvHead, window: Window) -> PerHead:
    """Returns the outputs of a pattern on these values, in their dtype."""
    if covers(window, v.shape[1]):
        return apply_causal_pattern(pattern, v)
    values, sums = group_keys(v), []
    for (start, stop, block), weights in zip(_runs(v.shape[1]), pattern, strict=True):
        grouped = weights.reshape(*values.shape[:2], -1, *weights.shape[2:])

        def attend(
            begin: Position, grouped: Array = grouped, start: int = start, block: int = block
        ) -> Float32[Array, "B K G T H"]:
            weights = jax.lax.dynamic_slice_in_dim(grouped, begin - start, block, axis=3)
            return weighted_sums(weights, _cut(values, window, begin, block))

        sums.append(map_blocks(attend, start, stop, block))
    return ungroup(jnp.concatenate(sums, axis=3)).astype(v.dtype)


def covers(window: Window, length: int) -> bool:
    """Returns whether every query of so many tokens sees all keys up to its own."""
    return window.sinks + window.recent >= length


def _runs(length: int) -> list[tuple[int, int, int]]:
    """Returns (start, stop, block) of the whole blocks of queries, and of what is left over."""
    rest = length % BLOCK
    runs = [(0, length - rest, BLOCK), (length - rest, length, rest)]
    return [run for run in runs if run[0] < run[1]]


def _block_scores(
    q: Float[Array, "B K G T H"],
    k: Float[Array, "B K T H"],
    window: Window,
    begin: Position,
    block: int,
) -> tuple[Float32[Array, "B K G {block} S"], Bool[Array, "{block} S"]]:
    """Returns a block's scores on its sinks and band, from query `begin` on, and who sees whom."""
    start, size = _band(window, begin, block, k.shape[2])
    t = begin + jnp.arange(block, dtype=jnp.int32)[:, None]
    sinks = jnp.arange(window.sinks, dtype=jnp.int32)[None, :]
    band = start + jnp.arange(size, dtype=jnp.int32)[None, :]
    recent = (band <= t) & (band > t - window.recent)
    visible = jnp.concatenate([sinks <= t - window.recent, recent], axis=1)
    q = jax.lax.dynamic_slice_in_dim(q, begin, block, axis=3)
    return scores(q, _cut(k, window, begin, block)), visible


def _cut(
    x: Float[Array, "B K T M"], window: Window, begin: Position, block: int
) -> Float[Array, "B K S M"]:
    """Returns the sinks and the band of one block, of keys or values."""
    start, size = _band(window, begin, block, x.shape[2])
    band = jax.lax.dynamic_slice_in_dim(x, start, size, axis=2)
    return jnp.concatenate([x[:, :, : window.sinks], band], axis=2)


def _band(window: Window, begin: Position, block: int, length: int) -> tuple[Array, int]:
    """Returns the first position and the number of recent keys that a block of queries sees."""
    size = min(window.recent - 1 + block, length)
    return jnp.clip(begin + block - size, 0, length - size), size
