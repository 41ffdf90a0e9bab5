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
from jaxtyping import Array, DTypeLike, Float, Float32, Int32

from sinkjax.attention.blocks import (
    PerHead,
    PerKvHead,
    Position,
    capped,
    group_keys,
    group_queries,
    map_blocks,
    scores,
    sees,
    ungroup,
    weighted_sums,
)
from sinkjax.attention.products import PLAIN, Products
from sinkjax.masks.paths import Full, Window

BLOCK = 128
"""Queries a block. Of 64 to 512, the fastest on a CPU at 512 and 1,024 tokens."""

MAX_SPANS = 8
"""Unrolled steps of growing key length: the compile time's bound, at 1/16 of the scores wasted."""


Pattern = tuple[Float[Array, "B _ _ _"], ...]
"""Weights [B, N, T, S] of runs of queries, one array a run, whose last query is S - 1."""


def causal_attention(
    q: PerHead,
    k: PerKvHead,
    v: PerKvHead,
    products: Products = PLAIN,
    cap: float | None = None,
) -> PerHead:
    """Returns Σ_{s<=t} softmax(q_t . k_s / sqrt(H)) v_s for every head, in v's dtype.

    Scores and softmax are float32. Where there is a cap, here as in all of attention, scores are
    `capped`.
    """
    return _attend(q, k, v, (), products, Full(), cap)[0]


def stored_pattern(
    q: PerHead,
    keys: Float[Array, "B K S H"],
    start: Position,
    dtype: DTypeLike,
    cap: float | None,
    span: Full | Window = Full(),  # noqa: B008
) -> Pattern:
    """Returns how queries from `start` on weigh a store's keys, in `dtype`, in memory of T·S."""
    t = start + jnp.arange(q.shape[1], dtype=jnp.int32)[:, None]
    visible = sees(t, jnp.arange(keys.shape[2], dtype=jnp.int32)[None, :], span)
    seen = scores(group_queries(q, keys.shape[1]), keys, cap)
    weights = jax.nn.softmax(jnp.where(visible, seen, -jnp.inf), axis=-1).astype(dtype)
    return (weights.reshape(*q.shape[:1], q.shape[2], q.shape[1], keys.shape[2]),)


def apply_stored_pattern(pattern: Pattern, values: Float[Array, "B K S H"]) -> PerHead:
    """Returns the outputs of a pattern on these values, in their dtype."""
    sums = []
    for weights in pattern:
        grouped = weights.reshape(*values.shape[:2], -1, *weights.shape[2:])
        sums.append(weighted_sums(grouped, values[:, :, : weights.shape[-1]]))
    return ungroup(jnp.concatenate(sums, axis=3)).astype(values.dtype)


def observed_causal_attention(
    q: PerHead,
    k: PerKvHead,
    v: PerKvHead,
    key_positions: Sequence[int],
    span: Full | Window,
    cap: float | None = None,
) -> tuple[PerHead, Float32[Array, "B N T C"]]:
    """Returns `causal_attention`, and how much of it falls on C early keys.

    In a layer with a window of the model's own, its span, queries see no more than that.

    The second are the log-odds ln(a / (1 - a)) of the attention a of query t on key c. They are
    exact where 1 - a would round to 0, until a or 1 - a is below 1e-38, where they stay at ±87;
    +inf where the key is all that the query sees, -inf where the query comes before the key.
    """
    return _attend(q, k, v, tuple(key_positions), PLAIN, span, cap)


def causal_pattern(q: PerHead, k: PerKvHead, dtype: DTypeLike, cap: float | None = None) -> Pattern:
    """Returns the weights of `causal_attention`, in `dtype`, in memory that grows with T²."""
    keys = group_keys(k)
    return tuple(
        run
        for start, stop, _ in query_spans(q.shape[1])
        for run in stored_pattern(q[:, start:stop], keys[:, :, :stop], start, dtype, cap)
    )


def cached_scores(
    q: Float[Array, "B 1 N H"],
    keys: Float[Array, "*BK S H"],
    kv_heads: int,
    products: Products,
    cap: float | None,
) -> Float32[Array, "B N S"]:
    """Returns q . k of one scaled query a row and every slot of a store, or of a view of one."""
    queries = q.reshape(q.shape[0], kv_heads, -1, q.shape[-1])
    scores = products.slot_scores(queries, keys).reshape(q.shape[0], q.shape[2], -1)
    return capped(scores, cap)


def cached_weights(
    scores: Float32[Array, "B N S"],
    positions: Int32[Array, "B S"],
    t: Int32[Array, " B"],
    products: Products,
) -> Float32[Array, "B N S"]:
    """Returns how queries attend to what a store holds, their own token included: rows sum to 1.

    Args:
      scores: of `cached_scores`; of several stores side by side, where their slots hold the same
        positions.
      positions: of the slots' tokens; beyond t where a slot is empty.
      t: of the queries.
      products: how they are written.
    """
    weights = products.unnormalized(scores, (positions <= t[:, None])[:, None])
    return weights / weights.sum(axis=-1, keepdims=True)


