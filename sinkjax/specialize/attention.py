"""Attention of a layer whose heads take different paths."""

import functools
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from sinkjax.attention.blocks import pick_heads, scale_queries
from sinkjax.attention.cache import (
    LayerCache,
    Layout,
    layout_of,
    new_store,
    view_layout,
    view_store,
    view_weights,
    write_store,
)
from sinkjax.attention.context import Context
from sinkjax.attention.copy import (
    SlotWeights,
    apply_pattern,
    copied_pattern,
    copied_weights,
    keep_pattern,
)
from sinkjax.attention.full import Pattern, cached_scores, cached_weights
from sinkjax.attention.piece import (
    Extended,
    apply_piece_pattern,
    attend_piece,
    keep_piece_pattern,
)
from sinkjax.attention.products import Products, add_bias
from sinkjax.attention.sink import add_biases, first_token_term
from sinkjax.masks.paths import Full, Window
from sinkjax.models.parts import Turn
from sinkjax.models.rules import AS_DIVIDED, lay, lay_by_cache, lay_from_cache
from sinkjax.specialize.plan import Block, LayerPlan


class SpecializedAttention(nnx.Module):
    """`sinkjax.models.decoder.Attention` without the work that the mask takes away.

    Attributes:
      plan: the order of heads, static, as they lie along the axes below.
      q: [computed heads, then idle ones, H, D]; k, v: [groups, H, D], of k the idle ones last; o:
        [D, computed and copied heads, H].
      q_bias, k_bias, v_bias: their biases; o_bias: [D].
      turn: as `sinkjax.models.decoder.Attention` has it, of q and k in their order.
      score_cap: as `sinkjax.models.decoder.Attention` has it.
      sink_v: [groups with only `sink` heads, H, D], applied to the first token alone; sink_v_bias.
      first_o: [D, groups, H], o summed over the `sink(first)` heads of each group that has any.
      other_o: the same of all other `sink` heads.
      mean_bias: [D], the calibrated means of the `sink(mean)` heads through their o.
      norm: the layer's, where every head is `sink` and the first token alone has need of it.
      Each is None where there is nothing of it.
    """

    def __init__(
        self,
        plan: LayerPlan,
        parameters: dict[str, nnx.Param | None],
        turn: Turn,
        score_cap: float | None,
        norm: nnx.Module | None,
    ):
        self.plan, self.turn, self.score_cap = plan, turn, score_cap
        self.q, self.q_bias = parameters["q"], parameters["q_bias"]
        self.k, self.k_bias = parameters["k"], parameters["k_bias"]
        self.v, self.v_bias = parameters["v"], parameters["v_bias"]
        self.o, self.o_bias = parameters["o"], parameters["o_bias"]
        self.sink_v, self.sink_v_bias = parameters["sink_v"], parameters["sink_v_bias"]
        self.first_o, self.other_o = parameters["first_o"], parameters["other_o"]
        self.mean_bias = parameters["mean_bias"]
        self.norm = norm

    @property
    def batch(self) -> str:
        """The logical axis of rows (`sinkjax.models.rules`)."""
        return self.plan.batch

    def __call__(
        self, x: jax.Array, context: Context
    ) -> tuple[jax.Array, tuple[Context, LayerCache | None]]:
        """Attends over a prompt: as `sinkjax.models.decoder.Attention.__call__`."""
        outside, (x, context) = context, self._by_rows(x, context)
        outputs, keys, values, patterns = [], [], [], dict(context.patterns)
        all_values, products, cap = [], context.products, self.score_cap
        for block, q, k, v in self._blocks(*self._project(x, context)):
            all_values.append(v)
            outputs += _attend(
                block,
                q,
                patterns,
                functools.partial(context.kernel.attend, k=k, v=v, products=products, cap=cap),
                functools.partial(keep_pattern, k=k, dtype=v.dtype, cap=cap),
                functools.partial(apply_pattern, v=v),
            )
            if context.max_length is not None:
                (_, k, v), laid = self._beside_cache(None, k, v, context)
                keys.append(None if k is None else _store(k, block.keys, laid))
                values.append(_store(v, block.values, laid))
        with jax.named_scope("sink"):
            at_first, later = self._sink_biases(x, all_values, products)
        out = self._merge(x, outputs, products)
        if at_first is not None or later is not None:
            nothing = jnp.zeros_like(x[:, 0])
            at_first, bias = (nothing if term is None else term for term in (at_first, later))
            out = add_biases(out, at_first, bias)
        cache = None
        if context.max_length is not None:
            cache = LayerCache(tuple(keys), tuple(values), later)
        return self._together(out), (outside.replace(patterns=patterns), cache)

    def extend(
        self, x: jax.Array, context: Context, cache: LayerCache
    ) -> tuple[jax.Array, tuple[Context, LayerCache]]:
        """Attends over a further piece: as `sinkjax.models.decoder.Attention.extend`."""
        outside, (x, context) = context, self._by_rows(x, context)
        outputs, keys, values, patterns = [], [], [], dict(context.patterns)
        products, cap = context.products, self.score_cap
        projected, context = self._beside_cache(*self._project(x, context), context)
        blocks = zip(self._blocks(*projected), cache.keys, cache.values, strict=True)
        for (block, q, k, v), key_store, value_store in blocks:
            of_keys = None
            if k is not None:
                layout = layout_of(block.keys, context.max_length)
                of_keys = Extended.of(key_store, k, layout, context.lengths, context)
            layout = layout_of(block.values, context.max_length)
            of_values = Extended.of(value_store, v, layout, context.lengths, context)
            outputs += _attend(
                block,
                q,
                patterns,
                functools.partial(
                    attend_piece, keys=of_keys, values=of_values, products=products, cap=cap
                ),
                functools.partial(keep_piece_pattern, keys=of_keys, dtype=v.dtype, cap=cap),
                functools.partial(apply_piece_pattern, values=of_values),
            )
            keys.append(None if of_keys is None else of_keys.store)
            values.append(of_values.store)
        out = self._merge(x, self._from_cache(outputs), context.products, cache.bias)
        cache = LayerCache(tuple(keys), tuple(values), cache.bias)
        return self._together(out), (outside.replace(patterns=patterns), cache)

    def decode(
        self, x: jax.Array, context: Context, cache: LayerCache
    ) -> tuple[jax.Array, tuple[Context, LayerCache]]:
        """Attends with one token a row: as `sinkjax.models.decoder.Attention.decode`."""
        outside, (x, context) = context, self._by_rows(x, context)
        outputs, keys, values, patterns = [], [], [], dict(context.patterns)
        settle, queries = context.products.settle, []
        (q, k, v), context = self._beside_cache(*self._project(x, context), context)
        if q is not None:
            q = settle(scale_queries(q))
        blocks = zip(self._blocks(q, k, v), cache.keys, cache.values, strict=True)
        for (block, q, k, v), key_store, value_store in blocks:
            if k is not None:
                layout = layout_of(block.keys, context.max_length)
                key_store = settle(write_store(key_store, k, layout, context.lengths))
            layout = layout_of(block.values, context.max_length)
            values.append(settle(write_store(value_store, v, layout, context.lengths)))
            keys.append(key_store)
            queries.append(q)
        weights = _slot_weights(self.plan, queries, keys, context, self.score_cap)
        for block, of_parts, store in zip(self.plan.blocks, weights, values, strict=True):
            outputs += _sum_stores(block, of_parts, store, context, patterns)
        out = self._merge(x, self._from_cache(outputs), context.products, cache.bias)
        cache = LayerCache(tuple(keys), tuple(values), cache.bias)
        return self._together(out), (outside.replace(patterns=patterns), cache)

    def _by_rows(self, x: jax.Array, context: Context) -> tuple[jax.Array, Context]:
        """The same with rows along the axis that they have in this layer alone."""
        if self.batch == AS_DIVIDED:
            return x, context

        def laid(array: jax.Array) -> jax.Array:
            # First as outside, where XLA would otherwise lay it as here, and gather it again. Held
            # apart, since of two in a row it gives the second to later layers, too.
            outside = jax.lax.optimization_barrier(lay(array, AS_DIVIDED, self.v[...]))
            return lay(outside, self.batch, self.v[...])

        x, rotary, lengths = jax.tree.map(laid, (x, context.rotary, context.lengths))
        return x, context.replace(rotary=rotary, lengths=lengths)

    def _beside_cache(
        self, q: jax.Array | None, k: jax.Array | None, v: jax.Array | None, context: Context
    ) -> tuple[tuple[jax.Array | None, jax.Array | None, jax.Array | None], Context]:
        """What `_project` gives, and the context, where the cache lies."""
        if v is None:
            return (q, k, v), context
        q, k, v, lengths = lay_by_cache(q, k, v, context.lengths, self.batch, self.v[...])
        return (q, k, v), context.replace(lengths=lengths)

    def _from_cache(self, outputs: list[jax.Array]) -> list[jax.Array]:
        """Outputs of all parts where o lies.

        Where `sub` divides the layer's heads, all of it is one block, whose groups are the cache's.
        """
        groups = sum(block.groups for block in self.plan.blocks)
        return [lay_from_cache(x, groups, self.batch, self.v[...]) for x in outputs]

    def _together(self, out: jax.Array) -> jax.Array:
        """What attention adds, [B, T, D], with rows as outside."""
        return out if self.batch == AS_DIVIDED else lay(out, AS_DIVIDED, self.v[...])

    def _project(
        self, x: jax.Array, context: Context
    ) -> tuple[jax.Array | None, jax.Array | None, jax.Array | None]:
        """Rotated queries [B, T, N, H], rotated keys and values [B, T, K, H]; None without any."""
        if not self.plan.blocks:
            return None, None, None
        weights = [w[...] for w in (self.q, self.k, self.v) if w is not None]
        with jax.named_scope("qkv"):
            *q_and_k, v = context.products.project(x, *weights)
            v = add_bias(v, self.v_bias)
            if not q_and_k:
                return None, None, v
            q, k = map(add_bias, q_and_k, (self.q_bias, self.k_bias))
            return *self.turn(q, k, context), v

    def _blocks(
        self, q: jax.Array | None, k: jax.Array | None, v: jax.Array | None
    ) -> Iterator[tuple[Block, list[jax.Array], jax.Array | None, jax.Array]]:
        """Each block with its parts' queries, its keys and its values, of those of `_project`."""
        q_at = k_at = v_at = 0
        chips = self.plan.chips
        for block in self.plan.blocks:
            queries, keys = [], None
            for part in block.computed:
                with jax.named_scope("q"):
                    queries.append(_slice(q, q_at, block.groups * part.heads, 2, chips))
                q_at += block.groups * part.heads
            if block.computed:
                with jax.named_scope("k"):
                    keys = _slice(k, k_at, block.groups, 2, chips)
                k_at += block.groups
            with jax.named_scope("v"):
                values = _slice(v, v_at, block.groups, 2, chips)
            v_at += block.groups
            yield block, queries, keys, values

    def _merge(
        self,
        x: jax.Array,
        outputs: list[jax.Array],
        products: Products,
        sinks: jax.Array | None = None,
    ) -> jax.Array:
        """Outputs of all parts, [B, T, N, H] each, -> [B, T, D]; x gives the shape without any.

        `sinks` [B, D] is what the `sink` heads add where no first token is at hand.
        """
        if outputs:
            with jax.named_scope("o"):
                (out,) = products.project(_join(outputs, 2, self.plan.chips), self.o[...])
                out = add_bias(out, self.o_bias)
        else:
            out = add_bias(jnp.zeros_like(x), self.o_bias)
        return out if sinks is None else out + sinks[:, None]

    def _sink_biases(
        self, x: jax.Array, values: list[jax.Array], products: Products
    ) -> tuple[jax.Array | None, jax.Array | None]:
        """The sum of the `sink` heads, [B, D], at the first position and at all later ones."""
        v0 = [v[:, 0] for v in values]
        if self.sink_v is not None:
            first = x[:, :1] if self.norm is None else self.norm(x[:, :1])
            (first,) = products.project(first, self.sink_v[...])
            v0.append(add_bias(first, self.sink_v_bias)[:, 0])
        v0 = _join(v0, 1)
        at_first = later = None
        if self.first_o is not None:
            at_first = later = first_token_term(
                pick_heads(v0, self.plan.first), self.first_o[...], products
            )
        if self.other_o is not None:
            term = first_token_term(pick_heads(v0, self.plan.other), self.other_o[...], products)
            at_first = term if at_first is None else at_first + term
        if self.mean_bias is not None:
            mean = jnp.broadcast_to(self.mean_bias[...], x[:, 0].shape)
            later = mean if later is None else later + mean
        return at_first, later


