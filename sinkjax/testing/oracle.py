"""The dense oracle: every attention pattern as an explicit array [B, N, T, S]. Right, not fast.

It defines the paths. Each head's output is its pattern applied to the head's own values, plus an
offset that no value enters: the calibrated mean of a `sink` head.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from sinkjax.masks.mask import SinkMask
from sinkjax.masks.paths import Copy, Full, Path, Sink, Window
from sinkjax.models.rope import rotary_tables

if TYPE_CHECKING:
    from sinkjax.models.decoder import Llama

_einsum = functools.partial(jnp.einsum, precision="highest")


def reference_logits(
    model: "Llama",
    mask: SinkMask,
    tokens: jax.Array,
    *,
    lengths: jax.Array | None = None,
    fills: jax.Array | None = None,
    prompt_lengths: jax.Array | None = None,
) -> jax.Array:
    """The logits that `specialize(model, mask, fills=fills)` has to give.

    Args:
      model: the baseline.
      mask: of its shape.
      tokens: int [B, T], right-padded.
      lengths: int [B], tokens in each row; None where every row is full.
      fills: float32 [L, N, H], read where a head is `sink(mean)`.
      prompt_lengths: int [B], tokens of each row that are prefilled at once, the others being
        decoded one by one; None for all. Only dynamic rope and longrope tell the difference.

    Returns:
      float32 [B, T, V]; at padding they mean nothing.
    """
    batch, length = tokens.shape
    full_length = jnp.full((batch,), length, jnp.int32)
    prompt_lengths = next(x for x in (prompt_lengths, lengths, full_length) if x is not None)
    rotary = _rotary(model, length, jnp.asarray(prompt_lengths, jnp.int32))
    x, context = model.enter(tokens, prompt_lengths)
    context = context.replace(rotary=rotary)
    patterns: dict[tuple[int, int], jax.Array] = {}
    for index, (layer, paths) in enumerate(zip(model.layers, mask.heads, strict=True)):
        window = model.config.window(index)
        cap = model.config.score_cap
        attend = functools.partial(_attend, index, paths, window, cap, patterns, fills)
        x, of_layer = layer.attend(x, context, attend)
        patterns.update(of_layer)
        x = layer.feed_forward(x)
    return model.logits(x)


def _attend(
    index: int,
    paths: Sequence[Path],
    window: int | None,
    cap: float | None,
    earlier: Mapping[tuple[int, int], jax.Array],
    fills: jax.Array | None,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
) -> tuple[jax.Array, dict[tuple[int, int], jax.Array]]:
    """One layer's outputs [B, T, N, H], and its patterns."""
    scores = attention_scores(q, k, cap)
    patterns = {
        (index, head): head_pattern(path, scores[:, head], earlier, window)
        for head, path in enumerate(paths)
    }
    outputs = apply_pattern(jnp.stack(list(patterns.values()), axis=1), v)
    for head, path in enumerate(paths):
        if path == Sink("mean"):
            outputs = outputs.at[:, 1:, head].add(fills[index, head].astype(outputs.dtype))
    return outputs, patterns


def head_pattern(
    path: Path,
    scores: jax.Array,
    earlier: Mapping[tuple[int, int], jax.Array],
    window: int | None = None,
) -> jax.Array:
    """The attention pattern of one head.

    Args:
      path: of the head.
      scores: float32 [B, T, S], of its queries on all keys.
      earlier: patterns of heads of earlier layers, by (layer, head).
      window: of the model's own in this layer: tokens that a query may see at all.

    Returns:
      float32 [B, T, S], the weight of each position's value in each position's output.
    """
    length = scores.shape[-1]
    t, s = jnp.arange(length)[:, None], jnp.arange(length)[None, :]
    allowed = (s <= t) & (s > t - (length if window is None else window))
    match path:
        case Full():
            return _softmax(scores, allowed)
        case Window(sinks, recent):
            return _softmax(scores, allowed & ((s < sinks) | (s > t - recent)))
        case Copy(layer, head):
            return earlier[layer, head]
        case Sink(fill):
            first = (s == 0) & ((t == 0) | (fill == "first"))
            return jnp.broadcast_to(first.astype(jnp.float32), scores.shape)


def attention_scores(q: jax.Array, k: jax.Array, cap: float | None = None) -> jax.Array:
    """q_t . k_s / sqrt(H): q [B, T, N, H], k [B, S, K, H], rotated -> float32 [B, N, T, S].

    Head n reads key/value head n // (N / K). With a cap, cap · tanh(score / cap).
    """
    k = jnp.repeat(k, q.shape[2] // k.shape[2], axis=2)
    scores = _einsum("btnh,bsnh->bnts", q, k) / q.shape[3] ** 0.5
    return scores if cap is None else jnp.tanh(scores / cap) * cap


def apply_pattern(pattern: jax.Array, v: jax.Array) -> jax.Array:
    """Σ_s pattern_ts v_s: pattern [B, N, T, S], v [B, S, K, H] -> [B, T, N, H], before `o_proj`."""
    v = jnp.repeat(v, pattern.shape[1] // v.shape[2], axis=2)
    return _einsum("bnts,bsnh->btnh", pattern, v)


def _softmax(scores: jax.Array, visible: jax.Array) -> jax.Array:
    """Over the visible [T, S] of scores [B, T, S]; 0 elsewhere."""
    return jax.nn.softmax(jnp.where(visible[None], scores, -jnp.inf), axis=-1)


def _rotary(model: "Llama", length: int, prompt_lengths: jax.Array) -> tuple:
    """Rotary tables [B, T, H/2] in which each position is turned as when its token came.

    A prompt's tokens come together, at the prompt's length; every later one when there are as many
    tokens as its position says.
    """
    batch = prompt_lengths.shape[0]
    positions = jnp.tile(jnp.arange(length), (batch, 1))
    seen = jnp.maximum(prompt_lengths[:, None], positions + 1)
    tables = rotary_tables(model.config, positions.reshape(-1, 1), seen.reshape(-1))
    return jax.tree.map(lambda angles: angles.reshape(batch, length, -1), tables)
