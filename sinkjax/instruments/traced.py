"""A model under a traced choice of paths: what searches and trained gates evaluate masks with.

`sinkjax.specialize` compiles each mask into a program of its own. Here the mask is data, so that
one program, of one layer, serves every candidate; it equals the specialized model up to rounding.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from sinkjax.attention.context import Context
from sinkjax.errors import InputError
from sinkjax.instruments.traced_attention import Selection, selected_attention
from sinkjax.masks.mask import SinkMask
from sinkjax.masks.paths import Copy, Full, Path, Sink, Window
from sinkjax.models.config import LlamaConfig
from sinkjax.models.decoder import Layer, Llama
from sinkjax.models.rope import rotary_tables

EVERYTHING = np.iinfo(np.int32).max // 2
"""`recent` of a head that sees all earlier positions."""


def select_paths(
    mask: SinkMask, config: LlamaConfig, *, fills: np.ndarray | None = None
) -> Selection:
    """A mask as traced numbers, [L, N] each.

    Args:
      mask: of `full`, `window` and `sink` heads, for a model of this shape.
      config: of the model.
      fills: float32 [L, N, H], read where the mask says `sink(mean)`.

    Raises:
      InputError: for a mask of another shape, `copy` heads, or `sink(mean)` heads without fills.
    """
    mask.check(config)
    paths = [path for layer in mask.heads for path in layer]
    if any(isinstance(path, Copy) for path in paths):
        raise InputError("the mask has copy heads, which no selection holds: specialize it instead")
    is_mean = np.array([path == Sink("mean") for path in paths])
    if fills is None and is_mean.any():
        raise InputError("the mask has sink(mean) heads: pass their means as fills")
    shape = config.num_layers, config.num_heads
    offset = np.zeros((*shape, config.head_dim), np.float32)
    if fills is not None:
        offset = np.where(is_mean.reshape(shape)[..., None], fills, 0).astype(np.float32)
    sinks, recent, attends, first = zip(*map(_numbers, paths), strict=True)
    return Selection(
        sinks=jnp.asarray(np.reshape(sinks, shape), jnp.int32),
        recent=jnp.asarray(np.reshape(recent, shape), jnp.int32),
        attends=jnp.asarray(np.reshape(attends, shape), jnp.float32),
        first=jnp.asarray(np.reshape(first, shape), jnp.float32),
        offset=jnp.asarray(offset),
    )


def selected_residuals(
    model: Llama,
    tokens: jax.Array,
    selection: Selection,
    *,
    lengths: jax.Array | None = None,
) -> jax.Array:
    """The residual stream after the last layer, before its norm, under a selection.

    One layer is compiled for each shape of tokens, whatever is selected. Works inside `jax.jit` and
    `jax.grad` too; there, `jax.checkpoint` around it or fewer tokens keep memory small.

    Args:
      model: the baseline.
      tokens: int [B, T], right-padded where rows are shorter than T.
      selection: [L, N], of `select_paths`.
      lengths: int [B], tokens in each row; None where every row is full.

    Returns:
      [B, T, D]; at padding it means nothing.
    """
    x, context = enter(model, tokens, lengths)
    for index, layer in enumerate(model.layers):
        x = selected_layer(layer, x, context, layer_of(selection, index))
    return x


def enter(
    model: Llama, tokens: jax.Array, lengths: jax.Array | None = None
) -> tuple[jax.Array, Context]:
    """The residual stream before the first layer, [B, T, D], and what its attention needs."""
    if lengths is None:
        lengths = jnp.full((tokens.shape[0],), tokens.shape[1], jnp.int32)
    cos, sin = _rotary(model.config, tokens.shape[1], lengths)
    return model.embed(tokens), Context(cos, sin, lengths)


def layer_of(selection: Selection, index: int) -> Selection:
    """One layer's part of a selection over L layers."""
    return jax.tree.map(lambda array: array[index], selection)


@jax.jit
def selected_layer(layer: Layer, x: jax.Array, context: Context, selection: Selection) -> jax.Array:
    """The residual stream [B, T, D] after a layer whose heads take the selected paths, [N]."""
    q, k, v = layer.attention.project(layer.attention_norm(x), context.cos, context.sin)
    x = x + layer.attention.merge(selected_attention(q, k, v, selection))
    return x + layer.mlp(layer.mlp_norm(x))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _rotary(config: LlamaConfig, length: int, lengths: jax.Array) -> tuple[jax.Array, jax.Array]:
    positions = jnp.arange(length, dtype=jnp.int32)[None, :]
    return rotary_tables(config, positions, lengths)


def _numbers(path: Path) -> tuple[int, int, float, float]:
    """sinks, recent, attends and first of one head."""
    match path:
        case Full():
            return 0, EVERYTHING, 1.0, 0.0
        case Window(sinks, recent):
            return sinks, min(recent, EVERYTHING), 1.0, 0.0
        case Sink(fill):
            return 0, EVERYTHING, 0.0, float(fill == "first")
        case _:
            raise TypeError(f"{path!r} is no path that can be selected")
