"""What a head's change costs in KL, predicted to second order: all heads and paths in one pass.

With q the model's predictions under the current mask, p the baseline's, and δ what a move adds to a
head's output at all positions of a window, the KL summed over positions changes by

  g·δ + ½ δᵀ F δ,   g = ∂KL(p ‖ q)/∂o,   F = E_y[(∂ ln q(y)/∂o) (∂ ln q(y)/∂o)ᵀ]

F is the Fisher information, for which the labels y of all positions are drawn from q, so that
δᵀ F δ is the mean square of δ's product with one backward pass a draw (Amari 1998; Theis et al.
2018, "Faster gaze prediction with dense networks and Fisher pruning"). Unlike a head's own error it
knows what later layers make of a change, and through g what earlier moves have already cost.
"""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from sinkjax.attention.context import Context
from sinkjax.instruments.judge import SCORE_FROM, batches
from sinkjax.instruments.own_errors import candidate_paths, finish_layer
from sinkjax.instruments.traced import (
    enter,
    layer_of,
    select_paths,
    selected_layer,
    selected_residuals,
)
from sinkjax.instruments.traced_attention import Selection, selected_attention
from sinkjax.masks.mask import SinkMask
from sinkjax.masks.paths import Full, Path
from sinkjax.models.decoder import Layer, Llama

_BLOCK = 128  # positions whose logits are there at once


@dataclasses.dataclass(frozen=True, eq=False)
class Prediction:
    """What moves away from a mask cost in KL, to second order.

    A set of moves costs Σ linear + ½ [(1 - λ) mean_n (Σ products_n)² + λ Σ mean_n products_n²],
    with λ as `shrinkage` gives it: sums over the moves of the set, means over draws.

    Attributes:
      mask: that the moves go from.
      linear: float64 [1 + P, L, N], of `full` and then of each path; of the path that a head is on
        it is the cost of staying, which only differences have to be told from.
      products: float64 [draws, 1 + P, L, N]; none, where costs only add up.
    """

    mask: SinkMask
    linear: np.ndarray
    products: np.ndarray


def predict_moves(
    model: Llama,
    windows: np.ndarray,
    paths: Sequence[Path],
    *,
    mask: SinkMask | None = None,
    fills: np.ndarray | None = None,
    samples: int = 8,
    seed: int = 0,
) -> Prediction:
    """What every move away from a mask costs.

    Args:
      model: every head `full`.
      windows: int32 [W, T], T at least 2.
      paths: P of `window` and `sink`.
      mask: that moves are made from; None for the baseline.
      fills: float32 [L, N, H], of `sink(mean)`.
      samples: draws of labels, backward passes.
      seed: of the draws.

    Returns:
      costs in the mean KL, nats a scored position; may be negative under a mask. Draws are W times
      `samples`, those of one window together.
    """
    config = model.config
    mask = SinkMask.full(config) if mask is None else mask
    baseline = select_paths(SinkMask.full(config), config)
    current = select_paths(mask, config, fills=fills)
    tried = candidate_paths(model, [Full(), *paths], fills)
    keys = jax.random.split(jax.random.key(seed), len(windows))
    linear = np.zeros((1 + len(paths), config.num_layers, config.num_heads))
    draws = []
    for batch, (tokens, count) in enumerate(batches(windows)):
        x, context = enter(model, tokens)
        inputs = []
        for index, layer in enumerate(model.layers):
            inputs.append(x)
            x = selected_layer(layer, x, context, layer_of(current, index))
        y = selected_residuals(model, tokens, baseline)
        slopes = _slopes(_Head(model), y, x, keys[batch], samples)
        found = np.zeros((1 + samples, count, *linear.shape))
        for index in reversed(range(config.num_layers)):
            slopes, products = _back(
                model.layers[index],
                inputs.pop(),
                context,
                layer_of(current, index),
                layer_of(tried, index),
                slopes,
            )
            found[..., index, :] = np.moveaxis(np.asarray(products)[:, :, :count], 0, 2)
        linear += found[0].sum(axis=0)
        draws.append(found[1:].swapaxes(0, 1).reshape(-1, *linear.shape))
    scored = windows.shape[1] - SCORE_FROM
    return Prediction(mask, linear / windows.shape[0] / scored, np.concatenate(draws) / scored**0.5)


