"""Attention of a layer whose heads take different paths."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
from flax import nnx

from sinkjax.attention.context import Context
from sinkjax.attention.copy import (
    SlotWeights,
    apply_pattern,
    copied_pattern,
    copied_weights,
    keep_pattern,
)
from sinkjax.attention.full import cached_weights, causal_attention
from sinkjax.attention.sink import add_biases, first_token_term
from sinkjax.attention.window import window_attention
from sinkjax.cache import (
    LayerCache,
    Layout,
    Whole,
    layout_of,
    new_store,
    view_store,
    view_weights,
    window_layout,
    write_store,
)
from sinkjax.mask import Full, Window
from sinkjax.products import PLAIN, Products, add_bias
from sinkjax.rope import rotate
from sinkjax.specialize.plan import Block, LayerPlan


class SpecializedAttention(nnx.Module):
    """As `sinkjax.model.Attention`, without the work that the mask took away.

    Attributes:
      plan: which heads lie where, static. Of the axes below, heads in the plan's order.
      q: [computed heads, H, D]; k, v: [groups, H, D]; o: [D, computed and copied heads, H].
      q_bias, k_bias, v_bias: their biases; o_bias: [D].
      sink_v: [groups with only `sink` heads, H, D], applied to the first token alone; sink_v_bias.
      first_o: [D, groups, H], o summed over the `sink(first)` heads of each group that has any.
      other_o: the same of all other `sink` heads.
      mean_bias: [D], the calibrated means of the `sink(mean)` heads through their o.
      Each is None where there is nothing of it.
    """

    def __init__(self, plan: LayerPlan, parameters: dict[str, nnx.Param | None]):
        self.plan = plan
        self.q, self.q_bias = parameters["q"], parameters["q_bias"]
        self.k, self.k_bias = parameters["k"], parameters["k_bias"]
        self.v, self.v_bias = parameters["v"], parameters["v_bias"]
        self.o, self.o_bias = parameters["o"], parameters["o_bias"]
        self.sink_v, self.sink_v_bias = parameters["sink_v"], parameters["sink_v_bias"]
        self.first_o, self.other_o = parameters["first_o"], parameters["other_o"]
        self.mean_bias = parameters["mean_bias"]

    def __call__(
        self, x: jax.Array, context: Context
    ) -> tuple[jax.Array, Context, LayerCache | None]:
        """A prompt: as `sinkjax.model.Attention.__call__`."""
        outputs, keys, values, patterns = [], [], [], dict(context.patterns)
        all_values = []
        for block, q, k, v in self._blocks(x, context):
            all_values.append(v)
            outputs += _attend(block, q, k, v, patterns, context.products)
            if context.max_length is not None:
                keys.append(None if k is None else _store(k, block.keys, context))
                values.append(_store(v, block.values, context))
        with jax.named_scope("sink"):
            at_first, later = self._sink_biases(x, all_values)
        out = self._merge(x, outputs, context.products)
        if at_first is not None or later is not None:
            nothing = jnp.zeros_like(x[:, 0])
            at_first, bias = (nothing if term is None else term for term in (at_first, later))
            out = add_biases(out, at_first, bias)
        cache = None
        if context.max_length is not None:
            cache = LayerCache(tuple(keys), tuple(values), later)
        return out, context.replace(patterns=patterns), cache

    def decode(
        self, x: jax.Array, context: Context, cache: LayerCache
    ) -> tuple[jax.Array, Context, LayerCache]:
        """One token a row: as `sinkjax.model.Attention.decode`."""
        outputs, keys, values, patterns = [], [], [], dict(context.patterns)
        settle = context.products.settle
        stores = zip(self._blocks(x, context), cache.keys, cache.values, strict=True)
        for (block, q, k, v), key_store, value_store in stores:
            if k is not None:
                layout = layout_of(block.keys, context.max_length)
                key_store = settle(write_store(key_store, k, layout, context.lengths))
            layout = layout_of(block.values, context.max_length)
            value_store = settle(write_store(value_store, v, layout, context.lengths))
            outputs += _attend_stores(block, q, key_store, value_store, context, patterns)
            keys.append(key_store)
            values.append(value_store)
        out = self._merge(x, outputs, context.products)
        if cache.bias is not None:
            out = out + cache.bias[:, None]
        cache = LayerCache(tuple(keys), tuple(values), cache.bias)
        return out, context.replace(patterns=patterns), cache

    def _blocks(
        self, x: jax.Array, context: Context
    ) -> Iterator[tuple[Block, list[jax.Array], jax.Array | None, jax.Array]]:
        """Each block with its parts' queries [B, T, N, H], keys and values [B, T, K, H].

        Queries and keys are rotated; without computed heads there are neither.
        """
        if not self.plan.blocks:
            return
        weights = [w[...] for w in (self.q, self.k, self.v) if w is not None]
        with jax.named_scope("qkv"):
            *q_and_k, v = context.products.project(x, *weights)
            v = add_bias(v, self.v_bias)
            q = k = None
            if q_and_k:
                q, k = (
                    rotate(add_bias(heads, bias), context.cos, context.sin)
                    for heads, bias in zip(q_and_k, (self.q_bias, self.k_bias), strict=True)
                )
        q_at = k_at = v_at = 0
        for block in self.plan.blocks:
            queries, keys = [], None
            for part in block.computed:
                with jax.named_scope("q"):
                    queries.append(_slice(q, q_at, block.groups * part.heads))
                q_at += block.groups * part.heads
            if block.computed:
                with jax.named_scope("k"):
                    keys = _slice(k, k_at, block.groups)
                k_at += block.groups
            with jax.named_scope("v"):
                values = _slice(v, v_at, block.groups)
            v_at += block.groups
            yield block, queries, keys, values

    def _merge(self, x: jax.Array, outputs: list[jax.Array], products: Products) -> jax.Array:
        """Outputs of all parts, [B, T, N, H] each, -> [B, T, D]; x gives the shape without any."""
        if not outputs:
            return add_bias(jnp.zeros_like(x), self.o_bias)
        with jax.named_scope("o"):
            (out,) = products.project(_concatenate(outputs, axis=2), self.o[...])
            return add_bias(out, self.o_bias)

    def _sink_biases(
        self, x: jax.Array, values: list[jax.Array]
    ) -> tuple[jax.Array | None, jax.Array | None]:
        """What the `sink` heads add, [B, D], at the first position and at all later ones."""
        v0 = [v[:, 0] for v in values]
        if self.sink_v is not None:
            (first,) = PLAIN.project(x[:, :1], self.sink_v[...])
            v0.append(add_bias(first, self.sink_v_bias)[:, 0])
        v0 = _concatenate(v0, axis=1)
        at_first = later = None
        if self.first_o is not None:
            at_first = later = first_token_term(_pick(v0, self.plan.first), self.first_o[...])
        if self.other_o is not None:
            term = first_token_term(_pick(v0, self.plan.other), self.other_o[...])
            at_first = term if at_first is None else at_first + term
        if self.mean_bias is not None:
            mean = jnp.broadcast_to(self.mean_bias[...], x[:, 0].shape)
            later = mean if later is None else later + mean
        return at_first, later


def _attend(
    block: Block,
    queries: list[jax.Array],
    k: jax.Array | None,
    v: jax.Array,
    patterns: dict,
    products: Products,
) -> list[jax.Array]:
    """Outputs [B, T, N, H] of a block's parts over a prompt; adds the kept patterns."""
    outputs = []
    for part, q in zip(block.computed, queries, strict=True):
        with jax.named_scope(part.path.kind):
            if part.name is not None:
                patterns[part.name] = keep_pattern(q, k, part.path, v.dtype)
                outputs.append(apply_pattern(patterns[part.name], v, part.path))
            elif isinstance(part.path, Window):
                outputs.append(window_attention(q, k, v, part.path, products))
            else:
                outputs.append(causal_attention(q, k, v, products))
    for part in block.copied:
        with jax.named_scope("copy"):
            pattern = copied_pattern(patterns, part.sources)
            outputs.append(apply_pattern(pattern, v, part.path))
    return outputs


