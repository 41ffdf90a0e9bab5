"""A Llama or a relative of it in Flax NNX, every head `full`.

What relatives have beside a Llama's parts (`sinkjax.models.families`) the config says: biases of
some projections alone, norms of queries and keys or of what a layer adds, layers without rotation,
multipliers, caps.

Axes, here as everywhere: B batch, T query length, S key length, N query heads, K key/value heads,
G query heads a group, H head size, D model size, F feed-forward size, V vocabulary, L layers.

Parameters lie as [out..., in...], heads as an axis of their own, so that a head is a slice. Each
parameter names its logical axes in `out_sharding`; `sinkjax.models.sharding` lays them over a mesh.
How products are written is passed in, by whoever knows what the model is compiled for
(`sinkjax.attention.products`).
"""

from collections.abc import Callable, Hashable
from typing import Any, Literal, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, DTypeLike, Float, Float32, Int

from sinkjax.attention.blocks import PerHead, PerKvHead, capped, scale_queries
from sinkjax.attention.cache import (
    Cache,
    LayerCache,
    check_capacity,
    layout_of,
    new_store,
    write_store,
)
from sinkjax.attention.context import Context, Rotary
from sinkjax.attention.full import cached_scores, cached_weights
from sinkjax.attention.kernels import XLA, Kernel
from sinkjax.attention.piece import Extended, attend_piece
from sinkjax.attention.products import PLAIN, Products, add_bias
from sinkjax.distributed import is_traced
from sinkjax.errors import InputError, Problem, check_kind, check_whole
from sinkjax.masks.paths import Full, native
from sinkjax.models.config import ACTIVATIONS, MOST_SIZE, LlamaConfig
from sinkjax.models.explicit import check_axes, over_any_axes
from sinkjax.models.inputs import (
    check_cache,
    check_model_config,
    check_of_rows,
    check_tokens,
    row_lengths,
)
from sinkjax.models.parts import Maker, RMSNorm, Turn, scaled, unnormed
from sinkjax.models.rope import prompt_tables, rotary_tables
from sinkjax.models.rules import AS_DIVIDED, lay_batch, lay_by_cache, lay_from_cache

Observed = TypeVar("Observed")
"""What is wanted of attention beside the heads' outputs: a cache, scores, patterns, nothing."""

Attend = Callable[[PerHead, PerKvHead, PerKvHead], tuple[PerHead, Observed]]
"""Any attention: rotated queries and keys, and values, to the heads' outputs before the output
projection, and what was observed."""

Residual = Float[Array, "B T D"]
Tokens = Int[Array, "B T"]
Lengths = Int[Array, " B"]
"""Tokens in each row, at least 1; None in its place where every row is full."""