class _Head(nnx.Module):
    """Norm and output weight [V, D]."""

    def __init__(self, model: Llama):
        self.norm, self.head = model.norm, model.head
        self.embedding = model.embedding if model.head is None else None

    def weight(self) -> jax.Array:
        """[V, D]."""
        return self.embedding[...] if self.head is None else self.head[...]


@functools.partial(jax.jit, static_argnames="samples")
def _slopes(head: _Head, y: jax.Array, x: jax.Array, key: jax.Array, samples: int) -> jax.Array:
    """The slopes at the residual stream: of the KL, and of ln q of each drawn label.

    Args:
      y, x: [B, T, D], the baseline's stream and the current one.

    Returns:
      [1 + samples, B, T, D], 0 at positions that are not scored.
    """
    batch, length, size = x.shape
    scored = length - SCORE_FROM
    weight = head.weight()
    normed, from_normed = jax.vjp(head.norm, x[:, SCORE_FROM:])
    rows = normed.reshape(-1, size), head.norm(y[:, SCORE_FROM:]).reshape(-1, size)
    uniform = jax.random.uniform(key, (batch * scored, samples))

    def block(slices: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
        mine, its, drawn = slices
        equation, wide = "cd,vd->cv", jnp.float32
        q, p = (
            jax.nn.softmax(jnp.einsum(equation, z, weight, preferred_element_type=wide))
            for z in (mine, its)
        )
        # The label is the first whose cumulative probability is above the draw.
        total = jnp.cumsum(q, axis=-1)
        below = total[:, None, :] <= (drawn * total[:, -1:])[:, :, None]
        labels = jnp.minimum(below.sum(axis=-1), q.shape[-1] - 1)
        expected = jnp.stack([q, p]).astype(weight.dtype) @ weight
        of_kl = (expected[0] - expected[1])[:, None]
        return jnp.concatenate([of_kl, weight[labels] - expected[0][:, None]], axis=1)

    found = _by_blocks(block, (*rows, uniform)).reshape(batch, scored, 1 + samples, size)
    slopes = jax.lax.map(lambda z: from_normed(z)[0], jnp.moveaxis(found, 2, 0).astype(x.dtype))
    return jnp.pad(slopes, ((0, 0), (0, 0), (SCORE_FROM, 0), (0, 0)))


@jax.jit
def _back(
    layer: Layer,
    x: jax.Array,
    context: Context,
    chosen: Selection,
    candidates: Selection,
    slopes: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Slopes [S, B, T, D] after a layer to those before it, and moves' products with them.

    Returns:
      the slopes, and float32 [P, S, B, N] of each head's change under each candidate.
    """
    q, k, v = layer.attention.project(layer.attention_norm(x), context.cos, context.sin)
    now = selected_attention(q, k, v, chosen)

    def forward(x: jax.Array, shift: jax.Array) -> jax.Array:
        q, k, v = layer.attention.project(layer.attention_norm(x), context.cos, context.sin)
        return finish_layer(layer, x, selected_attention(q, k, v, chosen) + shift)

    _, backward = jax.vjp(forward, x, jnp.zeros_like(now))
    before, of_outputs = jax.lax.map(backward, slopes)

    def products(candidate: Selection) -> jax.Array:
        change = selected_attention(q, k, v, candidate) - now
        return jnp.einsum("sbtnh,btnh->sbn", of_outputs, change, preferred_element_type=jnp.float32)

    return before, jax.lax.map(products, candidates)


def _by_blocks(block, arrays: tuple[jax.Array, ...]) -> jax.Array:
    """`block` of slices of [C, ...] arrays, one after another; its results [C, ...]."""
    count = arrays[0].shape[0]
    size = min(_BLOCK, count)
    blocks = -(-count // size)
    padded = [
        jnp.pad(x, ((0, blocks * size - count), (0, 0))).reshape(blocks, size, -1) for x in arrays
    ]
    found = jax.lax.map(block, tuple(padded))
    return found.reshape(-1, *found.shape[2:])[:count]
