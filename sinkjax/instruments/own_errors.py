"""The change of each head's own output under each path: all heads and paths in one pass.

The error of a head under a path is the root of the mean over scored positions t of

  ‖ã_t - a_t‖² / ‖x_t‖²

with a what attention adds to the residual stream x when all heads are `full`, and ã what it adds
when this head alone is on the path. Both are of the same inputs: those that the layer has under the
current mask. Where the model does not norm what attention adds, ã - a = W_o (õ - o), with o the
head's output as a `full` head, õ that under the path, and W_o its slice of the output projection.
"""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from sinkjax.attention.context import Context
from sinkjax.attention.products import add_bias
from sinkjax.distributed import to_host
from sinkjax.instruments.batches import batches
from sinkjax.instruments.judge import SCORE_FROM
from sinkjax.instruments.traced import TracedPaths, full_attention, traced_attention, traced_paths
from sinkjax.masks.mask import SinkMask
from sinkjax.masks.paths import Path
from sinkjax.models.decoder import Layer, Llama
from sinkjax.models.finite import check_finite


def own_errors(
    model: Llama,
    excerpts: np.ndarray,
    paths: Sequence[Path],
    *,
    mask: SinkMask | None = None,
    fills: np.ndarray | None = None,
    scored: np.ndarray | None = None,
) -> np.ndarray:
    """Every head's error under every path.

    Args:
      model: the baseline.
      excerpts: int32 [W, T], T at least 2.
      paths: P of `full`, `window` and `sink`.
      mask: under which the inputs are; None for the baseline.
      fills: float32 [L, N, H], of `sink(mean)`.
      scored: bool [W, T], positions whose errors count; None for all but the first.

    Returns:
      float64 [P, L, N], relative to the residual's norm.
    """
    config = model.config
    current = traced_paths(mask or SinkMask.full(config), config, fills=fills)
    candidates = candidate_paths(model, paths, fills)
    squares = np.zeros((len(paths), config.num_layers, config.num_heads))
    scored = scored_positions(excerpts, scored)
    first = int(scored.any(axis=0).argmax())
    parts = zip(batches(model, excerpts), batches(model, scored), strict=True)
    for (tokens, count), (counted, _) in parts:
        x, context = model.enter(tokens)
        for index, layer in enumerate(model.layers):
            paths_of = current.layer(index), candidates.layer(index)
            x, errors = _errors(layer, x, context, *paths_of, counted, first)
            squares[:, index] += to_host(errors).astype(np.float64)[:, :count].sum(axis=1)
    check_finite("heads' outputs", squares, lambda _, *at: " in layer {}, head {}".format(*at))
    return np.sqrt(squares / scored.sum())


def squared_errors(
    layer: Layer, x: jax.Array, outputs: jax.Array
) -> Callable[[jax.Array], jax.Array]:
    """Returns what gives ‖ã - a‖² / ‖x‖² of every head, float32 [B, T, N], by its output's change.

    It takes changes [B, T, N, H]. Of a position it is H² numbers a head, in place of D.

    Args:
      layer: of N heads.
      x: [B, T, D], the residual that attention is added to.
      outputs: [B, T, N, H], of the heads as they are.
    """
    o = layer.attention.o[...].astype(jnp.float32)
    norm, scale = layer.attention_outer_norm, layer.residual_scale or 1.0
    of_residual = jnp.sum(jnp.square(x.astype(jnp.float32)), axis=-1)[..., None] / scale**2

    def gram(o: jax.Array) -> jax.Array:
        return jnp.einsum("dnh,dng->nhg", o, o, precision="highest")

    def square(change: jax.Array, gram: jax.Array) -> jax.Array:
        """‖W d‖² = dᵀ (Wᵀ W) d."""
        return jnp.einsum("btnh,nhg,btng->btn", change, gram, change)

    if norm is None:
        of_head = gram(o)
        return lambda change: (
            jnp.maximum(square(change.astype(jnp.float32), of_head), 0) / of_residual
        )
    # a = g ∘ y / r(y), with y = W o of all heads and r² its mean square; ã has y + W d and r̃.
    gain = norm.scale[...].astype(jnp.float32) + norm.offset
    weighed = o * gain[:, None, None]
    y = jnp.einsum("btnh,dnh->btd", outputs.astype(jnp.float32), o)
    y = add_bias(y, layer.attention.o_bias)
    gained = y * gain[None, None]
    grams, mean_square = (gram(o), gram(weighed)), jnp.mean(jnp.square(y), axis=-1)[..., None]
    along = jnp.einsum("btd,dnh->btnh", y, o), jnp.einsum("btd,dnh->btnh", gained, weighed)
    whole = jnp.sum(jnp.square(gained), axis=-1)[..., None]

    def of_normed(change: jax.Array) -> jax.Array:
        change = change.astype(jnp.float32)
        plain, with_gain = (jnp.sum(change * of, axis=-1) for of in along)
        grown = mean_square + (2 * plain + square(change, grams[0])) / y.shape[-1]
        after = jax.lax.rsqrt(jnp.maximum(grown, 0) + norm.eps)
        step = after - jax.lax.rsqrt(mean_square + norm.eps)
        squares = step**2 * whole + 2 * step * after * with_gain
        squares = squares + after**2 * square(change, grams[1])
        return jnp.maximum(squares, 0) / of_residual

    return of_normed


