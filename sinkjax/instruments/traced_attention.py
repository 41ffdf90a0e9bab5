"""Paths as traced numbers: one program for every choice of `full`, `window` and `sink` heads.

What is compiled here does the work of `full` whatever is chosen. It is for searching and training:
a choice that has been made is a static mask, and `sinkjax.specialize` takes its work away.
"""

import functools

import jax
import jax.numpy as jnp
from flax import struct

from sinkjax.attention.blocks import (
    group_keys,
    group_queries,
    map_blocks,
    scores,
    ungroup,
    weighted_sums,
)
from sinkjax.attention.full import query_spans, with_counters
from sinkjax.attention.products import PLAIN


@struct.dataclass
class Selection:
    """The paths of the N heads of a layer, or of L layers where a leading axis [L] is in front.

    A head's output is attends · (its softmax over s < sinks and t - recent < s <= t) plus
    (1 - attends) · (v_0 at t = 0, first · v_0 + offset at t >= 1). A pytree.

    Attributes:
      sinks, recent: int32 [N]; all earlier positions are seen where recent >= T.
      attends: float32 [N], 1 for `full` and `window`, 0 for `sink`; a gate may lie between.
      first: float32 [N], 1 for `sink(first)`, 0 for `zero` and `mean`.
      offset: float32 [N, H], the means of `sink(mean)`, 0 for others.
    """

    sinks: jax.Array
    recent: jax.Array
    attends: jax.Array
    first: jax.Array
    offset: jax.Array


def selected_attention(q: jax.Array, k: jax.Array, v: jax.Array, selection: Selection) -> jax.Array:
    """Every head's output under its own path.

    Args:
      q: [B, T, N, H], rotated.
      k: [B, T, K, H], rotated; head n reads key/value head n // (N / K).
      v: [B, T, K, H].
      selection: of this layer.

    Returns:
      [B, T, N, H] in v's dtype, before `o_proj`. Scores and softmax are float32.
    """
    attended = windowed_attention(q, k, v, selection.sinks, selection.recent)
    share = selection.attends[None, None, :, None].astype(v.dtype)
    return share * attended + (1 - share) * sink_fills(v, selection.first, selection.offset)


def windowed_attention(
    q: jax.Array, k: jax.Array, v: jax.Array, sinks: jax.Array, recent: jax.Array
) -> jax.Array:
    """Attention of each head to s < sinks and t - recent < s <= t; int32 [N] both.

    q, k, v and what is returned are as in `selected_attention`.
    """
    queries, keys, values = (
        group_queries(q, k.shape[2]),
        group_keys(k),
        with_counters(group_keys(v), 0),
    )
    grouped = (1, k.shape[2], q.shape[2] // k.shape[2], 1, 1)
    sinks, recent = sinks.reshape(grouped), recent.reshape(grouped)
    sums = []
    for start, stop, block in query_spans(q.shape[1]):
        attend = functools.partial(
            _attend_block, queries, keys[:, :, :stop], values[:, :, :stop], sinks, recent, block
        )
        sums.append(map_blocks(attend, start, stop, block))
    sums = jnp.concatenate(sums, axis=3)
    return ungroup((sums[..., :-1] / sums[..., -1:]).astype(v.dtype))


def sink_fills(v: jax.Array, first: jax.Array, offset: jax.Array) -> jax.Array:
    """What `sink` heads put in place of their outputs.

    Args:
      v: [B, T, K, H].
      first: float32 [N]. offset: float32 [N, H].

    Returns:
      [B, T, N, H] in v's dtype: v_0 at t = 0, first · v_0 + offset at t >= 1.
    """
    v0 = jnp.repeat(v[:, :1], first.shape[0] // v.shape[2], axis=2)
    later = first[None, None, :, None].astype(v.dtype) * v0 + offset[None, None].astype(v.dtype)
    is_first = (jnp.arange(v.shape[1]) == 0)[None, :, None, None]
    return jnp.where(is_first, v0, later)


def _attend_block(
    q: jax.Array,
    k: jax.Array,
    values: jax.Array,
    sinks: jax.Array,
    recent: jax.Array,
    block: int,
    begin: jax.Array | int,
) -> jax.Array:
    """One block of queries, from `begin` on: as the `full` path's, each head with its window.

    Args:
      q: [B, K, G, T, H], scaled; all queries.
      k: [B, K, S, H]. values: [B, K, S, M].
      sinks, recent: int32 [1, K, G, 1, 1].
    """
    q = jax.lax.dynamic_slice_in_dim(q, begin, block, axis=3)
    t = (begin + jnp.arange(block, dtype=jnp.int32)).reshape(1, 1, 1, block, 1)
    s = jnp.arange(k.shape[2], dtype=jnp.int32).reshape(1, 1, 1, 1, -1)
    visible = (s <= t) & ((s < sinks) | (s > t - recent))
    return weighted_sums(PLAIN.unnormalized(scores(q, k), visible), values)
