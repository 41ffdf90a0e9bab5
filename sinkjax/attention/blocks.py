"""What the paths share: heads by their key/value head, queries in blocks, and the two products.

The queries of one key/value head lie together, so that each product is one matrix product a
key/value head and not one a query head.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int

from sinkjax.masks.paths import Full, Window

PerHead = Float[Array, "B T N H"]
"""Rotated queries, or the heads' outputs before the output projection."""

PerKvHead = Float[Array, "B T K H"]
"""Rotated keys, or values; query head n reads those of key/value head n // (N / K)."""

Position = Int[Array, ""] | int
"""The place of a first query, or tokens before it: an array where only a run knows the number."""


Blocks = TypeVar("Blocks")


def group_queries(q: PerHead, kv_heads: int) -> Float[Array, "B K G T H"]:
    """Returns the queries by key/value head, scaled by 1 / sqrt(H).

    Scaling the queries touches T·H numbers a head, scaling the scores T².
    """
    batch, length, num_heads, head_dim = q.shape
    q = scale_queries(q).reshape(batch, length, kv_heads, num_heads // kv_heads, head_dim)
    return q.transpose(0, 2, 3, 1, 4)


def scale_queries(q: PerHead) -> PerHead:
    """Returns q / sqrt(H), in q's dtype."""
    return (q.astype(jnp.float32) / math.sqrt(q.shape[-1])).astype(q.dtype)


def group_keys(k: PerKvHead) -> Float[Array, "B K T H"]:
    """Returns keys or values by key/value head."""
    return k.transpose(0, 2, 1, 3)


def ungroup(outputs: Float[Array, "B K G T H"]) -> PerHead:
    """Returns outputs by query head, as the output projection takes them."""
    batch, kv_heads, group, length, head_dim = outputs.shape
    return outputs.transpose(0, 3, 1, 2, 4).reshape(batch, length, kv_heads * group, head_dim)


def pick_heads(x: Float[Array, "B N ..."], heads: Sequence[int]) -> Float[Array, "B _ ..."]:
    """Returns some heads of an array; the array itself for all heads in order."""
    return x if list(heads) == list(range(x.shape[1])) else x[:, jnp.array(heads)]


def scores(
    q: Float[Array, "B K G T H"], k: Float[Array, "B K S H"], cap: float | None = None
) -> Float32[Array, "B K G T S"]:
    """Returns q . k, capped."""
    product = jnp.einsum("bkth,bksh->bkts", _rows(q), k, preferred_element_type=jnp.float32)
    return capped(product.reshape(*q.shape[:-1], k.shape[2]), cap)


def capped(x: Float32[Array, "..."], cap: float | None) -> Float32[Array, "..."]:
    """Returns cap · tanh(x / cap), which is within ±cap; x itself where there is no cap.

    Bello et al. 2016 (Neural combinatorial optimization), as Gemma 2 has it.
    """
    return x if cap is None else cap * jnp.tanh(x / cap)


def weighted_sums(
    weights: Float[Array, "B K G T S"], values: Float[Array, "B K S M"]
) -> Float32[Array, "B K G T M"]:
    """Returns Σ_s weights_ts values_s."""
    rows = _rows(weights.astype(values.dtype))
    sums = jnp.einsum("bkts,bksm->bktm", rows, values, preferred_element_type=jnp.float32)
    return sums.reshape(*weights.shape[:-1], values.shape[-1])


def sees(t: Any, s: Any, path: Full | Window) -> Any:
    """Returns whether queries at t see keys at s: numpy's arrays, or those within a kernel."""
    if isinstance(path, Full):
        return s <= t
    seen = (s <= t) & ((s < path.sinks) | (s > t - path.recent))
    return seen if path.within is None else seen & (s > t - path.within)


def sees_apart(t: Any, sinks: Any, band: Any, window: Window) -> tuple[Any, Any]:
    """Returns whether queries at t see first keys, and keys of a band; what is in both once.

    A first key that is among a query's recent ones is seen in the band alone.
    """
    first = sinks <= t - window.recent
    if window.within is not None:
        first &= sinks > t - window.within
    return first, (band <= t) & (band > t - window.recent)


def block_runs(length: int, block: int) -> list[tuple[int, int, int]]:
    """Returns (start, stop, block) of the whole blocks of queries, and of what is left over."""
    rest = length % block
    runs = [(0, length - rest, block), (length - rest, length, rest)]
    return [run for run in runs if run[0] < run[1]]


def map_blocks(function: Callable[[Position], Blocks], start: int, stop: int, block: int) -> Blocks:
    """Returns `function(begin)` of every block of queries from `start` to `stop`, side by side.

    The run is a whole number of blocks; the results are trees of arrays [B, K, G, block, M].
    """
    if stop - start == block:
        return function(start)

    def side_by_side(blocks: Array) -> Array:
        blocks = jnp.moveaxis(blocks, 0, 3)
        return blocks.reshape(*blocks.shape[:3], stop - start, blocks.shape[-1])

    begins = jnp.arange(start, stop, block, dtype=jnp.int32)
    return jax.tree.map(side_by_side, jax.lax.map(function, begins))


def _rows(x: Float[Array, "B K G T M"]) -> Float[Array, "B K GT M"]:
    batch, kv_heads, group, length, columns = x.shape
    return x.reshape(batch, kv_heads, group * length, columns)
