"""The `full` path with keys in blocks as queries are, under a running softmax.

After Milakov and Gimelshein 2018 (Online normalizer calculation for softmax): the scores at hand
stay near the core, and memory does not grow with queries by keys.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32

from sinkjax.attention.blocks import (
    PerHead,
    PerKvHead,
    Position,
    block_runs,
    group_keys,
    group_queries,
    map_blocks,
    scores,
    ungroup,
    weighted_sums,
)
from sinkjax.attention.products import PLAIN, Products

STREAMED = 512
"""Queries a block, and keys a block: the fastest of 128 to 1,024 on a CPU at 4,096 tokens."""

STRIP = 128
"""Queries a strip of a block, on the block's own keys."""


class Earlier(NamedTuple):
    """Tokens before those at hand, in the slots of their positions.

    Attributes:
      keys, values: stores, or like stores, with slots beyond the tokens.
      stop: how many tokens there are.
    """

    keys: Float[Array, "*BK S H"]
    values: Float[Array, "*BK S H"]
    stop: Position


def streamed_attention(
    q: PerHead,
    k: PerKvHead,
    v: PerKvHead,
    products: Products = PLAIN,
    earlier: Earlier | None = None,
    cap: float | None = None,
) -> PerHead:
    """Returns `causal_attention`, of queries that see earlier tokens too where there are any.

    Of a store only blocks with tokens are read, by a loop that has no gradient.
    """
    queries = products.settle(group_queries(q, k.shape[2]))
    keys, values = products.settle(group_keys(k)), products.settle(group_keys(v))
    outputs = []
    for start, stop, block in block_runs(q.shape[1], STREAMED):

        def attend(begin: Position, block: int = block) -> _Running:
            running = _own_keys(queries, keys, values, products, cap, block, begin)
            if earlier is None:
                return running
            return _earlier_keys(running, _cut(queries, begin, block), earlier, products, cap)

        running = map_blocks(attend, start, stop, block)
        running = _whole_blocks(running, queries, keys, values, products, cap, start, stop, block)
        outputs.append(running.sums / running.total)
    return ungroup(jnp.concatenate(outputs, axis=3).astype(v.dtype))


class _Running(NamedTuple):
    """A softmax over the keys so far: Σ_s exp(score_s - top) v_s, the same sum of ones, and top."""

    sums: Float32[Array, "B K G T H"]
    total: Float32[Array, "B K G T 1"]
    top: Float32[Array, "B K G T 1"]


def _own_keys(
    q: Float[Array, "B K G T H"],
    keys: Float[Array, "B K T H"],
    values: Float[Array, "B K T H"],
    products: Products,
    cap: float | None,
    block: int,
    begin: Position,
) -> _Running:
    """Returns the softmax of a block of queries, from `begin` on, over the block's own keys.

    In strips of queries, so that few scores are computed of keys behind their query.
    """
    q = _cut(q, begin, block)
    keys, values = (jax.lax.dynamic_slice_in_dim(x, begin, block, axis=2) for x in (keys, values))
    strips = []
    for start in range(0, block, STRIP):
        stop = min(start + STRIP, block)
        visible = jnp.arange(start, stop)[:, None] >= jnp.arange(stop)[None, :]
        seen = scores(q[:, :, :, start:stop], keys[:, :, :stop], cap)
        seen = products.settle(jnp.where(visible, seen, -jnp.inf))
        top = products.settle(products.largest(seen))
        strips.append(_Running(*_sums(seen, top, values[:, :, :stop], products), top))
    return _Running(*(jnp.concatenate(parts, axis=3) for parts in zip(*strips, strict=True)))


