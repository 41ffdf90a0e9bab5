"""Scores of each token under models, from their residual streams, a block of positions at a time.

Logits are the largest arrays that quality needs: they exist for one block of positions only.

Axes: B batch, P scored positions, D model size, V vocabulary, C positions of a block.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from sinkjax.attention.context import Context
from sinkjax.models.decoder import Layer, Llama
from sinkjax.models.rope import rotary_tables
from sinkjax.models.sharding import row_shards

TOP = 5
"""The number of likeliest tokens that are compared."""

_BLOCK = 128  # positions: two models' logits over 128k tokens take 128 MB, and products stay large


class Scores(NamedTuple):
    """One model's predictions of tokens.

    Attributes:
      nll: float32 [B, P], -ln of the probability of each next token.
      correct: bool [B, P], whether it is the likeliest: greedy decoding would have drawn it.
    """

    nll: jax.Array
    correct: jax.Array


class Comparison(NamedTuple):
    """The difference of two models' predictions.

    Attributes:
      kl: float32 [B, P], KL(baseline ‖ candidate) in nats, never negative.
      top1: bool [B, P], whether the same token is the likeliest under both.
      top5: float32 [B, P], the share of the baseline's `TOP` likeliest tokens that are among the
        candidate's.
      baseline, candidate: the scores of each.
    """

    kl: jax.Array
    top1: jax.Array
    top5: jax.Array
    baseline: Scores
    candidate: Scores


class OutputHead(nnx.Module):
    """A model's last norm and output head: the same for all its masks, so compiled once for all.

    Attributes:
      row_shards: static, the parts of a mesh over which rows lie.
    """

    logits = Llama.logits
    output_weight = Llama.output_weight

    def __init__(self, model: Llama):
        self.config, self.norm, self.head = model.config, model.norm, model.head
        self.embedding = model.embedding if model.head is None else None
        self.row_shards = row_shards(model)


def residuals(model: Llama, tokens: jax.Array, lengths: jax.Array | None = None) -> jax.Array:
    """The residual stream that `model.hidden` gives, compiled a layer at a time.

    Layers of one structure share what is compiled for them, in one model or in several: a mask
    that differs from another in few layers costs the compile time of those.

    int [B, T], right-padded where the `lengths` int [B] are shorter, to [B, T, D].
    """
    x, context = model.enter(tokens, lengths)
    for layer in model.layers:
        x, context, _ = _pass(layer, x, context)
    return x


def decoded_residuals(model: Llama, tokens: jax.Array, prompt: int) -> tuple[jax.Array, jax.Array]:
    """The residual streams of a prompt and of the tokens after it, which decoding would read.

    Every layer leaves the cache that its mask has, and the tokens after the prompt, as one piece,
    attend to it: what many decode steps would give, at the cost of a longer prompt.

    int [B, T + M], full rows, of which T are the prompt, to [B, T, D] and [B, M, D].
    """
    length = tokens.shape[1]
    x, context = model.enter(tokens[:, :prompt], max_length=length)
    positions = jnp.arange(prompt, length, dtype=jnp.int32)
    # Under dynamic rope a token's angles go by the length that the text has as it is decoded.
    of_positions = rotary_tables(model.config, positions[:, None], positions + 1)
    rotary = jax.tree.map(lambda angles: angles.swapaxes(0, 1), of_positions)
    lengths = jnp.full((len(tokens),), length, jnp.int32)
    later = Context(rotary, lengths, length, start=jnp.int32(prompt))
    y = model.embed(tokens[:, prompt:])
    for layer in model.layers:
        x, context, cache = _pass(layer, x, context)
        y, later, _ = _extend(layer, y, later, cache)
    return x, y


_pass, _extend = jax.jit(Layer.__call__), jax.jit(Layer.extend)


@jax.jit
def score_tokens(model: OutputHead, residual: jax.Array, next_tokens: jax.Array) -> Scores:
    """Scores a model's predictions of next tokens int [B, P] from its last residual [B, P, D]."""

    def block(x: jax.Array, targets: jax.Array) -> Scores:
        logits = model.logits(x[None])
        return Scores(_nll(logits, targets)[0], _likeliest(logits, 1)[0, :, 0] == targets)

    return by_blocks(block, residual, next_tokens, shards=model.row_shards)


