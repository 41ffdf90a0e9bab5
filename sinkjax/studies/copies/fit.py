"""How well every earlier head's pattern would serve every head, all pairs in one pass.

For head n of layer l with pattern A and values v, and an earlier head's pattern A', over positions
t >= 1:

  pattern  the root of the mean of ‖A'_t - A_t‖²
  output   the root of the mean of ‖W_o (A'_t v - A_t v)‖² / ‖x_t‖², the head's own error under
           `copy`, with W_o its slice of the output projection and x the residual stream

The inputs of every layer are the baseline's. W_o comes in as a square root of W_o W_oᵀ applied to
the values, so that a pair costs T²·H and not T²·D.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from sinkjax.attention.context import Context
from sinkjax.instruments.patterns import BATCH_TOKENS, apply_dense, dense_pattern, no_patterns
from sinkjax.instruments.traced import enter
from sinkjax.models.decoder import Layer, Llama

CRITERIA = ("pattern", "output")


@struct.dataclass
class SourceFit:
    """What `fit_sources` found, float64 [L, N, L, N]: of each head, by the head it would copy.

    +inf where the other head is not of an earlier layer.

    Attributes:
      pattern, output: as above.
      nothing: [L, N], the root of the mean of ‖W_o A_t v‖² / ‖x_t‖²: the head's own error were it
        taken out. A copy above this is worse than nothing in place of the head.
    """

    pattern: np.ndarray
    output: np.ndarray
    nothing: np.ndarray


def fit_sources(
    model: Llama,
    windows: np.ndarray,
    on_progress: Callable[[int], None] = lambda tokens: None,
) -> SourceFit:
    """Every pair of heads of a later and an earlier layer.

    Args:
      model: every head `full`, of N heads in each of L layers.
      windows: int32 [W, T], T at least 2. Memory holds the patterns of `BATCH_TOKENS` tokens' rows,
        or of one, T²·L·N numbers a row.
      on_progress: called with the number of tokens that were measured.

    Raises:
      ValueError: for windows that are not [W, T] with T at least 2.
    """
    windows = np.asarray(windows)
    if windows.ndim != 2 or not windows.size or windows.shape[1] < 2:
        raise ValueError(f"windows have shape {windows.shape}; [W, T] with T of 2 or more")
    layers, heads = model.config.num_layers, model.config.num_heads
    squares = {name: np.zeros((layers, heads, layers, heads)) for name in CRITERIA}
    nothing = np.zeros((layers, heads))
    rows = max(1, BATCH_TOKENS // windows.shape[1])
    for start in range(0, len(windows), rows):
        tokens = jnp.asarray(windows[start : start + rows], jnp.int32)
        x, context = enter(model, tokens)
        patterns = no_patterns(model, tokens)
        for index, layer in enumerate(model.layers):
            x, patterns, found, own = _fit(layer, x, context, patterns, jnp.int32(index))
            for name, array in zip(CRITERIA, found, strict=True):
                squares[name][index] += np.moveaxis(np.asarray(array, np.float64), -1, 0)
            nothing[index] += np.asarray(own, np.float64)
        on_progress(tokens.size)
    positions = len(windows) * (windows.shape[1] - 1)
    earlier = np.arange(layers)[:, None] > np.arange(layers)[None, :]
    fits = {
        name: np.where(earlier[:, None, :, None], np.sqrt(array / positions), np.inf)
        for name, array in squares.items()
    }
    return SourceFit(**fits, nothing=np.sqrt(nothing / positions))


@functools.partial(jax.jit, donate_argnames="patterns")
def _fit(
    layer: Layer, x: jax.Array, context: Context, patterns: jax.Array, index: jax.Array
) -> tuple[jax.Array, jax.Array, tuple[jax.Array, jax.Array], jax.Array]:
    """The residual after a layer, the patterns with its own, and sums over rows and positions.

    The sums are those of squares by each criterion, float32 [L, N, N], earlier heads first and 0
    from this layer on, and of what the heads give, [N].
    """
    q, k, v = layer.attention.project(layer.attention_norm(x), context.cos, context.sin)
    own = dense_pattern(q, k)  # [N, B, T, T]
    values = _weighed(layer, v)
    norms = jnp.square(x.astype(jnp.float32)).sum(axis=-1)[:, 1:]  # [B, T - 1]

    def over_positions(squares: jax.Array) -> jax.Array:
        return jnp.sum(squares / norms[None], axis=(1, 2))

    outputs = jnp.einsum("nbts,bsnh->nbth", own[:, :, 1:], values)

    def compare(earlier: jax.Array, found: tuple[jax.Array, jax.Array]) -> tuple:
        theirs = patterns[earlier][:, :, 1:]

        def one(pattern: jax.Array) -> tuple[jax.Array, jax.Array]:
            """One earlier head's pattern [B, T - 1, T] with all heads of this layer."""
            change = jnp.square(pattern[None] - own[:, :, 1:]).sum(axis=(1, 2, 3))
            copied = jnp.einsum("bts,bsnh->nbth", pattern, values)
            return change, over_positions(jnp.square(copied - outputs).sum(axis=-1))

        rows = jax.lax.map(one, theirs)
        return tuple(sums.at[earlier].set(row) for sums, row in zip(found, rows, strict=True))

    layers, heads = patterns.shape[:2]
    start = (jnp.zeros((layers, heads, heads), jnp.float32),) * 2
    found = jax.lax.fori_loop(0, index, compare, start)
    taken_out = over_positions(jnp.square(outputs).sum(axis=-1))
    patterns = jax.lax.dynamic_update_index_in_dim(patterns, own, index, 0)
    x = x + layer.attention.merge(apply_dense(own, v))
    return x + layer.mlp(layer.mlp_norm(x)), patterns, found, taken_out


def _weighed(layer: Layer, v: jax.Array) -> jax.Array:
    """v_n C_n with C_n C_nᵀ = W_n W_nᵀ, for each query head: [B, T, K, H] -> float32 [B, T, N, H].

    So ‖d C_n‖ = ‖d W_n‖ for every difference d of such values' sums.
    """
    o = layer.attention.o[...].astype(jnp.float32)
    gram = jnp.einsum("dnh,dng->nhg", o, o, precision="highest")
    sizes, directions = jnp.linalg.eigh(gram)
    root = directions * jnp.sqrt(jnp.maximum(sizes, 0))[:, None, :]
    repeated = jnp.repeat(v.astype(jnp.float32), o.shape[1] // v.shape[2], axis=2)
    return jnp.einsum("btnh,nhg->btng", repeated, root)
