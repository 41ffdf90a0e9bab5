"""A model under a traced choice of paths: what searches and trained gates evaluate masks with.

`sinkjax.specialize` compiles each mask into a program of its own. Here the paths of the heads,
`full`, `window` or `sink`, are data, so that one program, of one layer, serves every mask; it
equals the specialized model up to rounding. It does the work of `full` whatever the paths are: a
choice that has been made is a static mask, and `sinkjax.specialize` takes its work away.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from sinkjax.attention.blocks import (
    group_keys,
    group_queries,
    map_blocks,
    scores,
    ungroup,
    weighted_sums,
)
from sinkjax.attention.context import Context
from sinkjax.attention.full import query_spans
from sinkjax.attention.products import PLAIN
from sinkjax.errors import InputError
from sinkjax.masks.mask import SinkMask
from sinkjax.masks.paths import Copy, Full, Path, Sink, Window
from sinkjax.models.config import LlamaConfig
from sinkjax.models.decoder import Layer, Llama

_EVERYTHING = np.iinfo(np.int32).max // 2  # `recent` of a head that sees all earlier positions


@struct.dataclass
class TracedPaths:
    """The paths of the N heads of a layer, or of L layers where a leading axis [L] is in front.

    A head's output is attends · (its softmax over s < sinks and t - recent < s <= t, of them those
    with s > t - within) plus (1 - attends) · (v_0 at t = 0, first · v_0 + offset at t >= 1). A
    pytree.

    Attributes:
      sinks, recent, within: int32 [N]; all earlier positions are seen where recent and within are
        at least T.
      attends: float32 [N], 1 for `full` and `window`, 0 for `sink`; a gate may lie between.
      first: float32 [N], 1 for `sink(first)`, 0 for `zero` and `mean`.
      offset: float32 [N, H], the means of `sink(mean)`, 0 for others.
    """

    sinks: jax.Array
    recent: jax.Array
    within: jax.Array
    attends: jax.Array
    first: jax.Array
    offset: jax.Array

    def layer(self, index: int) -> "TracedPaths":
        """One layer's paths, of those of L layers."""
        return jax.tree.map(lambda array: array[index], self)


def traced_paths(
    mask: SinkMask, config: LlamaConfig, *, fills: np.ndarray | None = None
) -> TracedPaths:
    """A mask as traced numbers, [L, N] each.

    Args:
      mask: of `full`, `window` and `sink` heads, for a model of this shape.
      config: of the model.
      fills: float32 [L, N, H], read where the mask says `sink(mean)`.

    Raises:
      InputError: for a mask of another shape, `copy` heads, or `sink(mean)` heads without fills.
    """
    mask.check(config)
    mask = mask.within(config.layer_windows)
    paths = [path for layer in mask.heads for path in layer]
    if any(isinstance(path, Copy) for path in paths):
        raise InputError("the mask has copy heads, which traced paths cannot say: specialize it")
    is_mean = mask.on(Sink("mean"))
    if fills is None and is_mean.any():
        raise InputError("the mask has sink(mean) heads: pass their means as fills")
    shape = config.num_layers, config.num_heads
    offset = np.zeros((*shape, config.head_dim), np.float32)
    if fills is not None:
        offset = np.where(is_mean[..., None], fills, 0).astype(np.float32)
    sinks, recent, within, attends, first = zip(*map(_numbers, paths), strict=True)
    return TracedPaths(
        sinks=jnp.asarray(np.reshape(sinks, shape), jnp.int32),
        recent=jnp.asarray(np.reshape(recent, shape), jnp.int32),
        within=jnp.asarray(np.reshape(within, shape), jnp.int32),
        attends=jnp.asarray(np.reshape(attends, shape), jnp.float32),
        first=jnp.asarray(np.reshape(first, shape), jnp.float32),
        offset=jnp.asarray(offset),
    )


def traced_residuals(
    model: Llama, tokens: jax.Array, paths: TracedPaths, *, lengths: jax.Array | None = None
) -> jax.Array:
    """The residual stream after the last layer, before its norm, under traced paths.

    One layer is compiled for each shape of tokens, whatever the paths are. Works inside `jax.jit`
    and `jax.grad` too; there, `jax.checkpoint` around it or fewer tokens keep memory small.

    Args:
      model: the baseline.
      tokens: int [B, T], right-padded where the `lengths` int [B] are shorter.
      paths: [L, N], of `traced_paths`.

    Returns:
      [B, T, D]; at padding it means nothing.
    """
    x, context = model.enter(tokens, lengths)
    for index, layer in enumerate(model.layers):
        x = traced_layer(layer, x, context, paths.layer(index))
    return x


