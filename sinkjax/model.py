"""A Llama in Flax NNX, every head `full`.

Axes: B batch, T query length, N query heads, K key/value heads, H head size, D model size,
F feed-forward size, V vocabulary, L layers. Parameters lie as [in..., out...], heads as an axis of
their own, so that a head is a slice. Each parameter names its logical axes in `out_sharding`;
`sinkjax.sharding` lays them over a mesh.
"""

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from sinkjax.attention.context import Context
from sinkjax.attention.full import cached_weights, causal_attention
from sinkjax.attention.projection import add_bias, from_heads, to_heads
from sinkjax.cache import (
    Cache,
    LayerCache,
    Whole,
    check_capacity,
    store_keys,
    store_values,
    sum_slots,
    write_keys,
    write_values,
)
from sinkjax.config import LlamaConfig
from sinkjax.rope import rotary_tables, rotate

_ACTIVATIONS = {
    "silu": jax.nn.silu,
    "swish": jax.nn.silu,
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "gelu_new": jax.nn.gelu,
    "gelu_pytorch_tanh": jax.nn.gelu,
    "relu": jax.nn.relu,
    "sigmoid": jax.nn.sigmoid,
    "tanh": jnp.tanh,
}


class _Maker:
    """Makes parameters: one call gives shape, initial value, dtype and logical axes."""

    def __init__(self, config: LlamaConfig, rngs: nnx.Rngs, dtype: jnp.dtype):
        self._init = nnx.initializers.normal(config.initializer_range)
        self._rngs, self._dtype = rngs, dtype

    def weight(self, *axes: tuple[str, int]) -> nnx.Param:
        names, shape = zip(*axes, strict=True)
        return self._param(self._init(self._rngs.params(), shape, self._dtype), names)

    def bias(self, *axes: tuple[str, int]) -> nnx.Param:
        names, shape = zip(*axes, strict=True)
        return self._param(jnp.zeros(shape, self._dtype), names)

    def scale(self, *axes: tuple[str, int]) -> nnx.Param:
        names, shape = zip(*axes, strict=True)
        return self._param(jnp.ones(shape, self._dtype), names)

    @staticmethod
    def _param(value: jax.Array, names: tuple[str, ...]) -> nnx.Param:
        # Logical names are not mesh axes: laying them out on creation would fail under a mesh.
        return nnx.Param(value, out_sharding=names, eager_sharding=False)


class RMSNorm(nnx.Module):
    """x / sqrt(mean(x²) + eps) · scale, in float32 (Zhang and Sennrich 2019)."""

    def __init__(self, config: LlamaConfig, make: _Maker):
        self.eps = config.norm_eps
        self.scale = make.scale(("embed", config.embed_dim))

    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, T, D] -> [B, T, D] in x's dtype."""
        wide = x.astype(jnp.float32)
        mean_square = jnp.mean(jnp.square(wide), axis=-1, keepdims=True)
        wide = wide * jax.lax.rsqrt(mean_square + jnp.float32(self.eps))
        return (wide * self.scale[...].astype(jnp.float32)[None, None, :]).astype(x.dtype)