def _attend(
    block: Block,
    queries: list[jax.Array],
    patterns: dict,
    attend: Callable[..., jax.Array],
    keep: Callable[..., Pattern],
    apply: Callable[..., jax.Array],
) -> list[jax.Array]:
    """Outputs [B, T, N, H] of a block's parts over a prompt or a piece; adds the kept patterns.

    A part whose pattern is kept has no kernel, and neither have its copies.

    Args:
      attend, keep: of a part's queries and its path, the outputs or the pattern.
      apply: of a pattern and its path, the outputs.
    """
    outputs = []
    for part, q in zip(block.computed, queries, strict=True):
        with jax.named_scope(part.path.kind):
            if part.name is not None:
                patterns[part.name] = keep(q, path=part.path)
                outputs.append(apply(patterns[part.name], path=part.path))
            else:
                outputs.append(attend(q, path=part.path))
    for part in block.copied:
        with jax.named_scope("copy"):
            outputs.append(apply(copied_pattern(patterns, part.sources), path=part.path))
    return outputs


def _slot_weights(
    plan: LayerPlan,
    queries: Sequence[list[jax.Array]],
    keys: Sequence[jax.Array | None],
    context: Context,
    cap: float | None,
) -> list[list[SlotWeights]]:
    """The attention weights of every part of every block, for one token a row.

    The softmax of all parts that see the same slots is taken at once: a step on a CPU is made of
    many short operations, and each takes a while to start.

    Args:
      queries: by block and part, [B, 1, N, H], rotated and scaled.
      keys: a store of each block, or None where it has no computed heads.
    """
    t, max_length, products = context.lengths, context.max_length, context.products
    by_view: dict[Layout, list[tuple[str, jax.Array]]] = {}
    places: list[list[tuple[Layout, int]]] = []
    for block, of_parts, store in zip(plan.blocks, queries, keys, strict=True):
        places.append([])
        for part, q in zip(block.computed, of_parts, strict=True):
            with jax.named_scope(part.path.kind):
                layout = layout_of(block.keys, max_length)
                view = view_layout(part.path, layout, max_length)
                slots = view_store(store, layout, view, t)
                of_view = by_view.setdefault(view, [])
                places[-1].append((view, len(of_view)))
                scores = cached_scores(q, slots, block.groups, products, cap)
                of_view.append((part.path.kind, scores))
    weights = {}
    for view, of_view in by_view.items():
        kinds = dict.fromkeys(kind for kind, _ in of_view)
        with jax.named_scope("_and_".join(kinds)):
            together = _join([scores for _, scores in of_view], 1, plan.chips)
            together = cached_weights(together, view.positions(t), t, products)
        weights[view], start = [], 0
        for kind, scores in of_view:
            with jax.named_scope(kind):  # whose work it is that follows
                own = _slice(together, start, scores.shape[1], 1, plan.chips)
            weights[view].append(SlotWeights(own, view))
            start += scores.shape[1]
    return [[weights[view][i] for view, i in of_block] for of_block in places]