@jax.jit
def traced_layer(layer: Layer, x: jax.Array, context: Context, paths: TracedPaths) -> jax.Array:
    """The residual stream [B, T, D] after a layer whose heads take these paths, [N]."""
    cap = layer.attention.score_cap
    x, _ = layer.attend(x, context, lambda q, k, v: (traced_attention(q, k, v, paths, cap), None))
    return layer.feed_forward(x)


def traced_attention(
    q: jax.Array, k: jax.Array, v: jax.Array, paths: TracedPaths, cap: float | None
) -> jax.Array:
    """Every head's output under its own path.

    Args:
      q: [B, T, N, H], rotated.
      k: [B, T, K, H], rotated; head n reads key/value head n // (N / K).
      v: [B, T, K, H].
      paths: of this layer.
      cap: of `sinkjax.models.decoder.Attention`.

    Returns:
      [B, T, N, H] in v's dtype, before `o_proj`. Scores and softmax are float32.
    """
    attended = _windowed(q, k, v, cap, (paths.sinks, paths.recent, paths.within))
    share = paths.attends[None, None, :, None].astype(v.dtype)
    return share * attended + (1 - share) * _sink_outputs(v, paths.first, paths.offset)


def full_attention(
    q: jax.Array, k: jax.Array, v: jax.Array, span: Full | Window, cap: float | None
) -> jax.Array:
    """Every head's output as `full`, with the arithmetic of `traced_attention`.

    `span` and `cap` are of `sinkjax.models.decoder.Attention`: what `full` is in its layer.
    """
    limits = [jnp.full((q.shape[2],), number, jnp.int32) for number in _numbers(span)[:3]]
    return _windowed(q, k, v, cap, limits)


def _windowed(
    q: jax.Array, k: jax.Array, v: jax.Array, cap: float | None, limits: Sequence[jax.Array]
) -> jax.Array:
    """Attention of each head by its sinks, recent and within of `TracedPaths`, int32 [N] each."""
    queries, keys = group_queries(q, k.shape[2]), group_keys(k)
    values = PLAIN.counted(group_keys(v))
    grouped = (1, k.shape[2], q.shape[2] // k.shape[2], 1, 1)
    limits = tuple(numbers.reshape(grouped) for numbers in limits)
    sums = []
    for start, stop, block in query_spans(q.shape[1]):
        of_run = keys[:, :, :stop], values[:, :, :stop]
        attend = functools.partial(_attend_block, queries, *of_run, cap, limits, block)
        sums.append(map_blocks(attend, start, stop, block))
    sums = jnp.concatenate(sums, axis=3)
    return ungroup((sums[..., :-1] / sums[..., -1:]).astype(v.dtype))


def _attend_block(
    q: jax.Array,
    k: jax.Array,
    values: jax.Array,
    cap: float | None,
    limits: tuple[jax.Array, jax.Array, jax.Array],
    block: int,
    begin: jax.Array | int,
) -> jax.Array:
    """One block of queries, from `begin` on, as the `full` path's, each head with its window.

    q: [B, K, G, T, H], scaled; k: [B, K, S, H]; values: [B, K, S, M]; limits: int32
    [1, K, G, 1, 1] each.
    """
    sinks, recent, within = limits
    q = jax.lax.dynamic_slice_in_dim(q, begin, block, axis=3)
    t = (begin + jnp.arange(block, dtype=jnp.int32)).reshape(1, 1, 1, block, 1)
    s = jnp.arange(k.shape[2], dtype=jnp.int32).reshape(1, 1, 1, 1, -1)
    visible = (s <= t) & ((s < sinks) | (s > t - recent)) & (s > t - within)
    return weighted_sums(PLAIN.unnormalized(scores(q, k, cap), visible), values)


def _sink_outputs(v: jax.Array, first: jax.Array, offset: jax.Array) -> jax.Array:
    """The fills of `sink` heads: v [B, T, K, H] to [B, T, N, H], as `TracedPaths` defines them."""
    v0 = jnp.repeat(v[:, :1], first.shape[0] // v.shape[2], axis=2)
    later = first[None, None, :, None].astype(v.dtype) * v0 + offset[None, None].astype(v.dtype)
    is_first = (jnp.arange(v.shape[1], dtype=jnp.int32) == 0)[None, :, None, None]
    return jnp.where(is_first, v0, later)


def _numbers(path: Path) -> tuple[int, int, int, float, float]:
    """sinks, recent, within, attends and first of one head."""
    match path:
        case Full():
            return 0, _EVERYTHING, _EVERYTHING, 1.0, 0.0
        case Window(sinks, recent, within):
            return sinks, min(recent, _EVERYTHING), within or _EVERYTHING, 1.0, 0.0
        case Sink(fill):
            return 0, _EVERYTHING, _EVERYTHING, 0.0, float(fill == "first")
        case _:
            raise TypeError(f"{path!r} is no path that can be traced")
