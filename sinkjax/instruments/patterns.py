"""A model under any choice of copies as data: one program of one layer for all of them.

All patterns of all layers are kept, L·N·T² numbers a row, so this is for short excerpts and few at
a time. `sinkjax.specialize` keeps what is copied alone; the two agree up to rounding.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from sinkjax.attention.blocks import group_keys
from sinkjax.attention.context import Context
from sinkjax.attention.full import apply_stored_pattern, stored_pattern
from sinkjax.errors import InputError
from sinkjax.masks.mask import SinkMask
from sinkjax.masks.paths import Copy, Full, Window
from sinkjax.models.decoder import Layer, Llama
from sinkjax.models.rules import partition
from sinkjax.models.sharding import mesh_of

PATTERN_TOKENS = 512
"""Tokens at a time: with 270 heads and 256 tokens, patterns of two rows take 142 MB."""


def copied_residuals(model: Llama, tokens: jax.Array, sources: jax.Array) -> jax.Array:
    """The residual stream [B, T, D] after the last layer under copies.

    Args:
      model: the baseline.
      tokens: int [B, T], full rows.
      sources: int32 [L, N], of `source_numbers`.
    """
    x, context = model.enter(tokens)
    patterns = no_patterns(model, tokens)
    for index, layer in enumerate(model.layers):
        x, patterns = _layer(layer, x, context, patterns, sources[index], jnp.int32(index))
    return x


def source_numbers(mask: SinkMask) -> jax.Array:
    """The head whose pattern each head uses, l · N + n: its own where it is `full`. int32 [L, N].

    Raises:
      InputError: for heads that are neither `full` nor `copy`.
    """
    numbers = np.arange(mask.num_layers * mask.num_heads).reshape(mask.num_layers, -1)
    for layer, paths in enumerate(mask.heads):
        for head, path in enumerate(paths):
            if isinstance(path, Copy):
                numbers[layer, head] = path.layer * mask.num_heads + path.head
            elif path != Full():
                raise InputError(
                    f"layer {layer}, head {head} is {path}: specialize the mask, for here heads "
                    "are `full` or `copy`"
                )
    return jnp.asarray(numbers, jnp.int32)


def no_patterns(model: Llama, tokens: jax.Array) -> jax.Array:
    """Room for all patterns, float32 [L, N, B, T, T], of a row where the row lies."""
    (batch, length), config, mesh = tokens.shape, model.config, mesh_of(model)
    where = None
    if mesh is not None:
        rows = partition(("batch",), (batch,), mesh)
        where = NamedSharding(mesh, PartitionSpec(None, None, *rows))
    shape = config.num_layers, config.num_heads, batch, length, length
    return jnp.zeros(shape, jnp.float32, device=where)


def dense_pattern(q: jax.Array, k: jax.Array, span: Full | Window, cap: float | None) -> jax.Array:
    """Patterns of `full` heads: q [B, T, N, H], k [B, T, K, H], rotated -> float32 [N, B, T, T].

    `span` and `cap` are of `sinkjax.models.decoder.Attention`: what `full` is in their layer.
    """
    (weights,) = stored_pattern(q, group_keys(k), 0, jnp.float32, cap, span)
    return jnp.moveaxis(weights, 0, 1)


def apply_dense(pattern: jax.Array, v: jax.Array) -> jax.Array:
    """Patterns [N, B, T, T] on values [B, T, K, H] -> [B, T, N, H] in v's dtype."""
    return apply_stored_pattern((jnp.moveaxis(pattern, 0, 1),), group_keys(v))


@functools.partial(jax.jit, donate_argnames="patterns")
def _layer(
    layer: Layer,
    x: jax.Array,
    context: Context,
    patterns: jax.Array,
    sources: jax.Array,
    index: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """The residual after a layer whose heads use these patterns, [N], and the patterns with its."""

    def attend(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, jax.Array]:
        own = dense_pattern(q, k, layer.attention.span, layer.attention.score_cap)
        with_own = jax.lax.dynamic_update_index_in_dim(patterns, own, index, 0)
        used = with_own.reshape(-1, *with_own.shape[2:])[sources]
        return apply_dense(used, v), with_own

    x, patterns = layer.attend(x, context, attend)
    return layer.feed_forward(x), patterns
