"""The `full` path: causal attention in blocks of queries, so that memory grows with T, not T².

One body serves the model and the measurement. The measurement asks, beside the outputs, for the
log-odds of the attention on a few early keys, summed by the same matrix product as the values; the
[T, S] maps are never kept.
"""

import functools
import itertools
import math
from collections.abc import Sequence

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
from sinkjax.attention.products import PLAIN, Products

BLOCK = 128
"""Queries a block. Of 64 to 512, the fastest on a CPU at 512 and 1,024 tokens."""

MAX_SPANS = 8
"""Unrolled steps of growing key length: the compile time's bound, at 1/16 of the scores wasted."""


def causal_attention(
    q: jax.Array, k: jax.Array, v: jax.Array, products: Products = PLAIN
) -> jax.Array:
    """Σ_{s<=t} softmax(q_t . k_s / sqrt(H)) v_s for every head.

    Args:
      q: [B, T, N, H], rotated.
      k: [B, T, K, H], rotated; head n reads key/value head n // (N / K).
      v: [B, T, K, H].
      products: how they are written.

    Returns:
      [B, T, N, H] in v's dtype, before `o_proj`. Scores and softmax are float32.
    """
    return _attend(q, k, v, (), products)[0]


def observed_causal_attention(
    q: jax.Array, k: jax.Array, v: jax.Array, key_positions: Sequence[int]
) -> tuple[jax.Array, jax.Array]:
    """`causal_attention`, and how much of it falls on a few early keys.

    Args:
      q, k, v: as for `causal_attention`.
      key_positions: C positions of keys, static.

    Returns:
      outputs: [B, T, N, H] as of `causal_attention`.
      log_odds: float32 [B, N, T, C], ln(a / (1 - a)) of the attention a of query t on key c. Exact
        where 1 - a would round to 0, until a or 1 - a is below 1e-38, where it stays at ±87; +inf
        where the key is all that the query sees, -inf where the query does not see the key.
    """
    return _attend(q, k, v, tuple(key_positions), PLAIN)


Pattern = tuple[jax.Array, ...]
"""Weights [B, N, T, S] of runs of queries, one array a run, whose last query is S - 1."""


def causal_pattern(q: jax.Array, k: jax.Array, dtype: jnp.dtype) -> Pattern:
    """The attention of `causal_attention` itself, in `dtype`, in memory that grows with T²."""
    queries, keys, runs = group_queries(q, k.shape[2]), group_keys(k), []
    for start, stop, _ in query_spans(q.shape[1]):
        visible = jnp.arange(start, stop)[:, None] >= jnp.arange(stop)[None, :]
        found = scores(queries[:, :, :, start:stop], keys[:, :, :stop])
        weights = jax.nn.softmax(jnp.where(visible, found, -jnp.inf), axis=-1).astype(dtype)
        runs.append(weights.reshape(q.shape[0], q.shape[2], stop - start, stop))
    return tuple(runs)


def apply_causal_pattern(pattern: Pattern, v: jax.Array) -> jax.Array:
    """A pattern of N heads on values [B, T, K, H] -> [B, T, N, H] in v's dtype."""
    values, sums = group_keys(v), []
    for weights in pattern:
        stop = weights.shape[-1]
        grouped = weights.reshape(*values.shape[:2], -1, *weights.shape[2:])
        sums.append(weighted_sums(grouped, values[:, :, :stop]))
    return ungroup(jnp.concatenate(sums, axis=3)).astype(v.dtype)


def cached_scores(q: jax.Array, keys: jax.Array, kv_heads: int, products: Products) -> jax.Array:
    """q . k of one query a row and every slot of a store.

    Args:
      q: [B, 1, N, H], rotated and scaled.
      keys: a store [B, K, S, H], or a view of one.
      kv_heads: K.
      products: how they are written.

    Returns:
      float32 [B, N, S].
    """
    queries = q.reshape(q.shape[0], kv_heads, -1, q.shape[-1])
    found = products.slot_scores(queries, keys)
    return found.reshape(q.shape[0], q.shape[2], -1)


def cached_weights(
    found: jax.Array, positions: jax.Array, t: jax.Array, products: Products
) -> jax.Array:
    """How queries attend to what a store holds, their own token included.

    Args:
      found: float32 [B, N, S], of `cached_scores`; of several stores side by side, where their
        slots hold the same positions.
      positions: int32 [B, S], of the slots' tokens; beyond t where a slot is empty.
      t: int32 [B], of the queries.
      products: how they are written.

    Returns:
      float32 [B, N, S]; rows sum to 1.
    """
    weights = products.unnormalized(found, (positions <= t[:, None])[:, None])
    return weights / weights.sum(axis=-1, keepdims=True)


