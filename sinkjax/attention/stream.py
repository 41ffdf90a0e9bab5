"""The `full` path, and wide windows, with keys in blocks as queries are, under a running softmax.

After Milakov and Gimelshein 2018 (Online normalizer calculation for softmax): the scores at hand
stay near the core, and memory does not grow with queries by keys.
"""

import functools
from collections.abc import Sequence
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
    sees_apart,
    ungroup,
    weighted_sums,
)
from sinkjax.attention.products import PLAIN, Products
from sinkjax.masks.paths import Full, Window

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
    path: Full | Window = Full(),  # noqa: B008
) -> PerHead:
    """Returns `causal_attention`, of queries that see earlier tokens too where there are any.

    Of a store only blocks with tokens are read, by a loop that has no gradient.

    Args:
      path: a window has at least `STREAMED` recent tokens, and no earlier ones.
    """
    queries = products.settle(group_queries(q, k.shape[2]))
    keys, values = products.settle(group_keys(k)), products.settle(group_keys(v))
    outputs = []
    for start, stop, block in block_runs(q.shape[1], STREAMED):
        run = _Run(queries, keys, values, products, cap, start, stop, block)

        def attend(begin: Position, run: _Run = run) -> _Running:
            running = _own_keys(run, begin)
            return running if earlier is None else _earlier_keys(running, run, earlier, begin)

        running = map_blocks(attend, start, stop, block)
        running = _whole_blocks(running, run, path)
        if isinstance(path, Window):
            running = _edges(running, run, path)
        outputs.append(running.sums / running.total)
    return ungroup(jnp.concatenate(outputs, axis=3).astype(v.dtype))


class _Running(NamedTuple):
    """A softmax over the keys so far: Σ_s exp(score_s - top) v_s, the same sum of ones, and top."""

    sums: Float32[Array, "B K G T H"]
    total: Float32[Array, "B K G T 1"]
    top: Float32[Array, "B K G T 1"]


def _own_keys(run: "_Run", begin: Position) -> _Running:
    """Returns the softmax of a block of queries, from `begin` on, over the block's own keys.

    In strips of queries, so that few scores are computed of keys behind their query.
    """
    q, products = _cut(run.queries, begin, run.block), run.products
    keys, values = (
        jax.lax.dynamic_slice_in_dim(x, begin, run.block, axis=2) for x in (run.keys, run.values)
    )
    strips = []
    for start in range(0, run.block, STRIP):
        stop = min(start + STRIP, run.block)
        t, s = (jnp.arange(first, stop, dtype=jnp.int32) for first in (start, 0))
        visible = t[:, None] >= s[None, :]
        seen = scores(q[:, :, :, start:stop], keys[:, :, :stop], run.cap)
        seen = products.settle(jnp.where(visible, seen, -jnp.inf))
        top = products.settle(products.largest(seen))
        strips.append(_Running(*_sums(seen, top, values[:, :, :stop], products), top))
    return _Running(*(jnp.concatenate(parts, axis=3) for parts in zip(*strips, strict=True)))


class _Run(NamedTuple):
    """Blocks of queries from `start` to `stop`; the queries, keys and values of all tokens."""

    queries: Float[Array, "B K G T H"]
    keys: Float[Array, "B K T H"]
    values: Float[Array, "B K T H"]
    products: Products
    cap: float | None
    start: int
    stop: int
    block: int

    def add(
        self,
        running: _Running,
        begin: Array,
        keys: Float[Array, "B K S H"],
        values: Float[Array, "B K S H"],
        visible: Bool[Array, "{self.block} S"] | None = None,
    ) -> _Running:
        """Adds keys to the block of queries from `begin` on."""
        part = _Running(*(_cut(x, begin - self.start, self.block) for x in running))
        q = _cut(self.queries, begin, self.block)
        part = _add(part, self, q, keys, values, visible)
        return _Running(
            *(
                jax.lax.dynamic_update_slice_in_dim(x, new, begin - self.start, axis=3)
                for x, new in zip(running, part, strict=True)
            )
        )


