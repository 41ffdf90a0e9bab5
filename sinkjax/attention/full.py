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

from sinkjax.cache import slot_scores

BLOCK = 128
"""Queries a block. Of 64 to 512, the fastest on a CPU at 512 and 1,024 tokens."""

MAX_SPANS = 8
"""Unrolled steps of growing key length: the compile time's bound, at 1/16 of the scores wasted."""


def causal_attention(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """Σ_{s<=t} softmax(q_t . k_s / sqrt(H)) v_s for every head.

    Args:
      q: [B, T, N, H], rotated.
      k: [B, T, K, H], rotated; head n reads key/value head n // (N / K).
      v: [B, T, K, H].

    Returns:
      [B, T, N, H] in v's dtype, before `o_proj`. Scores and softmax are float32.
    """
    return _attend(q, k, v, observed=())[0]


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
    return _attend(q, k, v, observed=tuple(key_positions))


def cached_weights(
    q: jax.Array, keys: jax.Array, kv_heads: int, positions: jax.Array, t: jax.Array
) -> jax.Array:
    """How one query a row attends to what a store holds, its own token included.

    Args:
      q: [B, 1, N, H], rotated.
      keys: a store [B, K, H, S], or a view of one.
      kv_heads: K.
      positions: int32 [B, S], of the slots' tokens; beyond t where a slot is empty.
      t: int32 [B], of the queries.

    Returns:
      float32 [B, K, G, S]; rows sum to 1.
    """
    batch, _, num_heads, head_dim = q.shape
    q = _scale(q).reshape(batch, kv_heads, num_heads // kv_heads, head_dim)
    visible = positions <= t[:, None]
    scores = jnp.where(visible[:, None, None], slot_scores(q, keys), -jnp.inf)
    return jax.nn.softmax(scores, axis=-1)


def _attend(
    q: jax.Array, k: jax.Array, v: jax.Array, observed: tuple[int, ...]
) -> tuple[jax.Array, jax.Array]:
    """Outputs [B, T, N, H] and log-odds [B, N, T, C]."""
    q_shape = batch, length, num_heads, head_dim = q.shape
    kv_heads = k.shape[2]
    group = num_heads // kv_heads
    q = _scale(q)
    # [B, K, G, T, H]: the queries of one key/value head lie together, so that each product below is
    # one matrix product a key/value head instead of one a query head.
    q = q.reshape(batch, length, kv_heads, group, head_dim).transpose(0, 2, 3, 1, 4)
    k, v = k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3)  # [B, K, S, H]
    early = max(observed, default=-1) + 1
    values = _with_counters(v, early)

    sums = []
    for start, stop, block in _spans(length):
        attend = functools.partial(_attend_block, q, k[:, :, :stop], values[:, :, :stop], block)
        if stop - start == block:
            sums.append(attend(start))
        else:
            blocks = jax.lax.map(attend, jnp.arange(start, stop, block))
            sums.append(_join_blocks(blocks))
    sums = jnp.concatenate(sums, axis=3)
    output, weights = sums[..., :head_dim], sums[..., head_dim:]
    output = output / weights.sum(axis=-1, keepdims=True)
    output = output.astype(v.dtype).transpose(0, 3, 1, 2, 4).reshape(q_shape)
    return output, _log_odds(weights, observed).reshape(batch, num_heads, length, len(observed))


def _scale(q: jax.Array) -> jax.Array:
    """q / sqrt(H), once a query: scaling the scores would touch T² numbers a head, not T·H."""
    return (q.astype(jnp.float32) / math.sqrt(q.shape[-1])).astype(q.dtype)


def _with_counters(v: jax.Array, early: int) -> jax.Array:
    """Values with columns that make the matrix product sum attention weights as it sums values.

    One column for each of the first `early` keys, which picks that key's weight, and one for the
    sum of all others. Reading the weights themselves would make XLA keep or compute them twice:
    at 1,024 tokens that doubles a layer's attention time on a CPU.

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


def _spans(length: int) -> list[tuple[int, int, int]]:
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
    q: jax.Array, k: jax.Array, values: jax.Array, block: int, begin: jax.Array | int
) -> jax.Array:
    """One block of queries, from `begin` on, against keys 0..S-1.

    Args:
      q: [B, K, G, T, H], scaled; all queries.
      k: [B, K, S, H].
      values: [B, K, S, M], any columns.
      block: queries in the block.
      begin: position of its first query.

    Returns:
      float32 [B, K, G, block, M], Σ_s exp(score_ts - top_t) values_s, where top_t is the row's
      largest score.
    """
    q = jax.lax.dynamic_slice_in_dim(q, begin, block, axis=3)
    batch, kv_heads, group, _, head_dim = q.shape
    rows = (batch, kv_heads, group * block)
    scores = jnp.einsum(
        "bkth,bksh->bkts", q.reshape(*rows, head_dim), k, preferred_element_type=jnp.float32
    ).reshape(batch, kv_heads, group, block, k.shape[2])
    visible = begin + jnp.arange(block)[:, None] >= jnp.arange(k.shape[2])[None, :]
    scores = jnp.where(visible, scores, -jnp.inf)
    weights = jnp.exp(scores - scores.max(axis=-1, keepdims=True)).astype(values.dtype)
    sums = jnp.einsum(
        "bkts,bksm->bktm",
        weights.reshape(*rows, k.shape[2]),
        values,
        preferred_element_type=jnp.float32,
    )
    return sums.reshape(batch, kv_heads, group, block, values.shape[-1])


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


def _join_blocks(x: jax.Array) -> jax.Array:
    """[blocks, B, K, G, T, ...] to [B, K, G, blocks · T, ...]."""
    x = jnp.moveaxis(x, 0, 3)
    return x.reshape(*x.shape[:3], x.shape[3] * x.shape[4], *x.shape[5:])
