"""The cost of a head's change, predicted to second order: all heads and paths in one pass.

With q the model's predictions under the current mask, p the baseline's, and δ what a move adds to a
head's output at all positions of an excerpt, the KL summed over positions changes by

  g·δ + ½ δᵀ F δ,   g = ∂KL(p ‖ q)/∂o,   F = E_y[(∂ ln q(y)/∂o) (∂ ln q(y)/∂o)ᵀ]

F is the Fisher information, for which the labels y of all positions are drawn from q, so that
δᵀ F δ is the mean square of δ's product with one backward pass a draw (Amari 1998; Theis et al.
2018, "Faster gaze prediction with dense networks and Fisher pruning"). Unlike a head's own error it
knows what later layers make of a change, and through g what earlier moves have already cost.

The NLL of a text's own tokens is that KL with all of p on the next token: g is its slope, too.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from sinkjax.attention.blocks import capped
from sinkjax.attention.context import Context
from sinkjax.distributed import to_host
from sinkjax.instruments.batches import batch_rows, batches
from sinkjax.instruments.own_errors import candidate_paths, scored_positions
from sinkjax.instruments.token_losses import OutputHead, by_blocks
from sinkjax.instruments.traced import (
    TracedPaths,
    traced_attention,
    traced_layer,
    traced_paths,
    traced_residuals,
)
from sinkjax.masks.mask import SinkMask
from sinkjax.masks.paths import Full, Path
from sinkjax.models.decoder import Layer, Llama
from sinkjax.models.finite import check_finite
from sinkjax.models.parts import scaled
from sinkjax.models.sharding import row_shards


@dataclasses.dataclass(frozen=True, eq=False)
class Prediction:
    """The cost of moves away from a mask, to second order.

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
    excerpts: np.ndarray,
    paths: Sequence[Path],
    *,
    mask: SinkMask | None = None,
    fills: np.ndarray | None = None,
    samples: int = 8,
    seed: int = 0,
    scored: np.ndarray | None = None,
    cost: Literal["kl", "nll"] = "kl",
) -> Prediction:
    """Predicts the cost of every move away from a mask.

    Args:
      model: every head `full`.
      excerpts: int32 [W, T], T at least 2.
      paths: P of `window` and `sink`.
      mask: that moves are made from; None for the baseline.
      fills: float32 [L, N, H], of `sink(mean)`.
      samples: draws of labels, backward passes.
      seed: of the draws.
      scored: bool [W, T], positions whose predictions count; None for all but the first.
      cost: the `kl` to the baseline's predictions, or the `nll` of the token that comes next.

    Returns:
      costs in the mean of it, nats a scored position; may be negative, a KL's only under a mask.
      Draws are W times `samples`, those of one excerpt together.
    """
    config = model.config
    mask = SinkMask.full(config) if mask is None else mask
    baseline = traced_paths(SinkMask.full(config), config)
    current = traced_paths(mask, config, fills=fills)
    candidates = candidate_paths(model, [Full(), *paths], fills)
    linear = np.zeros((1 + len(paths), config.num_layers, config.num_heads))
    draws = []
    scored = scored_positions(excerpts, scored)
    first = int(scored.any(axis=0).argmax())
    drawn = _drawn(excerpts, first, samples, seed)
    rows = batch_rows(excerpts, shards=row_shards(model))
    parts = zip(*(batches(model, of, rows) for of in (excerpts, scored, drawn)), strict=True)
    for (tokens, count), (counted, _), (uniform, _) in parts:
        x, context = model.enter(tokens)
        inputs = []
        for index, layer in enumerate(model.layers):
            inputs.append(x)
            x = traced_layer(layer, x, context, current.layer(index))
        if cost == "kl":
            wanted = traced_residuals(model, tokens, baseline)
        else:
            wanted = jnp.roll(tokens, -1, axis=1)
        slopes = _slopes(OutputHead(model), wanted, x, uniform, counted, first)
        products = np.zeros((1 + samples, count, *linear.shape))
        for index in reversed(range(config.num_layers)):
            slopes, of_layer = _back(
                model.layers[index],
                inputs.pop(),
                context,
                current.layer(index),
                candidates.layer(index),
                slopes,
            )
            products[..., index, :] = np.moveaxis(to_host(of_layer)[:, :, :count], 0, 2)
        check_finite("logits or their gradients", products)
        linear += products[0].sum(axis=0)
        draws.append(products[1:].swapaxes(0, 1).reshape(-1, *linear.shape))
    of_excerpt = scored.sum() / len(scored)
    return Prediction(mask, linear / scored.sum(), np.concatenate(draws) / of_excerpt**0.5)