def _attend(
    q: jax.Array, k: jax.Array, v: jax.Array, observed: tuple[int, ...], products: Products
) -> tuple[jax.Array, jax.Array]:
    """Outputs [B, T, N, H] and log-odds [B, N, T, C]."""
    early = max(observed, default=-1) + 1
    queries = products.settle(group_queries(q, k.shape[2]))
    keys = products.settle(group_keys(k))
    values = with_counters(group_keys(v), early) if early else products.counted(group_keys(v))
    values = products.settle(values)
    sums = []
    for start, stop, block in query_spans(q.shape[1]):
        attend = functools.partial(
            _attend_block, queries, keys[:, :, :stop], values[:, :, :stop], products, block
        )
        sums.append(map_blocks(attend, start, stop, block))
    sums = jnp.concatenate(sums, axis=3)
    outputs, weights = sums[..., : v.shape[-1]], sums[..., v.shape[-1] :]
    outputs = ungroup((outputs / weights.sum(axis=-1, keepdims=True)).astype(v.dtype))
    log_odds = _log_odds(weights, observed)
    return outputs, log_odds.reshape(q.shape[0], q.shape[2], q.shape[1], len(observed))


def with_counters(v: jax.Array, early: int) -> jax.Array:
    """Values with columns that make the matrix product sum attention weights as it sums values.

    One column for each of the first `early` keys, which picks that key's weight, and one for the
    sum of all others, as `Products.counted` has it alone.

    Args:
      v: [B, K, S, H].

    Returns:
      [B, K, S, H + early + 1]; float32 where keys are observed, so that their weights are.
    """
    length = v.shape[2]
    picks = jnp.eye(length, early, dtype=jnp.float32)
    others = 1 - picks.sum(axis=1, keepdims=True)
    counters = jnp.concatenate([picks, others], axis=1)
    counters = jnp.broadcast_to(counters, (*v.shape[:3], early + 1))
    dtype = jnp.float32 if early else v.dtype
    return jnp.concatenate([v.astype(dtype), counters.astype(dtype)], axis=-1)


def query_spans(length: int) -> list[tuple[int, int, int]]:
    """(start, stop, block) of runs of queries that share one key length, `stop`.

    Every run but the last is a whole number of blocks; what is left over is a block of its own.
    """
    whole = length // BLOCK
    blocks_a_span = max(1, math.ceil(whole / MAX_SPANS))
    edges = [*range(0, whole, blocks_a_span), whole]
    spans = [(a * BLOCK, b * BLOCK, BLOCK) for a, b in itertools.pairwise(edges)]
    rest = length - whole * BLOCK
    return spans + ([(length - rest, length, rest)] if rest else [])


def _attend_block(
    q: jax.Array,
    k: jax.Array,
    values: jax.Array,
    products: Products,
    block: int,
    begin: jax.Array | int,
) -> jax.Array:
    """One block of queries, from `begin` on, against keys 0..S-1.

    Args:
      q: [B, K, G, T, H], scaled; all queries.
      k: [B, K, S, H].
      values: [B, K, S, M], any columns, as `products` counts them.
      products: how they are written.
      block: queries in the block.
      begin: position of its first query.

    Returns:
      float32 [B, K, G, block, M], Σ_s exp(score_ts - top_t) values_s, where top_t is the row's
      largest score.
    """
    q = jax.lax.dynamic_slice_in_dim(q, begin, block, axis=3)
    visible = begin + jnp.arange(block)[:, None] >= jnp.arange(k.shape[2])[None, :]
    return products.sum_counted(products.unnormalized(scores(q, k), visible), values)


def _log_odds(weights: jax.Array, observed: tuple[int, ...]) -> jax.Array:
    """ln(a / (1 - a)) = ln w_c - ln Σ_{s≠c} w_s, with w any multiple of a row's attention.

    The sum over the other keys is made of them alone: 1 - a would lose all digits where nearly
    everything falls on one key, which is what is being measured.

    Args:
      weights: float32 [B, K, G, T, early + 1]: of each early key, and of all others together.
      observed: key positions below `early`.

    Returns:
      float32 [B, K, G, T, C].
    """
    tiny = jnp.finfo(jnp.float32).tiny
    position = jnp.arange(weights.shape[3])
    columns = [jnp.zeros((*weights.shape[:-1], 0), jnp.float32)]
    for c in observed:
        others = jnp.delete(weights, c, axis=-1).sum(axis=-1)
        odds = jnp.log(jnp.maximum(weights[..., c], tiny)) - jnp.log(jnp.maximum(others, tiny))
        odds = jnp.where(position < c, -jnp.inf, odds)
        odds = jnp.where((position == 0) & (c == 0), jnp.inf, odds)
        columns.append(odds[..., None])
    return jnp.concatenate(columns, axis=-1)
