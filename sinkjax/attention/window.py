"""The `window` path: the first tokens and the most recent ones, in work that grows with T·(c + w).

Queries come in blocks. A block sees two runs of keys, cut out by slices: the sinks, and a band from
the oldest key that its first query sees to its last query. A sink among a query's recent keys
counts there and not among the sinks, so that no key counts twice.

On a CPU wide windows of long prompts come in blocks of keys in their place: `attention.stream`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, DTypeLike, Float, Float32

from sinkjax.attention.blocks import (
    PerHead,
    PerKvHead,
    Position,
    block_runs,
    group_keys,
    group_queries,
    map_blocks,
    scores,
    sees_apart,
    ungroup,
    weighted_sums,
)
from sinkjax.attention.full import Pattern
from sinkjax.attention.products import PLAIN, Products
from sinkjax.masks.paths import Window

BLOCK = 64
"""Queries a block."""


class Seen(NamedTuple):
    """Keys or values of one window, for queries that follow each other.

    Attributes:
      sinks: the first c.
      rest: those of consecutive positions, the queries' own last.
    """

    sinks: Float[Array, "B K c M"]
    rest: Float[Array, "B K S M"]

    @classmethod
    def of_prompt(cls, x: Float[Array, "B K T M"], window: Window) -> "Seen":
        """Returns what a whole prompt's queries see of its own keys or values."""
        return cls(x[:, :, : window.sinks], x)


def window_attention(
    q: PerHead,
    k: PerKvHead,
    v: PerKvHead,
    window: Window,
    products: Products = PLAIN,
    cap: float | None = None,
) -> PerHead:
    """Returns attention to s < c and t - w < s <= t alone, in v's dtype.

    Within a window of the model's own, s > t - W holds too. Scores and softmax are float32. The
    window leaves something out of T tokens: see `sinkjax.masks.paths.reach`.
    """
    keys, values = (Seen.of_prompt(products.settle(group_keys(x)), window) for x in (k, v))
    return seen_attention(q, keys, values, window, 0, products, cap)


def seen_attention(
    q: PerHead,
    keys: Seen,
    values: Seen,
    window: Window,
    start: Position,
    products: Products,
    cap: float | None,
) -> PerHead:
    """Returns `window_attention` of queries from position `start` on, the last of `rest`."""
    queries = products.settle(group_queries(q, keys.rest.shape[1]))
    counted = Seen(*(products.settle(products.counted(x)) for x in values))
    runs = []
    for begin, stop, block in block_runs(q.shape[1], BLOCK):

        def attend(begin: Position, block: int = block) -> Float32[Array, "B K G T M"]:
            weights = products.unnormalized(
                *_block_scores(queries, keys, window, start, begin, block, cap)
            )
            return products.sum_counted(weights, _cut(counted, q.shape[1], window, begin, block))

        runs.append(map_blocks(attend, begin, stop, block))
    sums = jnp.concatenate(runs, axis=3)
    return ungroup((sums[..., :-1] / sums[..., -1:]).astype(values.rest.dtype))


def seen_pattern(
    q: PerHead,
    keys: Seen,
    window: Window,
    start: Position,
    dtype: DTypeLike,
    cap: float | None,
) -> Pattern:
    """Returns the weights of `seen_attention`, in `dtype`; S is the sinks and the band."""
    queries, runs = group_queries(q, keys.rest.shape[1]), []
    for begin, stop, block in block_runs(q.shape[1], BLOCK):

        def attend(begin: Position, block: int = block) -> Float[Array, "B K G T S"]:
            seen, visible = _block_scores(queries, keys, window, start, begin, block, cap)
            return jax.nn.softmax(jnp.where(visible, seen, -jnp.inf), axis=-1).astype(dtype)

        weights = map_blocks(attend, begin, stop, block)
        runs.append(weights.reshape(q.shape[0], q.shape[2], *weights.shape[3:]))
    return tuple(runs)


def apply_seen_pattern(pattern: Pattern, values: Seen, window: Window) -> PerHead:
    """Returns the outputs of a `seen_pattern` on these values, in their dtype."""
    sums, length = [], sum(weights.shape[2] for weights in pattern)
    for (start, stop, block), weights in zip(block_runs(length, BLOCK), pattern, strict=True):
        grouped = weights.reshape(*values.rest.shape[:2], -1, *weights.shape[2:])

        def attend(
            begin: Position, grouped: Array = grouped, start: int = start, block: int = block
        ) -> Float32[Array, "B K G T H"]:
            weights = jax.lax.dynamic_slice_in_dim(grouped, begin - start, block, axis=3)
            return weighted_sums(weights, _cut(values, length, window, begin, block))

        sums.append(map_blocks(attend, start, stop, block))
    return ungroup(jnp.concatenate(sums, axis=3)).astype(values.rest.dtype)


def _block_scores(
    q: Float[Array, "B K G T H"],
    keys: Seen,
    window: Window,
    start: Position,
    begin: Position,
    block: int,
    cap: float | None,
) -> tuple[Float32[Array, "B K G {block} S"], Bool[Array, "{block} S"]]:
    """Returns a block's scores on its sinks and band, from query `begin` on, and who sees whom.

    `start` is the position of the first of all queries.
    """
    length, earlier = q.shape[3], keys.rest.shape[2] - q.shape[3]
    at, size = _band(keys, length, window, begin, block)
    t = start + begin + jnp.arange(block, dtype=jnp.int32)[:, None]
    sinks = jnp.arange(window.sinks, dtype=jnp.int32)[None, :]
    band = start - earlier + at + jnp.arange(size, dtype=jnp.int32)[None, :]
    first, recent = sees_apart(t, sinks, band, window)
    if earlier:
        recent &= band >= 0
    visible = jnp.concatenate([first, recent], axis=1)
    q = jax.lax.dynamic_slice_in_dim(q, begin, block, axis=3)
    return scores(q, _cut(keys, length, window, begin, block), cap), visible


def _cut(
    x: Seen, length: int, window: Window, begin: Position, block: int
) -> Float[Array, "B K S M"]:
    """Returns the sinks and the band of one block of T queries, of keys or values."""
    at, size = _band(x, length, window, begin, block)
    band = jax.lax.dynamic_slice_in_dim(x.rest, at, size, axis=2)
    return jnp.concatenate([x.sinks, band], axis=2)


def _band(x: Seen, length: int, window: Window, begin: Position, block: int) -> tuple[Array, int]:
    """Returns where in `rest` the recent keys of a block of queries begin, and their number."""
    whole = x.rest.shape[2]
    size = min(window.recent - 1 + block, whole)
    return jnp.clip(whole - length + begin + block - size, 0, whole - size), size
