"""Learned gates: how much of each head's `full` output is needed, found by distillation.

A head's output is g · (its output as `full`) + (1 - g) · (its output on the reduced path), with a
gate g in (0, 1) of its own, or of its key/value group; all gates start near 1. They are trained to
keep the model's predictions while a price, λ times their mean, draws them down (as in DuoAttention,
Xiao et al. 2024, whose gates keep hidden states). Heads with the lowest gates then leave `full`.
"""

import jax
import jax.numpy as jnp
import numpy as np

from sinkjax.attention.context import Context
from sinkjax.instruments.traced import TracedPaths, full_attention, traced_attention, traced_paths
from sinkjax.masks.mask import SinkMask
from sinkjax.masks.paths import Path
from sinkjax.models.decoder import Layer, Llama

_START = 3.0  # a gate of 0.95


def start_gates(num_layers: int, num_units: int) -> jax.Array:
    """Logits of the first gates: float32 [L, units], the units being heads or groups."""
    return jnp.full((num_layers, num_units), _START, jnp.float32)


def gates_of(logits: jax.Array) -> jax.Array:
    """Gates within (0, 1)."""
    return jax.nn.sigmoid(logits)


class GatedModel:
    """A baseline whose heads lie between `full` and a reduced path, as gates say."""

    def __init__(self, model: Llama, path: Path, *, fills: np.ndarray | None = None):
        """Takes the model as it is.

        Args:
          model: every head `full`.
          path: `window` or `sink`.
          fills: float32 [L, N, H], of `sink(mean)`.
        """
        config = model.config
        everywhere = SinkMask(((path,) * config.num_heads,) * config.num_layers)
        self._model = model
        self._reduced = traced_paths(everywhere, config, fills=fills)

    def residuals(self, logits: jax.Array, tokens: jax.Array) -> jax.Array:
        """The residual stream after the last layer, [B, T, D].

        Args:
          logits: float32 [L, N] or [L, K], of gates.
          tokens: int [B, T], full rows.
        """
        x, context = self._model.enter(tokens)
        gates = gates_of(logits)
        gates = jnp.repeat(gates, self._model.config.num_heads // gates.shape[1], axis=1)
        for index, layer in enumerate(self._model.layers):
            x = _gated_layer(layer, x, context, gates[index], self._reduced.layer(index))
        return x


@jax.jit
def _gated_layer(
    layer: Layer, x: jax.Array, context: Context, gates: jax.Array, reduced: TracedPaths
) -> jax.Array:
    """The residual stream [B, T, D] after a layer with these gates, [N]."""
    cap = layer.attention.score_cap

    def attend(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, None]:
        full = full_attention(q, k, v, layer.attention.span, cap)
        share = gates[None, None, :, None].astype(v.dtype)
        return share * full + (1 - share) * traced_attention(q, k, v, reduced, cap), None

    x, _ = layer.attend(x, context, attend)
    return layer.feed_forward(x)