def _attend(
    q: PerHead,
    k: PerKvHead,
    v: PerKvHead,
    observed: tuple[int, ...],
    products: Products,
    span: Full | Window,
    cap: float | None,
) -> tuple[PerHead, Float32[Array, "B N T C"]]:
    early = max(observed, default=-1) + 1
    queries = products.settle(group_queries(q, k.shape[2]))
    keys = products.settle(group_keys(k))
    values = _with_counters(group_keys(v), early) if early else products.counted(group_keys(v))
    values = products.settle(values)
    runs = []
    for start, stop, block in query_spans(q.shape[1]):
        of_run = keys[:, :, :stop], values[:, :, :stop]
        attend = functools.partial(_attend_block, queries, *of_run, products, span, cap, block)
        runs.append(map_blocks(attend, start, stop, block))
    sums = jnp.concatenate(runs, axis=3)
    outputs, weights = sums[..., : v.shape[-1]], sums[..., v.shape[-1] :]
    outputs = ungroup((outputs / weights.sum(axis=-1, keepdims=True)).astype(v.dtype))
    log_odds = _log_odds(weights, observed)
    return outputs, log_odds.reshape(q.shape[0], q.shape[2], q.shape[1], len(observed))


def _with_counters(v: Float[Array, "B K S H"], early: int) -> Float[Array, "B K S H+{early}+1"]:
    """Returns values with columns that make the matrix product sum weights as it sums values.

    One column for each of the first `early` keys, which picks that key's weight, and one for the
    sum of all others, as `Products.counted` has it alone. Float32, so that weights are.
    """
    length = v.shape[2]
    picks = jnp.eye(length, early, dtype=jnp.float32)
    others = 1 - picks.sum(axis=1, keepdims=True)
    counters = jnp.concatenate([picks, others], axis=1)
    counters = jnp.broadcast_to(counters, (*v.shape[:3], early + 1))
    return jnp.concatenate([v.astype(jnp.float32), counters], axis=-1)


def query_spans(length: int) -> list[tuple[int, int, int]]:
    """Returns (start, stop, block) of runs of queries that share one key length, `stop`.

    Every run but the last is a whole number of blocks; what is left over is a block of its own.
    """
    whole = length // BLOCK
    blocks_a_span = max(1, math.ceil(whole / MAX_SPANS))
    edges = [*range(0, whole, blocks_a_span), whole]
    spans = [(a * BLOCK, b * BLOCK, BLOCK) for a, b in itertools.pairwise(edges)]
    rest = length - whole * BLOCK
    return spans + ([(length - rest, length, rest)] if rest else [])


def _attend_block(
    q: Float[Array, "B K G T H"],
    k: Float[Array, "B K S H"],
    values: Float[Array, "B K S M"],
    products: Products,
    span: Full | Window,
    cap: float | None,
    block: int,
    begin: Position,
) -> Float32[Array, "B K G {block} M"]:
    """Returns Σ_s exp(score_ts - top_t) values_s of one block of queries, from `begin` on.

    top_t is the row's largest score; q are all queries, scaled, and values any columns, as
    `products` counts them.
    """
    q = jax.lax.dynamic_slice_in_dim(q, begin, block, axis=3)
    t = begin + jnp.arange(block, dtype=jnp.int32)[:, None]
    visible = sees(t, jnp.arange(k.shape[2], dtype=jnp.int32)[None, :], span)
    return products.sum_counted(products.unnormalized(scores(q, k, cap), visible), values)


def _log_odds(
    weights: Float32[Array, "B K G T M"], observed: tuple[int, ...]
) -> Float32[Array, "B K G T C"]:
    """Returns ln(a / (1 - a)) = ln w_c - ln Σ_{s≠c} w_s, w any multiple of a row's attention.

    The sum over the other keys is made of them alone: 1 - a would lose all digits where nearly
    everything falls on one key, which is what is being measured. The last of the M weights is that
    of all keys beyond the first M - 1 together.
    """
    tiny = jnp.finfo(jnp.float32).tiny
    position = jnp.arange(weights.shape[3], dtype=jnp.int32)
    columns = [jnp.zeros((*weights.shape[:-1], 0), jnp.float32)]
    for c in observed:
        others = jnp.delete(weights, c, axis=-1).sum(axis=-1)
        odds = jnp.log(jnp.maximum(weights[..., c], tiny)) - jnp.log(jnp.maximum(others, tiny))
        odds = jnp.where(position < c, -jnp.inf, odds)
        odds = jnp.where((position == 0) & (c == 0), jnp.inf, odds)
        columns.append(odds[..., None])
    return jnp.concatenate(columns, axis=-1)