def _sum_stores(
    block: Block,
    computed: list[SlotWeights],
    values: jax.Array,
    context: Context,
    patterns: dict,
) -> list[jax.Array]:
    """Outputs [B, 1, N, H] of a block's parts for one token a row; adds the kept weights."""
    t, products, outputs = context.lengths, context.products, []
    layout = layout_of(block.values, context.max_length)

    def output(path: Full | Window, weights: jax.Array, seen: Layout) -> jax.Array:
        view = view_layout(path, layout, context.max_length)
        weights = view_weights(weights, seen, view, t)
        grouped = weights.reshape(weights.shape[0], block.groups, -1, weights.shape[-1])
        sums = products.sum_slots(grouped, view_store(values, layout, view, t))
        return sums.reshape(sums.shape[0], 1, -1, sums.shape[-1])

    for part, kept in zip(block.computed, computed, strict=True):
        with jax.named_scope(part.path.kind):
            if part.name is not None:
                patterns[part.name] = kept
            outputs.append(output(part.path, kept.weights, kept.layout))
    for part in block.copied:
        with jax.named_scope("copy"):
            view = view_layout(part.path, layout, context.max_length)
            weights = copied_weights(patterns, part.sources, view, t)
            outputs.append(output(part.path, weights, view))
    return outputs


