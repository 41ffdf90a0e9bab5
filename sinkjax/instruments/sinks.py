"""Sink scores: the attention of each head on an early key, by all of `sinkjax.masks.definitions`.

The forward pass is the model's own, a layer at a time; each layer is compiled once a shape and its
scores are reduced to these numbers inside it, so that memory grows with T and not with T².
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from sinkjax.attention.context import Context
from sinkjax.attention.full import observed_causal_attention
from sinkjax.distributed import outside_meshes, to_host
from sinkjax.errors import check_array, check_items, check_whole, whole
from sinkjax.instruments.batches import check_tokens
from sinkjax.masks.definitions import BY_NAME, DEFINITIONS, KeyAttention, check_definition
from sinkjax.models.decoder import Attention, Layer, Llama, check_model
from sinkjax.models.finite import check_finite
from sinkjax.models.sharding import gathered, lay_rows, on_devices

MAX_KEY_POSITIONS = 8
DEFAULT_TAIL = 16


@struct.dataclass
class HeadStats:
    """Sink scores and output norms, per prompt, layer and head. A pytree.

    Attributes:
      scores: float32 [definition, C, P, L, N], in the order of `DEFINITIONS` and `key_positions`.
      output_norm: float32 [P, L, N], mean over positions of the norm of the head's output before
        `o_proj`, relative to the mean over the layer's heads: 1 is a typical head.
      key_positions: the C measured keys.
      tail: queries that `tail` averages over.
    """

    scores: jax.Array
    output_norm: jax.Array
    key_positions: tuple[int, ...] = struct.field(pytree_node=False)
    tail: int = struct.field(pytree_node=False)

    def score(self, definition: str, key_position: int | None = None) -> jax.Array:
        """Sink scores under one definition.

        Args:
          definition: one of `DEFINITIONS`.
          key_position: one of the measured ones; None for the first measured.

        Returns:
          float32 [P, L, N].

        Raises:
          ValueError: for a definition that does not exist or a position that was not measured.
        """
        check_definition(definition)
        position = self.key_positions[0] if key_position is None else whole(key_position)
        if position not in self.key_positions:
            raise ValueError(
                f"key position {key_position} was not measured; measured are {self.key_positions}. "
                "Pass it to measure_sinks in key_positions."
            )
        return self.scores[DEFINITIONS.index(definition), self.key_positions.index(position)]


@outside_meshes()
def measure_sinks(
    model: Llama,
    tokens: jax.Array,
    *,
    lengths: jax.Array | None = None,
    key_positions: Sequence[int] = (0,),
    tail: int = DEFAULT_TAIL,
) -> HeadStats:
    """Measures every head's attention on early keys over a batch of prompts.

    Args:
      model: whose heads are all `full`. Over its mesh prompts lie along the axis `data`.
      tokens: int [P, T], right-padded where prompts are shorter than T.
      lengths: int [P], tokens in each prompt; None where every one has T. May be traced, and is
        then taken on trust: what would be an empty mean is NaN.
      key_positions: the keys to measure, static; all within the first eight tokens.
      tail: queries that the definition `tail` averages over; all there are where there are fewer.

    Returns:
      HeadStats over P prompts.

    Raises:
      InputError: for a model whose activations are not finite.
      TypeError: for tokens that are not whole numbers.
      ValueError: for a model with other heads than `full` ones, key positions outside the first
        eight, a tail below 1, tokens that are not [P, T] or not in the vocabulary, or a prompt
        without any query after a measured key, for which all definitions but `mean` and `last`
        would be empty means.
    """
    check_model(model)
    most = MAX_KEY_POSITIONS - 1
    given = check_items("key_positions", key_positions, f"give one or more of 0 to {most}", 1)
    key_positions = tuple(check_whole("key_positions", c, 0, most) for c in given)
    tail = check_whole("tail", tail, 1)
    tokens = check_array("tokens", tokens, jax.Array)
    lengths = None if lengths is None else check_array("lengths", lengths, jax.Array)
    _check(model, tokens, lengths, key_positions)
    model = jax.tree.map(on_devices, model)  # over no explicit axes
    tokens = lay_rows(model, tokens)
    lengths = None if lengths is None else lay_rows(model, lengths)
    x, context = model.enter(tokens, lengths)
    scores, norms = [], []
    for index, layer in enumerate(model.layers):
        x, layer_scores, layer_norms = _attend(
            layer, x, context, key_positions=key_positions, tail=min(tail, tokens.shape[1])
        )
        scores.append(layer_scores)
        norms.append(layer_norms)
        if index + 1 < len(model.layers):  # nothing attends to the last layer's output
            x = _feed_forward(layer, x)
    of_heads, output_norm = jnp.stack(scores, axis=3), jnp.stack(norms, axis=1)
    for name, array in (("sink scores", of_heads), ("heads' outputs", output_norm)):
        check_finite(name, array, lambda *at: " in layer {}, head {}".format(*at[-2:]))
    return HeadStats(
        scores=gathered(of_heads),
        output_norm=gathered(output_norm),
        key_positions=key_positions,
        tail=tail,
    )


def _check(
    model: Llama,
    tokens: jax.Array,
    lengths: jax.Array | None,
    key_positions: tuple[int, ...],
) -> None:
    """Raises for what cannot be measured; traced tokens and lengths are taken on trust."""
    full = [isinstance(layer.attention, Attention) for layer in model.layers]
    masked = [index for index, is_full in enumerate(full) if not is_full]
    if masked:
        raise ValueError(
            f"layers {masked} have heads that are not full; measure the model from which this one "
            "was specialized"
        )
    check_tokens(tokens, model.config.vocab_size, "tokens", "prompts")
    shortest = tokens.shape[1]
    if lengths is not None and not isinstance(lengths, jax.core.Tracer):
        given = to_host(lengths)
        fits = given.shape == tokens.shape[:1] and jnp.issubdtype(given.dtype, jnp.integer)
        if not fits or given.min() < 1 or given.max() > tokens.shape[1]:
            raise ValueError(
                f"lengths are {given}; one for each of {tokens.shape[0]} prompts is needed, "
                f"between 1 and {tokens.shape[1]}"
            )
        shortest = int(given.min())
    if shortest < max(key_positions) + 2:
        raise ValueError(
            f"a prompt has {shortest} tokens; key position {max(key_positions)} needs at least "
            f"{max(key_positions) + 2}, so that a later query exists"
        )


_feed_forward = jax.jit(Layer.feed_forward)


@functools.partial(jax.jit, static_argnames=("key_positions", "tail"))
def _attend(
    layer: Layer, x: jax.Array, context: Context, *, key_positions: tuple[int, ...], tail: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """One layer's residual after attention [P, T, D], scores float32 [definition, C, P, N], and
    relative output norms float32 [P, N].
    """

    def attend(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, Any]:
        of_layer = layer.attention.span, layer.attention.score_cap
        outputs, log_odds = observed_causal_attention(q, k, v, key_positions, *of_layer)
        return outputs, (outputs, log_odds)

    after, (outputs, log_odds) = layer.attend(x, context, attend)
    lengths = context.lengths
    scores = _reduce(log_odds, lengths, key_positions, tail)
    norms = jnp.linalg.norm(outputs.astype(jnp.float32), axis=-1)  # [P, T, N]
    positions = jnp.arange(x.shape[1], dtype=jnp.int32)[None, :, None]
    inside = positions < lengths[:, None, None]
    norms = jnp.sum(norms, axis=1, where=inside) / lengths[:, None].astype(jnp.float32)
    return after, scores, norms / norms.mean(axis=-1, keepdims=True)


def _reduce(
    log_odds: jax.Array, lengths: jax.Array, key_positions: tuple[int, ...], tail: int
) -> jax.Array:
    """Reduces log-odds float32 [P, N, T, C] on each key to scores float32 [definition, C, P, N]."""
    positions = jnp.asarray(key_positions, jnp.int32)
    attention = KeyAttention(jax.nn.sigmoid(log_odds), log_odds, lengths, positions, tail)
    scores = jnp.stack([definition.score(attention) for definition in BY_NAME.values()])
    return jnp.moveaxis(scores, -1, 1)