class Attention(nnx.Module):
    """Projections around attention; which attention is the caller's matter.

    Attributes:
      q: [N, H, D]; k, v: [K, H, D]; o: [D, N, H].
      q_bias [N, H], k_bias, v_bias [K, H], o_bias [D]: None where the model has none.
      turn: what queries and keys go through after their projections.
      span: what every head sees: all, or the layer's own window.
      score_cap: within which scores are `sinkjax.attention.blocks.capped`; None for no cap.
      batch: the logical axis of rows (`sinkjax.models.rules`).
    """

    batch = AS_DIVIDED

    def __init__(self, config: LlamaConfig, index: int, make: Maker):
        embed, head_dim = ("embed", config.embed_dim), ("head_dim", config.head_dim)
        heads, kv_heads = ("heads", config.num_heads), ("kv_heads", config.num_kv_heads)
        self.q = make.weight(heads, head_dim, embed)
        self.k = make.weight(kv_heads, head_dim, embed)
        self.v = make.weight(kv_heads, head_dim, embed)
        self.o = make.weight(embed, heads, head_dim)
        biased = config.attention_bias
        self.q_bias = make.bias(heads, head_dim) if biased else None
        self.k_bias = make.bias(kv_heads, head_dim) if biased else None
        self.v_bias = make.bias(kv_heads, head_dim) if biased else None
        self.o_bias = make.bias(embed) if config.output_bias else None
        self.turn = Turn(config, index, make)
        self.span = native(Full(), config.window(index))
        self.score_cap = config.score_cap

    def attend(
        self, x: Residual, context: Context, attend: Attend[Observed]
    ) -> tuple[Residual, Observed]:
        """Does what `Layer.attend` does, without norm and residual."""
        products = context.products
        q, k, v = products.project(x, self.q[...], self.k[...], self.v[...])
        q, k = add_bias(q, self.q_bias), add_bias(k, self.k_bias)
        q, k, v = *self.turn(q, k, context), add_bias(v, self.v_bias)
        outputs, observed = attend(q, k, v)
        (out,) = products.project(outputs, self.o[...])
        return add_bias(out, self.o_bias), observed

    def __call__(
        self, x: Residual, context: Context
    ) -> tuple[Residual, tuple[Context, LayerCache | None]]:
        """Computes a prompt, every head `full`: as `Layer.__call__`, without norm and residual."""

        def attend(q: PerHead, k: PerKvHead, v: PerKvHead):
            cache = None
            if context.max_length is not None:
                layout = layout_of(self.span, context.max_length)
                of_cache = k, v, context.lengths, self.batch, self.v[...]
                _, *laid, lengths = lay_by_cache(None, *of_cache)
                keys, values = (new_store(x, layout, lengths) for x in laid)
                cache = LayerCache((keys,), (values,))
            of_layer = self.span, context.products, self.score_cap
            outputs = context.kernel.attend(q, k, v, *of_layer)
            return outputs, (context, cache)

        return self.attend(x, context, attend)

    def decode(
        self, x: Residual, context: Context, cache: LayerCache
    ) -> tuple[Residual, tuple[Context, LayerCache]]:
        """Computes one token a row: as `Layer.decode`, without norm and residual."""
        (old_keys,), (old_values,) = cache.keys, cache.values
        assert old_keys is not None
        assert context.max_length is not None
        layout = layout_of(self.span, context.max_length)
        products = context.products

        def attend(q: PerHead, k: PerKvHead, v: PerKvHead, t: Lengths):
            keys = products.settle(write_store(old_keys, k, layout, t))
            values = products.settle(write_store(old_values, v, layout, t))
            q = products.settle(scale_queries(q))
            scores = cached_scores(q, keys, k.shape[2], products, self.score_cap)
            weights = cached_weights(scores, layout.positions(t), t, products)
            weights = weights.reshape(weights.shape[0], k.shape[2], -1, weights.shape[-1])
            outputs = products.sum_slots(weights, values).reshape(q.shape)
            return outputs, (context, LayerCache((keys,), (values,)))

        return self.attend(x, context, self._beside_cache(attend, context))

    def extend(
        self, x: Residual, context: Context, cache: LayerCache
    ) -> tuple[Residual, tuple[Context, LayerCache]]:
        """Computes a further piece of a prompt: as `Layer.extend`, without norm and residual."""
        (old_keys,), (old_values,) = cache.keys, cache.values
        assert old_keys is not None
        assert context.max_length is not None
        layout = layout_of(self.span, context.max_length)

        def attend(q: PerHead, k: PerKvHead, v: PerKvHead, lengths: Lengths):
            keys = Extended.of(old_keys, k, layout, lengths, context)
            values = Extended.of(old_values, v, layout, lengths, context)
            of_layer = self.span, context.products, self.score_cap
            outputs = attend_piece(q, keys, values, *of_layer)
            return outputs, (context, LayerCache((keys.store,), (values.store,)))

        return self.attend(x, context, self._beside_cache(attend, context))

    def _beside_cache(
        self, attend: Callable[..., tuple[PerHead, Observed]], context: Context
    ) -> Attend[Observed]:
        """Returns attention to a cache, which is also given the rows' lengths, where that lies."""
        batch, weight = self.batch, self.v[...]

        def beside(q: PerHead, k: PerKvHead, v: PerKvHead) -> tuple[PerHead, Observed]:
            laid = lay_by_cache(q, k, v, context.lengths, batch, weight)
            outputs, observed = attend(*laid)
            return lay_from_cache(outputs, v.shape[2], batch, weight), observed

        return beside


class MLP(nnx.Module):
    """down(activation(gate(x)) · up(x)); gate, up: [F, D], down: [D, F]."""

    def __init__(self, config: LlamaConfig, make: Maker):
        embed, mlp = ("embed", config.embed_dim), ("mlp", config.mlp_dim)
        self.activation = config.activation
        self.gate = make.weight(mlp, embed)
        self.up = make.weight(mlp, embed)
        self.down = make.weight(embed, mlp)
        biased = config.mlp_bias
        self.gate_bias = make.bias(mlp) if biased else None
        self.up_bias = make.bias(mlp) if biased else None
        self.down_bias = make.bias(embed) if biased else None

    def __call__(self, x: Residual, products: Products = PLAIN) -> Residual:
        """Returns what the feed-forward adds to the residual, of which x is the norm."""
        x = lay_batch(x, "batch", self.gate[...])
        gate, up = products.project(x, self.gate[...], self.up[...])
        gate, up = add_bias(gate, self.gate_bias), add_bias(up, self.up_bias)
        (out,) = products.project(ACTIVATIONS[self.activation](gate) * up, self.down[...])
        # Summed for all rows first: a sum for a share of them alone XLA's TPU compiler makes of
        # several products, each of which reads the whole weight.
        out = lay_batch(out, "batch", self.down[...])
        return lay_batch(add_bias(out, self.down_bias), AS_DIVIDED, self.down[...])