def whole_from(begin: int, block: int, path: Full | Window) -> int:
    """Returns where the blocks of keys begin that each of a block of queries sees whole."""
    if isinstance(path, Full):
        return 0
    return max(0, -(-(begin + block - path.recent) // STREAMED) * STREAMED)


def _whole_blocks(running: _Running, run: _Run, path: Full | Window) -> _Running:
    """Adds to each block of queries the blocks of keys before its own that all its queries see.

    One loop over the pairs of a block of queries and one of keys, so that its turns are known.
    """
    begins = range(run.start, run.stop, run.block)
    pairs = [(a, b) for a in begins for b in range(whole_from(a, run.block, path), a, STREAMED)]
    if not pairs:
        return running
    of_queries, of_keys = (jnp.asarray(places, jnp.int32) for places in zip(*pairs, strict=True))

    def add(turn: Array, running: _Running) -> _Running:
        b = of_keys[turn]
        keys, values = (
            jax.lax.dynamic_slice_in_dim(x, b, STREAMED, axis=2) for x in (run.keys, run.values)
        )
        return run.add(running, of_queries[turn], keys, values)

    return jax.lax.fori_loop(0, len(pairs), add, running)


def edges(begins: Sequence[int], block: int, path: Full | Window) -> tuple[dict[int, int], int]:
    """Returns the blocks of queries some of which no longer see all keys, and the oldest they see.

    Of each block where its whole blocks of keys begin, and how many keys before that the block with
    the most sees in part.
    """
    if isinstance(path, Full):
        return {}, 0
    ends = {a: end for a in begins if (end := whole_from(a, block, path))}
    return ends, max((end - max(0, a - path.recent + 1) for a, end in ends.items()), default=0)


def _edges(running: _Running, run: _Run, window: Window) -> _Running:
    """Adds to each block of queries the first keys, and the oldest ones of its windows."""
    ends, size = edges(range(run.start, run.stop, run.block), run.block, window)
    if not size + window.sinks or not ends:
        return running
    begins, stops = (jnp.asarray(places, jnp.int32) for places in zip(*ends.items(), strict=True))
    sinks = jnp.arange(window.sinks, dtype=jnp.int32)[None, :]

    def add(turn: Array, running: _Running) -> _Running:
        begin, stop = begins[turn], stops[turn]
        at = jnp.maximum(stop - size, 0)
        band = at + jnp.arange(size, dtype=jnp.int32)[None, :]
        t = begin + jnp.arange(run.block, dtype=jnp.int32)[:, None]
        first, recent = sees_apart(t, sinks, band, window)
        visible = jnp.concatenate([first, recent & (band < stop)], axis=1)
        keys, values = (
            jnp.concatenate(
                [x[:, :, : window.sinks], jax.lax.dynamic_slice_in_dim(x, at, size, axis=2)], axis=2
            )
            for x in (run.keys, run.values)
        )
        return run.add(running, begin, keys, values, visible)

    return jax.lax.fori_loop(0, len(ends), add, running)


def _earlier_keys(running: _Running, run: _Run, earlier: Earlier, begin: Position) -> _Running:
    """Adds the earlier keys, all of which the block of queries from `begin` on sees."""
    q = _cut(run.queries, begin, run.block)
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
        return _add(running, run, q, keys, values, visible)

    whole, stop = earlier.stop // size, -(-earlier.stop // size)
    running = jax.lax.fori_loop(0, whole, functools.partial(add, False), running)
    return jax.lax.fori_loop(whole, stop, functools.partial(add, True), running)


def _add(
    running: _Running,
    run: _Run,
    q: Float[Array, "B K G T H"],
    keys: Float[Array, "B K S H"],
    values: Float[Array, "B K S H"],
    visible: Bool[Array, "*T S"] | None = None,
) -> _Running:
    """Adds keys that every query sees, or those of them that are visible."""
    products, seen = run.products, scores(q, keys, run.cap)
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