@jax.jit
def compare_tokens(
    baseline: OutputHead,
    candidate: OutputHead,
    baseline_residual: jax.Array,
    candidate_residual: jax.Array,
    next_tokens: jax.Array,
) -> Comparison:
    """Compares two models' predictions at each position, and scores them.

    Equal logits give a KL of exactly 0, whatever XLA makes of the rest. Residuals [B, P, D] are the
    streams after the last layers; next tokens are int [B, P].
    """

    def block(x: jax.Array, y: jax.Array, targets: jax.Array) -> Comparison:
        # In one array, so that one reduction serves both, with the same bits for the same logits.
        logits = jnp.concatenate([baseline.logits(x[None]), candidate.logits(y[None])])
        top = _likeliest(logits, TOP)
        shared = (top[0][:, :, None] == top[1][:, None, :]).sum(axis=(1, 2))
        nll, correct = _nll(logits, targets), top[:, :, 0] == targets[None]
        return Comparison(
            kl=_kl(logits),
            top1=top[0, :, 0] == top[1, :, 0],
            top5=shared.astype(jnp.float32) / TOP,
            baseline=Scores(nll[0], correct[0]),
            candidate=Scores(nll[1], correct[1]),
        )

    streams = baseline_residual, candidate_residual
    return by_blocks(block, *streams, next_tokens, shards=baseline.row_shards)


@jax.jit
def token_divergences(
    model: OutputHead, baseline_residual: jax.Array, candidate_residual: jax.Array
) -> jax.Array:
    """The KL of `compare_tokens` alone, of two residual streams of one model.

    [B, P, D] twice, after the last layer, to float32 [B, P], KL(baseline ‖ candidate) in nats.
    """

    def block(x: jax.Array, y: jax.Array) -> jax.Array:
        return _kl(model.logits(jnp.stack([x, y])))

    return by_blocks(block, baseline_residual, candidate_residual, shards=model.row_shards)


def _kl(logits: jax.Array) -> jax.Array:
    """KL(p ‖ q) of float32 [2, C, V]: float32 [C].

    As Σ p·(e^-d - 1 + d) with d = ln p - ln q, which is Σ p·d since p and q both sum to 1 (the
    I-divergence of Csiszár 1975). No term is negative, so none cancels another: where p and q are
    near, the sum is exact to its own size and not to that of the largest logit's rounding.
    """
    total = jax.nn.logsumexp(logits, axis=-1, keepdims=True)  # [2, C, 1]
    d = (logits[0] - logits[1]) - (total[0] - total[1])
    p, q = jnp.exp(logits - total)
    near = p * jnp.maximum(jnp.expm1(-d) + d, 0)
    far = q - p + p * d
    return jnp.sum(jnp.where(jnp.abs(d) < 1, near, far), axis=-1)


def _nll(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """float32 [M, C, V] and int [C] to float32 [M, C]."""
    index = jnp.broadcast_to(targets[None, :, None], (*logits.shape[:2], 1))
    chosen = jnp.take_along_axis(logits, index, axis=-1)[..., 0]
    return jax.nn.logsumexp(logits, axis=-1) - chosen


def _likeliest(logits: jax.Array, count: int) -> jax.Array:
    """float32 [M, C, V] to int32 [M, C, count], the likeliest token first."""
    # XLA on a CPU selects only where it sees top_k itself: with a slice of it merged in, it sorts
    # the whole vocabulary, which took 40 times as long.
    return jax.lax.optimization_barrier(jax.lax.top_k(logits, count)[1])


def by_blocks(block: Callable[..., Any], *arrays: jax.Array, shards: int = 1) -> Any:
    """Computes a function of positions for a block of them after another.

    Args:
      block: from slices [C, ...] of the arrays to a pytree of results [C, ...].
      arrays: [B, P, ...] each. Positions of 0 are added to fill up the last block.
      shards: parts of a mesh over which rows lie, each of which has a block of its own at a time.

    Returns:
      the results, [B, P, ...] each.
    """
    shape = arrays[0].shape[:2]
    shards = shards if shape[0] % shards == 0 else 1
    count = shape[0] * shape[1] // shards
    size = min(_BLOCK, count)
    blocks = -(-count // size)

    def split(array: jax.Array) -> jax.Array:
        rest = array.shape[2:]
        rows = array.reshape(shards, count, *rest)
        padding = [(0, 0), (0, blocks * size - count)] + [(0, 0)] * len(rest)
        rows = jnp.pad(rows, padding).reshape(shards, blocks, size, *rest)
        return rows.swapaxes(0, 1).reshape(blocks, shards * size, *rest)

    def join(array: jax.Array) -> jax.Array:
        rest = array.shape[2:]
        rows = array.reshape(blocks, shards, size, *rest).swapaxes(0, 1)
        return rows.reshape(shards, -1, *rest)[:, :count].reshape(*shape, *rest)

    results = jax.lax.map(lambda slices: block(*slices), tuple(map(split, arrays)))
    return jax.tree.map(join, results)
