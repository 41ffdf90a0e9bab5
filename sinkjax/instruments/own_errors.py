"""The change of each head's own output under each path: all heads and paths in one pass.

The error of a head under a path is the root of the mean over scored positions t of

  ‖W_o (õ_t - o_t)‖² / ‖x_t‖²

with o its output as a `full` head, õ that under the path, W_o its slice of the output projection
and x the residual stream that they are added to. Both are of the same inputs: those that the layer
has under the current mask.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from sinkjax.attention.context import Context
from sinkjax.distributed import to_host
from sinkjax.instruments.batches import batches
from sinkjax.instruments.judge import SCORE_FROM
from sinkjax.instruments.traced import TracedPaths, full_attention, traced_attention, traced_paths
from sinkjax.masks.mask import SinkMask
from sinkjax.masks.paths import Path
from sinkjax.models.decoder import Layer, Llama
from sinkjax.models.finite import check_finite
from sinkjax.models.parts import scaled


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
    o = scaled(layer.attention.o[...].astype(jnp.float32), layer.residual_scale)
    # ‖W d‖² = dᵀ (W Wᵀ) d: H numbers a position in place of D.
    gram = jnp.einsum("dnh,dng->nhg", o, o, precision="highest")
    norms = jnp.sum(jnp.square(x.astype(jnp.float32)), axis=-1)[:, first:, None]
    cap = layer.attention.score_cap

    def attend(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, jax.Array]:
        full = full_attention(q, k, v, layer.attention.span, cap)

        def squares(candidate: TracedPaths) -> jax.Array:
            change = traced_attention(q, k, v, candidate, cap) - full
            change = change[:, first:].astype(jnp.float32)
            lengths = jnp.einsum("btnh,nhg,btng->btn", change, gram, change)
            relative = jnp.maximum(lengths, 0) / norms
            return jnp.sum(relative, axis=1, where=scored[:, first:, None] > 0)

        return traced_attention(q, k, v, current, cap), jax.lax.map(squares, candidates)

    x, errors = layer.attend(x, context, attend)
    return layer.feed_forward(x), errors


@jax.jit
def _mean_outputs(layer: Layer, x: jax.Array, context: Context) -> tuple[jax.Array, jax.Array]:
    """The residual after a layer of `full` heads, and mean outputs float32 [B, N, H]."""
    of_layer = layer.attention.span, layer.attention.score_cap
    x, outputs = layer.attend(x, context, lambda *qkv: (full_attention(*qkv, *of_layer),) * 2)
    return layer.feed_forward(x), jnp.mean(outputs[:, 1:].astype(jnp.float32), axis=1)