class Attention(nnx.Module):
    """Projections around attention; which attention is the caller's matter.

    Attributes:
      q: [D, N, H]; k, v: [D, K, H]; o: [N, H, D].
      q_bias [N, H], k_bias, v_bias [K, H], o_bias [D]: None where the model has none.
    """

    def __init__(self, config: LlamaConfig, make: _Maker):
        embed, head_dim = ("embed", config.embed_dim), ("head_dim", config.head_dim)
        heads, kv_heads = ("heads", config.num_heads), ("kv_heads", config.num_kv_heads)
        self.q = make.weight(embed, heads, head_dim)
        self.k = make.weight(embed, kv_heads, head_dim)
        self.v = make.weight(embed, kv_heads, head_dim)
        self.o = make.weight(heads, head_dim, embed)
        biased = config.attention_bias
        self.q_bias = make.bias(heads, head_dim) if biased else None
        self.k_bias = make.bias(kv_heads, head_dim) if biased else None
        self.v_bias = make.bias(kv_heads, head_dim) if biased else None
        self.o_bias = make.bias(embed) if biased else None

    def project(
        self, x: jax.Array, cos: jax.Array, sin: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Rotated queries [B, T, N, H], rotated keys [B, T, K, H], values [B, T, K, H]."""
        q = to_heads(x, self.q, self.q_bias)
        k = to_heads(x, self.k, self.k_bias)
        v = to_heads(x, self.v, self.v_bias)
        return rotate(q, cos, sin), rotate(k, cos, sin), v

    def merge(self, outputs: jax.Array) -> jax.Array:
        """Head outputs [B, T, N, H] -> [B, T, D]."""
        return from_heads(outputs, self.o, self.o_bias)

    def __call__(
        self, x: jax.Array, context: Context
    ) -> tuple[jax.Array, Context, LayerCache | None]:
        """A prompt, every head `full`: as `Layer.__call__`, without norm and residual."""
        q, k, v = self.project(x, context.cos, context.sin)
        cache = None
        if context.max_length is not None:
            whole = Whole(context.max_length)
            keys = store_keys(k, whole, context.lengths)
            cache = LayerCache((keys,), (store_values(v, whole, context.lengths),))
        return self.merge(causal_attention(q, k, v)), context, cache

    def decode(
        self, x: jax.Array, context: Context, cache: LayerCache
    ) -> tuple[jax.Array, Context, LayerCache]:
        """One token a row: as `Layer.decode`, without norm and residual."""
        whole, t = Whole(context.max_length), context.lengths
        q, k, v = self.project(x, context.cos, context.sin)
        keys = write_keys(cache.keys[0], k, whole, t)
        values = write_values(cache.values[0], v, whole, t)
        outputs = sum_slots(cached_weights(q, keys, k.shape[2], whole.positions(t), t), values)
        return self.merge(outputs.reshape(q.shape)), context, LayerCache((keys,), (values,))


class MLP(nnx.Module):
    """down(activation(gate(x)) · up(x)); gate, up: [D, F], down: [F, D]."""

    def __init__(self, config: LlamaConfig, make: _Maker):
        embed, mlp = ("embed", config.embed_dim), ("mlp", config.mlp_dim)
        self.activation = config.activation
        self.gate = make.weight(embed, mlp)
        self.up = make.weight(embed, mlp)
        self.down = make.weight(mlp, embed)
        biased = config.mlp_bias
        self.gate_bias = make.bias(mlp) if biased else None
        self.up_bias = make.bias(mlp) if biased else None
        self.down_bias = make.bias(embed) if biased else None

    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, T, D] -> [B, T, D]."""
        gate = add_bias(x @ self.gate[...], self.gate_bias)
        up = add_bias(x @ self.up[...], self.up_bias)
        hidden = _ACTIVATIONS[self.activation](gate) * up
        return add_bias(hidden @ self.down[...], self.down_bias)


class Layer(nnx.Module):
    """Attention and feed-forward, each on the normed residual and added to it."""

    def __init__(self, config: LlamaConfig, make: _Maker):
        self.attention_norm = RMSNorm(config, make)
        self.attention = Attention(config, make)
        self.mlp_norm = RMSNorm(config, make)
        self.mlp = MLP(config, make)

    def __call__(
        self, x: jax.Array, context: Context
    ) -> tuple[jax.Array, Context, LayerCache | None]:
        """A prompt: residual [B, T, D] to [B, T, D], the context for the next layer, the cache.

        There is a cache where the context says how many tokens it is to hold.
        """
        with jax.named_scope("attention"):
            out, context, cache = self.attention(self.attention_norm(x), context)
        return self._feed_forward(x + out), context, cache

    def decode(
        self, x: jax.Array, context: Context, cache: LayerCache
    ) -> tuple[jax.Array, Context, LayerCache]:
        """One token a row: residual [B, 1, D], context for the next layer, cache with the token."""
        with jax.named_scope("attention"):
            out, context, cache = self.attention.decode(self.attention_norm(x), context, cache)
        return self._feed_forward(x + out), context, cache

    def _feed_forward(self, x: jax.Array) -> jax.Array:
        with jax.named_scope("mlp"):
            return x + self.mlp(self.mlp_norm(x))


class Llama(nnx.Module):
    """The whole model: tokens to logits.

    Attributes:
      config: its shape.
      embedding: [V, D]. head: [D, V], or None where the head is the embedding's transpose.
      layers: L layers. norm: the last one.
    """

    def __init__(self, config: LlamaConfig, *, rngs: nnx.Rngs, dtype: jnp.dtype = jnp.float32):
        """Random weights in `dtype`; `sinkjax.load` fills in trained ones."""
        make = _Maker(config, rngs, dtype)
        vocab, embed = ("vocab", config.vocab_size), ("embed", config.embed_dim)
        self.config = config
        self.embedding = make.weight(vocab, embed)
        self.layers = nnx.List([Layer(config, make) for _ in range(config.num_layers)])
        self.norm = RMSNorm(config, make)
        self.head = None if config.tie_embeddings else make.weight(embed, vocab)

    def __call__(self, tokens: jax.Array, *, lengths: jax.Array | None = None) -> jax.Array:
        """Next-token logits.

        Args:
          tokens: int [B, T], right-padded with any id where rows are shorter than T.
          lengths: int [B], tokens in each row; None where every row is full.

        Returns:
          float32 [B, T, V]; at padding they mean nothing.
        """
        return self.logits(self.hidden(tokens, lengths=lengths))

    def hidden(self, tokens: jax.Array, *, lengths: jax.Array | None = None) -> jax.Array:
        """The residual stream after the last layer, before its norm: [B, T, D]."""
        return self._run_prompt(tokens, lengths, max_length=None)[0]

    def prefill(
        self, tokens: jax.Array, *, lengths: jax.Array | None = None, max_length: int
    ) -> tuple[jax.Array, Cache]:
        """Next-token logits of each row's last token alone, and the cache to go on from.

        Args:
          tokens: int [B, T], right-padded with any id where rows are shorter than T.
          lengths: int [B], tokens in each row, at least 1; None where every row is full.
          max_length: tokens that the cache is to hold, static: prompt and generated ones.

        Returns:
          logits: float32 [B, V]. cache: for `decode`.

        Raises:
          InputError: if T is beyond max_length.
        """
        check_capacity(tokens.shape[1], max_length)
        lengths = self._row_lengths(tokens, lengths)
        x, layers = self._run_prompt(tokens, lengths, max_length)
        last = jnp.take_along_axis(x, (lengths - 1)[:, None, None], axis=1)
        return self.logits(last)[:, 0], Cache(lengths, layers, max_length)

    def decode(self, token: jax.Array, cache: Cache) -> tuple[jax.Array, Cache]:
        """Next-token logits after one more token a row, each at its row's own next position.

        Keys stay rotated as they were when their token came, as in transformers' cached generation:
        under dynamic rope a new query meets older keys that were rotated for a shorter length.

        Args:
          token: int [B].
          cache: from `prefill` or `decode`, with room left in every row: beyond `max_length` the
            logits mean nothing. Donate it, and it is updated in place.

        Returns:
          logits: float32 [B, V]. cache: one token longer.
        """
        positions = cache.lengths
        cos, sin = rotary_tables(self.config, positions[:, None], positions + 1)
        context = Context(cos, sin, positions, cache.max_length)
        x = self.embed(token[:, None])
        layers = []
        for index, layer in enumerate(self.layers):
            with jax.named_scope(f"layer_{index}"):
                x, context, layer_cache = layer.decode(x, context, cache.layers[index])
            layers.append(layer_cache)
        return self.logits(x)[:, 0], Cache(positions + 1, tuple(layers), cache.max_length)

    def _run_prompt(
        self, tokens: jax.Array, lengths: jax.Array | None, max_length: int | None
    ) -> tuple[jax.Array, tuple[LayerCache | None, ...]]:
        """The residual stream after the last layer, [B, T, D], and every layer's cache."""
        lengths = self._row_lengths(tokens, lengths)
        positions = jnp.arange(tokens.shape[1], dtype=jnp.int32)[None, :]
        cos, sin = rotary_tables(self.config, positions, lengths)
        context, x = Context(cos, sin, lengths, max_length), self.embed(tokens)
        caches = []
        for index, layer in enumerate(self.layers):
            with jax.named_scope(f"layer_{index}"):
                x, context, cache = layer(x, context)
            caches.append(cache)
        return x, tuple(caches)

    def embed(self, tokens: jax.Array) -> jax.Array:
        """int [B, T] -> [B, T, D]."""
        return jnp.take(self.embedding[...], tokens, axis=0)

    @staticmethod
    def _row_lengths(tokens: jax.Array, lengths: jax.Array | None) -> jax.Array:
        """int32 [B]."""
        if lengths is None:
            return jnp.full((tokens.shape[0],), tokens.shape[1], jnp.int32)
        return jnp.asarray(lengths, jnp.int32)

    def logits(self, x: jax.Array) -> jax.Array:
        """Residual [B, T, D] -> float32 [B, T, V]."""
        with jax.named_scope("head"):
            x = self.norm(x)
            if self.head is None:
                equation, weight = "btd,vd->btv", self.embedding[...]
            else:
                equation, weight = "btd,dv->btv", self.head[...]
            return jnp.einsum(equation, x, weight, preferred_element_type=jnp.float32)