def scored_positions(excerpts: np.ndarray, scored: np.ndarray | None) -> np.ndarray:
    """Which positions of excerpts [W, T] count, bool [W, T]; None for all but the first."""
    if scored is None:
        scored = np.arange(excerpts.shape[1]) >= SCORE_FROM
    return np.broadcast_to(scored, excerpts.shape)


def mean_outputs(model: Llama, excerpts: np.ndarray) -> np.ndarray:
    """The mean output of every head over positions t >= 1 of all excerpts: fills of `sink(mean)`.

    int32 [W, T], T at least 2, to float32 [L, N, H], before `o_proj`.
    """
    config = model.config
    sums = np.zeros((config.num_layers, config.num_heads, config.head_dim))
    for tokens, count in batches(model, excerpts):
        x, context = model.enter(tokens)
        for index, layer in enumerate(model.layers):
            x, means = _mean_outputs(layer, x, context)
            sums[index] += to_host(means).astype(np.float64)[:count].sum(axis=0)
    check_finite("heads' outputs", sums, lambda *at: " in layer {}, head {}".format(*at))
    return (sums / len(excerpts)).astype(np.float32)


def candidate_paths(model: Llama, paths: Sequence[Path], fills: np.ndarray | None) -> TracedPaths:
    """Every head on each of P paths: [L, P, N]."""
    config = model.config
    masks = [SinkMask(((path,) * config.num_heads,) * config.num_layers) for path in paths]
    traced = [traced_paths(mask, config, fills=fills) for mask in masks]
    return jax.tree.map(lambda *arrays: jnp.stack(arrays, axis=1), *traced)


@functools.partial(jax.jit, static_argnames="first")
def _errors(
    layer: Layer,
    x: jax.Array,
    context: Context,
    current: TracedPaths,
    candidates: TracedPaths,
    scored: jax.Array,
    first: int,
) -> tuple[jax.Array, jax.Array]:
    """The residual after a layer, and sums of squares of errors float32 [P, B, N].

    They are over positions that are `scored`, int [B, T], none of them before the `first`.
    """
    cap = layer.attention.score_cap

    def attend(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, jax.Array]:
        full = full_attention(q, k, v, layer.attention.span, cap)
        errors = squared_errors(layer, x[:, first:], full[:, first:])

        def squares(candidate: TracedPaths) -> jax.Array:
            change = traced_attention(q, k, v, candidate, cap) - full
            of_heads = errors(change[:, first:])
            return jnp.sum(of_heads, axis=1, where=scored[:, first:, None] > 0)

        return traced_attention(q, k, v, current, cap), jax.lax.map(squares, candidates)

    x, errors = layer.attend(x, context, attend)
    return layer.feed_forward(x), errors


@jax.jit
def _mean_outputs(layer: Layer, x: jax.Array, context: Context) -> tuple[jax.Array, jax.Array]:
    """The residual after a layer of `full` heads, and mean outputs float32 [B, N, H]."""
    of_layer = layer.attention.span, layer.attention.score_cap
    x, outputs = layer.attend(x, context, lambda *qkv: (full_attention(*qkv, *of_layer),) * 2)
    return layer.feed_forward(x), jnp.mean(outputs[:, 1:].astype(jnp.float32), axis=1)