class Layer(nnx.Module):
    """Attention and feed-forward, each on the normed residual and added to it.

    Attributes:
      attention_norm, mlp_norm: of the residual that either reads; the identity where the model has
        none.
      attention_outer_norm, mlp_outer_norm: of what either adds; None where the model has none.
      residual_scale: multiplies what either adds; None for 1.
      stacked: axes of layers that arrays of its cache have in front.
    """

    stacked = 0

    def __init__(self, config: LlamaConfig, index: int, make: Maker):
        def norm() -> Callable[[Residual], Residual]:
            return make.norm(config) if config.inner_norms else nnx.static(unnormed)

        self.attention_norm = norm()
        self.attention = Attention(config, index, make)
        self.mlp_norm = norm()
        self.mlp = MLP(config, make)
        self.attention_outer_norm = make.norm(config) if config.outer_norms else None
        self.mlp_outer_norm = make.norm(config) if config.outer_norms else None
        self.residual_scale = config.residual_scale

    def __call__(
        self, x: Residual, context: Context
    ) -> tuple[Residual, Context, LayerCache | None]:
        """Returns a prompt's residual, the context for the next layer, and the cache.

        There is a cache where the context says how many tokens it is to hold.
        """
        x, (context, cache) = self._add_attention(x, self.attention, context)
        return self.feed_forward(x, context.products), context, cache

    def decode(
        self, x: Float[Array, "B 1 D"], context: Context, cache: LayerCache
    ) -> tuple[Float[Array, "B 1 D"], Context, LayerCache]:
        """Returns a token's residual, the context for the next layer, the cache with the token."""
        x, (context, cache) = self._add_attention(x, self.attention.decode, context, cache)
        return self.feed_forward(x, context.products), context, cache

    def extend(
        self, x: Residual, context: Context, cache: LayerCache
    ) -> tuple[Residual, Context, LayerCache]:
        """Returns what `decode` does, of a further piece of a prompt."""
        x, (context, cache) = self._add_attention(x, self.attention.extend, context, cache)
        return self.feed_forward(x, context.products), context, cache

    def attend(
        self, x: Residual, context: Context, attend: Attend[Observed]
    ) -> tuple[Residual, Observed]:
        """Computes the layer up to its feed-forward, around any attention of all its heads.

        Returns the residual, for `feed_forward`, and what `attend` observed. The context is that of
        the positions at hand, as `Llama.enter` gives it.
        """
        return self._add_attention(x, self.attention.attend, context, attend)

    def feed_forward(self, x: Residual, products: Products = PLAIN) -> Residual:
        """Returns the residual after the layer, of that after its attention."""
        with jax.named_scope("mlp"):
            x = products.settle(x)
            out = self.mlp(self.mlp_norm(x), products)
            return products.settle(self._add(x, out, self.mlp_outer_norm))

    def _add_attention(
        self, x: Residual, attention: Callable[..., tuple[Residual, Observed]], *arguments: Any
    ) -> tuple[Residual, Observed]:
        """Adds attention of its norm to the residual; also returns what attention observed."""
        with jax.named_scope("attention"):
            out, observed = attention(self.attention_norm(x), *arguments)
        return self._add(x, out, self.attention_outer_norm), observed

    def _add(self, x: Residual, out: Residual, norm: RMSNorm | None) -> Residual:
        return x + scaled(out if norm is None else norm(out), self.residual_scale)