def _store(x: jax.Array, span: Full | Window, context: Context) -> jax.Array:
    """A prompt's keys or values [B, T, K, H] as a store."""
    return new_store(x, layout_of(span, context.max_length), context.lengths)


def _slice(x: jax.Array, start: int, size: int, axis: int, chips: int) -> jax.Array:
    """Heads of an axis, as many of each chip; without a slice where they are all."""
    if size == x.shape[axis]:
        return x
    if chips == 1:
        return jax.lax.slice_in_dim(x, start, start + size, axis=axis)
    by_chip = _by_chip(x, axis, chips)
    own = jax.lax.slice_in_dim(by_chip, start // chips, (start + size) // chips, axis=axis + 1)
    return own.reshape(*x.shape[:axis], size, *x.shape[axis + 1 :])


def _join(arrays: list[jax.Array], axis: int, chips: int = 1) -> jax.Array:
    """Heads of several arrays in one axis, those of each chip together."""
    if chips == 1 or len(arrays) == 1:
        return jnp.concatenate(arrays, axis=axis)
    joined = jnp.concatenate([_by_chip(x, axis, chips) for x in arrays], axis=axis + 1)
    shape = arrays[0].shape
    return joined.reshape(*shape[:axis], -1, *shape[axis + 1 :])


def _by_chip(x: jax.Array, axis: int, chips: int) -> jax.Array:
    """An axis of heads as two, of chips and of each one's heads."""
    return x.reshape(*x.shape[:axis], chips, -1, *x.shape[axis + 1 :])