def _whole_blocks(
    running: _Running,
    q: Float[Array, "B K G T H"],
    keys: Float[Array, "B K T H"],
    values: Float[Array, "B K T H"],
    products: Products,
    cap: float | None,
    start: int,
    stop: int,
    block: int,
) -> _Running:
    """Adds to the queries from `start` to `stop` the whole blocks of keys before each of theirs.

    One loop over the pairs of a block of queries and one of keys, so that its turns are known.
    """
    pairs = [(a, b) for a in range(start, stop, block) for b in range(0, a, STREAMED)]
    if not pairs:
        return running
    of_queries, of_keys = (jnp.asarray(places, jnp.int32) for places in zip(*pairs, strict=True))

    def add(turn: Array, running: _Running) -> _Running:
        a, b = of_queries[turn], of_keys[turn]
        k, v = (jax.lax.dynamic_slice_in_dim(x, b, STREAMED, axis=2) for x in (keys, values))
        part = _Running(*(_cut(x, a - start, block) for x in running))
        part = _add(part, _cut(q, a, block), k, v, products, cap)
        return _Running(
            *(
                jax.lax.dynamic_update_slice_in_dim(x, new, a - start, axis=3)
                for x, new in zip(running, part, strict=True)
            )
        )

    return jax.lax.fori_loop(0, len(pairs), add, running)


def _earlier_keys(
    running: _Running,
    q: Float[Array, "B K G T H"],
    earlier: Earlier,
    products: Products,
    cap: float | None,
) -> _Running:
    """Adds the earlier keys, all of which these queries see."""
    slots = earlier.keys.shape[-2]
    size = min(STREAMED, slots)

    def add(masked: bool, index: Array, running: _Running) -> _Running:
        # The last block of a store ends with it, and its keys before `index * size` were seen.
        at = jnp.minimum(index * size, slots - size) if masked else index * size
        keys, values = (
            # Of a block: a store in another shape would be copied.
            jax.lax.dynamic_slice_in_dim(x, at, size, axis=-2).reshape(*q.shape[:2], size, -1)
            for x in earlier[:2]
        )
        visible = None
        if masked:
            s = at + jnp.arange(size, dtype=jnp.int32)
            visible = (s >= index * size) & (s < earlier.stop)
        return _add(running, q, keys, values, products, cap, visible)

    whole, stop = earlier.stop // size, -(-earlier.stop // size)
    running = jax.lax.fori_loop(0, whole, functools.partial(add, False), running)
    return jax.lax.fori_loop(whole, stop, functools.partial(add, True), running)


def _add(
    running: _Running,
    q: Float[Array, "B K G T H"],
    keys: Float[Array, "B K S H"],
    values: Float[Array, "B K S H"],
    products: Products,
    cap: float | None,
    visible: Bool[Array, " S"] | None = None,
) -> _Running:
    """Adds keys that every query sees, or those of them that are visible."""
    seen = scores(q, keys, cap)
    if visible is not None:
        seen = jnp.where(visible, seen, -jnp.inf)
    seen = products.settle(seen)
    top = products.settle(jnp.maximum(running.top, products.largest(seen)))
    sums, total = _sums(seen, top, values, products)
    scale = jnp.exp(running.top - top)
    sums, total = running.sums * scale + sums, running.total * scale + total
    return _Running(products.settle(sums), products.settle(total), top)


def _sums(
    seen: Float32[Array, "B K G T S"],
    top: Float32[Array, "B K G T 1"],
    values: Float[Array, "B K S H"],
    products: Products,
) -> tuple[Float32[Array, "B K G T H"], Float32[Array, "B K G T 1"]]:
    """Returns Σ_s exp(score_s - top) v_s, and the same sum of ones."""
    weights = products.settle(jnp.exp(seen - top))
    with jax.named_scope("dot_general"):
        total = weights.sum(axis=-1, keepdims=True)
    return weighted_sums(weights, values), total


def _cut(x: Float[Array, "B K G T M"], begin: Position, size: int) -> Float[Array, "B K G _ M"]:
    """Returns some of the queries, from one on."""
    return jax.lax.dynamic_slice_in_dim(x, begin, size, axis=3)
