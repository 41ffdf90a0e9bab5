"""How well every earlier head's pattern would serve every head, all pairs in one pass.

For head n of layer l with pattern A and values v, and an earlier head's pattern A', over positions
t >= 1:

  pattern  the root of the mean of ‖A'_t - A_t‖²
  output   the head's own error under `copy`, as `sinkjax.instruments.own_errors` has it: of
           A'_t v in place of A_t v

The inputs of every layer are the baseline's.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from sinkjax.attention.context import Context
from sinkjax.distributed import to_host
from sinkjax.instruments.batches import batch_rows, batches
from sinkjax.instruments.own_errors import squared_errors
from sinkjax.instruments.patterns import PATTERN_TOKENS, apply_dense, dense_pattern, no_patterns
from sinkjax.models.decoder import Layer, Llama
from sinkjax.models.finite import check_finite
from sinkjax.models.sharding import lay_rows, row_shards

CRITERIA = ("pattern", "output")


@struct.dataclass
class SourceFit:
    """What `fit_sources` gives, float64 [L, N, L, N]: of each head, by the head it would copy.

    +inf where the other head is not of an earlier layer.

    Attributes:
      pattern, output: as above.
      nothing: [L, N], the head's own error were it taken out. A copy above this is worse than
        nothing in place of the head.
    """

    pattern: np.ndarray
    output: np.ndarray
    nothing: np.ndarray


def fit_sources(
    model: Llama,
    excerpts: np.ndarray,
    on_progress: Callable[[int], None] = lambda tokens: None,
) -> SourceFit:
    """Every pair of heads of a later and an earlier layer.

    Args:
      model: every head `full`, of N heads in each of L layers.
      excerpts: int32 [W, T], T at least 2. Memory holds the patterns of as many rows as
        have `PATTERN_TOKENS` tokens, T²·L·N numbers each.
      on_progress: called with the number of tokens that were measured.
    """
    layers, heads = model.config.num_layers, model.config.num_heads
    squares = {name: np.zeros((layers, heads, layers, heads)) for name in CRITERIA}
    nothing = np.zeros((layers, heads))
    rows = batch_rows(excerpts, PATTERN_TOKENS, row_shards(model))
    for tokens, count in batches(model, excerpts, rows):
        new = lay_rows(model, np.arange(rows) < count)  # over which sums go
        x, context = model.enter(tokens)
        patterns = no_patterns(model, tokens)
        for index, layer in enumerate(model.layers):
            x, patterns, of_pairs, of_heads = _fit(
                layer, x, context, patterns, new, jnp.int32(index)
            )
            for name, array in zip(CRITERIA, of_pairs, strict=True):
                squares[name][index] += np.moveaxis(to_host(array).astype(np.float64), -1, 0)
            nothing[index] += to_host(of_heads).astype(np.float64)
        on_progress(count * excerpts.shape[1])
    for sums in (*squares.values(), nothing):
        check_finite("heads' patterns or outputs", sums)
    positions = len(excerpts) * (excerpts.shape[1] - 1)
    earlier = np.arange(layers)[:, None] > np.arange(layers)[None, :]
    fits = {
        name: np.where(earlier[:, None, :, None], np.sqrt(array / positions), np.inf)
        for name, array in squares.items()
    }
    return SourceFit(**fits, nothing=np.sqrt(nothing / positions))


@functools.partial(jax.jit, donate_argnames="patterns")
def _fit(
    layer: Layer,
    x: jax.Array,
    context: Context,
    patterns: jax.Array,
    new: jax.Array,
    index: jax.Array,
) -> tuple[jax.Array, jax.Array, tuple[jax.Array, jax.Array], jax.Array]:
    """The residual after a layer, the patterns with its own, and sums over new rows and positions.

    The sums are those of squares by each criterion, float32 [L, N, N], earlier heads first and 0
    from this layer on, and of what the heads give, [N].
    """

    def attend(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, Any]:
        pattern = dense_pattern(q, k, layer.attention.span, layer.attention.score_cap)
        outputs = apply_dense(pattern, v.astype(jnp.float32))
        return outputs.astype(v.dtype), (pattern, outputs, v)

    after, (own, outputs, v) = layer.attend(x, context, attend)  # own: [N, B, T, T]
    values = jnp.repeat(v.astype(jnp.float32), own.shape[0] // v.shape[2], axis=2)
    errors = squared_errors(layer, x[:, 1:], outputs[:, 1:])

    def over_positions(change: jax.Array) -> jax.Array:
        return jnp.sum(errors(change), axis=(0, 1), where=new[:, None, None])

    def compare(earlier: jax.Array, sums: tuple[jax.Array, jax.Array]) -> tuple:
        theirs = patterns[earlier][:, :, 1:]

        def distances(pattern: jax.Array) -> tuple[jax.Array, jax.Array]:
            """One earlier head's pattern [B, T - 1, T] with all heads of this layer."""
            change = jnp.square(pattern[None] - own[:, :, 1:])
            change = jnp.sum(change, axis=(1, 2, 3), where=new[None, :, None, None])
            copied = jnp.einsum("bts,bsnh->btnh", pattern, values)
            return change, over_positions(copied - outputs[:, 1:])

        rows = jax.lax.map(distances, theirs)
        return tuple(of.at[earlier].set(row) for of, row in zip(sums, rows, strict=True))

    layers, heads = patterns.shape[:2]
    start = (jnp.zeros((layers, heads, heads), jnp.float32),) * 2
    of_pairs = jax.lax.fori_loop(0, index, compare, start)
    taken_out = over_positions(-outputs[:, 1:])
    patterns = jax.lax.dynamic_update_index_in_dim(patterns, own, index, 0)
    return layer.feed_forward(after), patterns, of_pairs, taken_out