class Llama(nnx.Module):
    """The whole model: tokens to logits.

    Attributes:
      config: its shape.
      embedding: [V, D]. head: [V, D], or None where the head is the embedding.
      layers: L layers. norm: the last one.
    """

    def __init__(self, config: LlamaConfig, *, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32):
        """Draws random weights in `dtype`; `sinkjax.load` fills in trained ones."""
        check_model_config(config)
        make = Maker(config, rngs, dtype)
        vocab, embed = ("vocab", config.vocab_size), ("embed", config.embed_dim)
        self.config = config
        self.embedding = make.weight(vocab, embed)
        self.layers = nnx.List([Layer(config, index, make) for index in range(config.num_layers)])
        self.norm = make.norm(config)
        self.head = None if config.tie_embeddings else make.weight(vocab, embed)

    @over_any_axes("vocab")
    def __call__(
        self, tokens: Tokens, *, lengths: Lengths | None = None
    ) -> Float32[Array, "B T V"]:
        """Returns next-token logits; at padding they mean nothing.

        Ids are taken on trust: from -V on they count from the vocabulary's end, and any other
        outside of [0, V) makes its row NaN.

        Args:
          tokens: right-padded with any id of the vocabulary where rows are shorter than T.
          lengths: tokens in each row; None where every row is full.

        Raises:
          InputError: for no row, or rows without a token.
        """
        return self.logits(self.hidden(tokens, lengths=lengths))

    @over_any_axes("embed")
    def hidden(self, tokens: Tokens, *, lengths: Lengths | None = None) -> Residual:
        """Returns the residual stream after the last layer, before its norm."""
        return self._run_layers(*self.enter(tokens, lengths))[0]

    @over_any_axes("vocab")
    def prefill(
        self,
        tokens: Tokens,
        *,
        lengths: Lengths | None = None,
        max_length: int,
        final_lengths: Lengths | None = None,
        products: Products = PLAIN,
        kernel: Kernel = XLA,
    ) -> tuple[Float32[Array, "B V"], Cache]:
        """Returns next-token logits of each row's last token alone, and the cache for `decode`.

        Args:
          tokens, lengths: as of the model's call; rows have at least 1 token.
          final_lengths: where `extend` brings further pieces, the tokens in each row with these.
            Dynamic rope and longrope alone read them: a prompt's angles go by its whole length.
          max_length: tokens that the cache is to hold, static: prompt and generated ones.
          products: how they are written, static; as `sinkjax.compile` chooses.
          kernel: what computes attention, static, where no later layer copies it.

        Raises:
          InputError: if T is beyond max_length, or for what the kernel cannot compute.
        """
        max_length = check_whole("max_length", max_length, 1, MOST_SIZE)
        x, context = self.enter(tokens, lengths, max_length, products, kernel, final_lengths)
        check_capacity(tokens.shape[1], max_length)
        x, layers = self._run_layers(x, context)
        last = jnp.take_along_axis(x, (context.lengths - 1)[:, None, None], axis=1)
        return self.logits(last, products)[:, 0], self._cache(context.lengths, layers, max_length)

    @over_any_axes("vocab")
    def extend(
        self, tokens: Tokens, cache: Cache, *, lengths: Lengths, products: Products = PLAIN
    ) -> tuple[Float32[Array, "B V"], Cache]:
        """Continues prompts by a further piece of each, after `prefill` and other pieces.

        A piece begins, in every row, where the longest row of the cache ends; shorter rows have
        ended before, and stay as they are. Logits, and what the cache then holds, are those of the
        whole prompt at once. Memory grows with the piece and the cache, and with their product for
        heads alone that later layers copy. Its derivatives are of forward mode alone, since a run
        says over how many earlier tokens it loops.

        Args:
          tokens: the piece, right-padded with any id; with what the cache holds of the longest row
            at most its `max_length`. What does not fit is written over the last entries.
          cache: of `prefill` or `extend`, to be donated.
          lengths: tokens in each row of the whole prompts.
          products: as of `prefill`.

        Returns:
          next-token logits of each row's last token, which mean nothing in a row that does not end
          within the piece; the cache, for `decode` or the next piece.

        Raises:
          InputError: if the piece does not fit the cache; in `jax.jit`, where what the cache holds
            is not known, if it would not fit an empty one.
        """
        check_tokens(tokens)
        check_cache(cache, self.cache_kind)
        lengths, length = row_lengths(tokens, lengths), tokens.shape[1]
        start = cache.lengths.max()
        held = 0 if isinstance(start, jax.core.Tracer) else int(start)
        check_capacity(held + length, cache.max_length)
        positions = start + jnp.arange(length, dtype=jnp.int32)[None, :]
        rotary = _settled(rotary_tables(self.config, positions, lengths), products)
        after = jnp.maximum(jnp.minimum(lengths, start + length), cache.lengths)
        context = Context(rotary, after, cache.max_length, products, start=start)
        x, layers = self._run_layers(self.embed(tokens), context, cache, "extend")
        last = jnp.clip(lengths - 1 - start, 0, length - 1)
        x = jnp.take_along_axis(x, last[:, None, None], axis=1)
        return self.logits(x, products)[:, 0], self._cache(after, layers, cache.max_length)

    @over_any_axes("vocab")
    def decode(
        self, token: Int[Array, " B"], cache: Cache, *, products: Products = PLAIN
    ) -> tuple[Float32[Array, "B V"], Cache]:
        """Returns logits after one more token a row, at its row's own next position, and the cache.

        Keys stay rotated as they were when their token came, as in transformers' cached generation:
        under dynamic rope and longrope a new query may meet older keys that were rotated for a
        shorter length.
        The cache, from `prefill` or `decode`, needs room in every row: beyond `max_length` the
        logits mean nothing. Donate it, and it is updated in place.
        """
        check_cache(cache, self.cache_kind)
        token, positions = check_of_rows("token", token, cache.lengths), cache.lengths
        tables = rotary_tables(self.config, positions[:, None], positions + 1)
        context = Context(_settled(tables, products), positions, cache.max_length, products)
        x, layers = self._run_layers(self.embed(token[:, None]), context, cache, "decode")
        return self.logits(x, products)[:, 0], self._cache(positions + 1, layers, cache.max_length)

    @property
    def cache_kind(self) -> Hashable:
        """What tells its caches from those of other models, masks and dtypes."""
        return self.config, str(self.embedding.dtype), len(self.layers)

    def _cache(self, lengths: Lengths, layers: tuple[Any, ...], max_length: int) -> Cache:
        return Cache(lengths, layers, max_length, self.cache_kind)

    def _run_layers(
        self,
        x: Residual,
        context: Context,
        cache: Cache | None = None,
        stage: Literal["__call__", "decode", "extend"] = "__call__",
    ) -> tuple[Residual, tuple[Any, ...]]:
        """Returns the residual stream after the last layer, and every layer's cache."""
        caches = []
        for index, layer in enumerate(self.layers):
            held = () if cache is None else (cache.layers[index],)
            with jax.named_scope(f"layer_{index}"):
                x, context, layer_cache = getattr(layer, stage)(x, context, *held)
            caches.append(layer_cache)
        return x, tuple(caches)

    def enter(
        self,
        tokens: Tokens,
        lengths: Lengths | None = None,
        max_length: int | None = None,
        products: Products = PLAIN,
        kernel: Kernel = XLA,
        final_lengths: Lengths | None = None,
    ) -> tuple[Residual, Context]:
        """Returns a prompt's residual before the first layer, and what layers need beside it.

        Arguments are as of `prefill`; without a `max_length` layers leave no cache.
        """
        x, lengths = self.embed(tokens), row_lengths(tokens, lengths)
        final = lengths
        if final_lengths is not None:
            final = check_of_rows("final_lengths", final_lengths, lengths)
        tables = _settled(prompt_tables(self.config, tokens.shape[1], final), products)
        return x, Context(tables, lengths, max_length, products, kernel)

    def embed(self, tokens: Tokens) -> Residual:
        """Returns the residual before the first layer; InputError for what is no [B, T] of ids."""
        check_tokens(tokens)
        table = self.embedding[...]
        check_axes(tokens, table)
        x = jnp.take(table, lay_batch(tokens, "batch", table), axis=0)
        return scaled(lay_batch(x, AS_DIVIDED, table), self.config.embedding_scale)

    def output_weight(self) -> Float[Array, "V D"]:
        """Returns the head, or the embedding where it is tied."""
        return (self.embedding if self.head is None else self.head)[...]

    def logits(self, x: Residual, products: Products = PLAIN) -> Float32[Array, "B T V"]:
        """Returns the logits of a residual before its last norm."""
        with jax.named_scope("head"):
            weight = self.output_weight()
            x = lay_batch(self.norm(x), "batch", weight)
            (logits,) = products.project(x, weight, dtype=jnp.float32)
            return capped(scaled(logits, self.config.logit_scale), self.config.logit_cap)


def check_model(model: Any, field: str = "model", *, values: bool = False) -> None:
    """Raises InputError for what is no model; with `values`, for one whose weights are traced."""
    check_kind(field, model, Llama, "a model, such as sinkjax.load gives,")
    if values and is_traced(model):
        text = "its weights are traced: do this outside of jax.jit, and call the model inside"
        raise InputError(Problem(field, None, text))


def _settled(tables: tuple[Rotary, ...], products: Products) -> tuple[Rotary, ...]:
    return jax.tree.map(products.settle, tables)