def _drawn(excerpts: np.ndarray, first: int, samples: int, seed: int) -> np.ndarray:
    """Numbers from 0 to 1 by which labels are drawn from a first position on.

    Those of a batch of one device have a key of their own, whatever the mesh: over all meshes the
    draws are the same. int [W, T] to float32 [W, T - first, samples].
    """
    count, length = excerpts.shape
    rows = batch_rows(excerpts)
    keys = jax.random.split(jax.random.key(seed), count)[: -(-count // rows)]
    drawn = [jax.random.uniform(key, (rows, length - first, samples)) for key in keys]
    return np.concatenate(drawn)[:count]


@functools.partial(jax.jit, static_argnames="first")
def _slopes(
    head: OutputHead,
    wanted: jax.Array,
    x: jax.Array,
    uniform: jax.Array,
    scored: jax.Array,
    first: int,
) -> jax.Array:
    """The slopes at the residual stream: of the cost, and of ln q of each drawn label.

    Args:
      wanted: [B, T, D], the baseline's stream, for the KL to its predictions; or int [B, T],
        tokens, for their NLL.
      x: [B, T, D], the current stream.
      uniform: float32 [B, T - first, samples], by which labels are drawn.
      scored: int [B, T], positions that are, none of them before the `first`.

    Returns:
      [1 + samples, B, T, D], 0 at positions that are not scored.
    """
    x, wanted = x[:, first:], wanted[:, first:]
    of_tokens = wanted.ndim == 2
    # But for a cap, logits are linear in the normed stream: their multiplier may be the weight's.
    weight = scaled(head.output_weight(), head.config.logit_scale)
    cap_logits = functools.partial(capped, cap=head.config.logit_cap)
    normed, from_normed = jax.vjp(head.norm, x)

    def logits_of(normed: jax.Array) -> tuple[jax.Array, Any]:
        product = jnp.einsum("cd,vd->cv", normed, weight, preferred_element_type=jnp.float32)
        return jax.vjp(cap_logits, product)

    def block(current: jax.Array, aim: jax.Array, drawn: jax.Array) -> jax.Array:
        logits, of_products = logits_of(current)
        q = jax.nn.softmax(logits)
        (slope,) = of_products(jnp.ones_like(logits))  # of the cap; 1 where there is none

        def at(labels: jax.Array) -> jax.Array:
            chosen = jnp.take_along_axis(slope, labels, axis=-1).astype(weight.dtype)
            return chosen[:, :, None] * weight[labels]

        expects = [q] if of_tokens else [q, jax.nn.softmax(logits_of(aim)[0])]
        expected = jnp.stack([p * slope for p in expects]).astype(weight.dtype) @ weight
        of_aim = at(aim)[:, 0] if of_tokens else expected[1]
        # The label is the first whose cumulative probability is above the draw.
        total = jnp.cumsum(q, axis=-1)
        below = total[:, None, :] <= (drawn * total[:, -1:])[:, :, None]
        labels = jnp.minimum(below.sum(axis=-1), q.shape[-1] - 1)
        of_cost = (expected[0] - of_aim)[:, None]
        return jnp.concatenate([of_cost, at(labels) - expected[0][:, None]], axis=1)

    aims = wanted[..., None] if of_tokens else head.norm(wanted)
    of_normed = by_blocks(block, normed, aims, uniform, shards=head.row_shards)
    of_normed = jnp.moveaxis(of_normed, 2, 0).astype(x.dtype)
    slopes = jax.lax.map(lambda z: from_normed(z)[0], of_normed)
    slopes = jnp.where(scored[:, first:, None] > 0, slopes, 0)
    return jnp.pad(slopes, ((0, 0), (0, 0), (first, 0), (0, 0)))


@jax.jit
def _back(
    layer: Layer,
    x: jax.Array,
    context: Context,
    current: TracedPaths,
    candidates: TracedPaths,
    slopes: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Slopes [S, B, T, D] after a layer to those before it, and moves' products with them.

    Returns:
      the slopes, and float32 [P, S, B, N] of each head's change under each candidate.
    """

    def forward(x: jax.Array, shift: jax.Array) -> tuple[jax.Array, Any]:
        def attend(q: jax.Array, k: jax.Array, v: jax.Array):
            outputs = traced_attention(q, k, v, current, layer.attention.score_cap)
            return outputs + shift, (q, k, v, outputs)

        x, observed = layer.attend(x, context, attend)
        return layer.feed_forward(x), observed

    no_shift = jnp.zeros((*x.shape[:2], *layer.attention.o.shape[1:]), x.dtype)
    _, backward, (q, k, v, outputs) = jax.vjp(forward, x, no_shift, has_aux=True)
    before, of_outputs = jax.lax.map(backward, slopes)

    def products(candidate: TracedPaths) -> jax.Array:
        change = traced_attention(q, k, v, candidate, layer.attention.score_cap) - outputs
        return jnp.einsum("sbtnh,btnh->sbn", of_outputs, change, preferred_element_type=jnp.float32)

    return before, jax.lax.map(products, candidates)