def _attend_stores(
    block: Block,
    queries: list[jax.Array],
    keys: jax.Array | None,
    values: jax.Array,
    context: Context,
    patterns: dict,
) -> list[jax.Array]:
    """Outputs [B, 1, N, H] of a block's parts for one token a row; adds the kept weights."""
    t, products, outputs = context.lengths, context.products, []
    value_layout = layout_of(block.values, context.max_length)

    def output(path: Full | Window, weights: jax.Array, layout: Layout) -> jax.Array:
        view = _view_layout(path, value_layout, context.max_length)
        weights = view_weights(weights, layout, view, t)
        grouped = weights.reshape(weights.shape[0], block.groups, -1, weights.shape[-1])
        sums = products.sum_slots(grouped, view_store(values, value_layout, view, t))
        return sums.reshape(sums.shape[0], 1, -1, sums.shape[-1])

    for part, q in zip(block.computed, queries, strict=True):
        with jax.named_scope(part.path.kind):
            key_layout = layout_of(block.keys, context.max_length)
            view = _view_layout(part.path, key_layout, context.max_length)
            key_view = view_store(keys, key_layout, view, t)
            weights = cached_weights(q, key_view, block.groups, view.positions(t), t, products)
            weights = weights.reshape(q.shape[0], q.shape[2], -1)
            if part.name is not None:
                patterns[part.name] = SlotWeights(weights, view)
            outputs.append(output(part.path, weights, view))
    for part in block.copied:
        with jax.named_scope("copy"):
            view = _view_layout(part.path, value_layout, context.max_length)
            weights = copied_weights(patterns, part.sources, view, t)
            outputs.append(output(part.path, weights, view))
    return outputs


def _view_layout(path: Full | Window, store: Layout, max_length: int) -> Layout:
    """How a head on this path reads a store that holds at least what it sees."""
    if isinstance(path, Window):
        return window_layout(path, store, max_length)
    return Whole(max_length)


def _store(x: jax.Array, span: Full | Window, context: Context) -> jax.Array:
    """A prompt's keys or values [B, T, K, H] as a store."""
    return new_store(x, layout_of(span, context.max_length), context.lengths)


def _slice(x: jax.Array, start: int, size: int) -> jax.Array:
    """Heads of [B, T, heads, H], without a slice where they are all."""
    return x if size == x.shape[2] else x[:, :, start : start + size]


def _pick(v0: jax.Array, groups: tuple[int, ...]) -> jax.Array:
    """Groups of [B, K, H], by their places."""
    return v0 if groups == tuple(range(v0.shape[1])) else v0[:, jnp.array(groups)]


def _concatenate(arrays: list[jax.Array], axis: int) -> jax.Array:
    return arrays[0] if len(arrays) == 1 else jnp.concatenate(arrays, axis=axis)
