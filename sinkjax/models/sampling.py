"""Draws the next token from logits: greedy, temperature, top-k, top-p.

The settings are arrays, so one executable serves them all; which of three ways it goes (greedy,
plain, filtered) is decided at run time, so that greedy decoding never pays for the filters.

A row's randomness is its seed and the position of the token that is drawn, and nothing else: not
the row's place in a batch, not what the other rows hold, not how many steps one call makes.
"""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float32, Int32, UInt32

from sinkjax.errors import InputError, Problem, number, whole

Logits = Float32[Array, "B V"]
Rows = Int32[Array, " B"]

NO_TOKEN = -1
"""What is drawn from logits that are not all finite; no token has this id."""

_NUMBERS = np.finfo(np.float32)
_COLD = 1e-4  # below it the likeliest token's logit is taken off, so that quotients stay finite


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Sampler:
    """How to draw tokens, as the arrays that a program reads. A pytree.

    Attributes:
      seed: of each row.
      temperature: 0 is greedy.
      top_k: only the k likeliest tokens are drawn from. V or more: all of them.
      top_p: of those, the fewest likeliest whose probabilities reach p. 1: all of them.
    """

    seed: UInt32[Array | np.ndarray, " B"]
    temperature: Float32[Array | np.float32, ""]
    top_k: Int32[Array | np.int32, ""]
    top_p: Float32[Array | np.float32, ""]


def make_sampler(
    seeds: Sequence[int],
    *,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
) -> Sampler:
    """Returns a sampler for B rows, each with its seed; None for all tokens.

    Raises:
      InputError: naming every setting that is out of its range, or that greedy decoding would
        ignore.
    """
    problems = []
    heat, share = number(temperature), number(top_p)
    if not (np.isfinite(heat) and heat >= 0):
        problems.append(Problem("temperature", temperature, "0 (greedy) or more is allowed"))
    if top_k is not None and (whole(top_k) or 0) < 1:
        text = "whole numbers from 1 on are allowed, or none for all tokens"
        problems.append(Problem("top_k", top_k, text))
    if top_p is not None and not 0 < share <= 1:
        problems.append(Problem("top_p", top_p, "above 0 and at most 1 is allowed, or none"))
    odd = [seed for seed in seeds if whole(seed) is None]
    problems += [Problem("seed", seed, "a whole number is needed") for seed in odd]
    if heat == 0 and (top_k is not None or top_p is not None):
        text = (
            "it takes the likeliest token: top_k and top_p would change nothing. Set a "
            "temperature, or leave them out"
        )
        problems.append(Problem("temperature", temperature, text))
    if problems:
        raise InputError(*problems)
    # A device takes numbers below the least normal one for 0, which is greedy.
    if heat > 0:
        heat = min(max(heat, float(_NUMBERS.tiny)), float(_NUMBERS.max))
    most = np.iinfo(np.int32).max
    return Sampler(
        seed=np.asarray([int(seed) % 2**32 for seed in seeds], np.uint32),
        temperature=np.float32(heat),
        top_k=np.int32(most if top_k is None else min(int(top_k), most)),
        top_p=np.float32(1.0 if top_p is None else share),
    )


def draw(logits: Logits, sampler: Sampler, positions: Rows) -> Rows:
    """Returns the next token of each row, at its position; of equal logits the lower token id.

    A row whose logits are not all finite has `NO_TOKEN`.
    """
    filtered = (sampler.top_k < logits.shape[-1]) | (sampler.top_p < 1)
    way = jnp.where(sampler.temperature == 0, 0, jnp.where(filtered, 2, 1))
    ways = (_greedy, _plain, _filtered)
    with jax.named_scope("sampling"):
        tokens = jax.lax.switch(way, ways, logits, sampler, positions)
        # A maximum would not do: XLA's loses NaN on CPUs.
        return jnp.where(jnp.isfinite(logits).all(axis=-1), tokens, NO_TOKEN)


def _greedy(logits: Logits, sampler: Sampler, positions: Rows) -> Rows:
    # Two plain reductions: on a CPU a tenth of the time of argmax, which carries pairs, and where
    # words lie over a mesh two small sums, not the whole vocabulary on every device.
    top = logits.max(axis=-1, keepdims=True)
    ids = jnp.arange(logits.shape[-1], dtype=jnp.int32)[None, :]
    return jnp.where(logits == top, ids, logits.shape[-1] - 1).min(axis=-1)


def _plain(logits: Logits, sampler: Sampler, positions: Rows) -> Rows:
    """Uses the Gumbel-max trick: argmax of logits + noise is a draw from their softmax."""
    return _greedy(
        _scaled(logits, sampler) + _noise(logits, sampler, positions), sampler, positions
    )


def _filtered(logits: Logits, sampler: Sampler, positions: Rows) -> Rows:
    """Draws as `_plain` does from the tokens that both filters leave.

    The filters are thresholds found by bisection, for which sums are enough: a sort takes a CPU as
    long as a whole step, and would bring the vocabulary of a mesh together on every device.
    """
    # By the logits themselves: a high temperature makes them all one.
    keys, scaled = _keys(logits), _scaled(logits, sampler)
    counted = jnp.ones_like(logits)
    likeliest = _first(keys, counted, jnp.full(logits.shape[:1], sampler.top_k, jnp.float32))
    shares = jnp.where(likeliest, jnp.exp(scaled - scaled.max(axis=-1, keepdims=True)), 0)
    # One token always stays, whatever a device makes of a tiny share.
    limit = jnp.maximum(sampler.top_p * shares.sum(axis=-1), _NUMBERS.tiny)
    stays = likeliest & ((sampler.top_p >= 1) | _first(keys, shares, limit))
    noisy = jnp.where(stays, scaled + _noise(logits, sampler, positions), -jnp.inf)
    return _greedy(noisy, sampler, positions)


def _keys(logits: Logits) -> UInt32[Array, "B V"]:
    """Returns whole numbers in the order of the logits."""
    without_signed_zeros = jnp.where(logits == 0, 0.0, logits)
    bits = jax.lax.bitcast_convert_type(without_signed_zeros, jnp.uint32)
    negative = bits >> 31 == 1
    return jnp.where(negative, ~bits, bits | jnp.uint32(1 << 31))


def _first(
    keys: UInt32[Array, "B V"], weights: Float32[Array, "B V"], limit: Float32[Array, " B"]
) -> Bool[Array, "B V"]:
    """Returns the tokens, from the highest key on, that have less weight before them than a limit.

    Of equal keys the lower id comes first.
    """
    ids = jnp.arange(keys.shape[-1], dtype=jnp.uint32)[None, :]

    def least(holds: Callable[[UInt32[Array, " B"]], Bool[Array, " B"]], bits: int):
        """The least number below 2^bits from which on something holds, as it does of the last."""

        def halve(step: Int32[Array, ""], low: UInt32[Array, " B"]) -> UInt32[Array, " B"]:
            size = jnp.uint32(1) << jnp.uint32(bits - 1 - step)
            return jnp.where(holds(low + size - 1), low, low + size)

        return jax.lax.fori_loop(0, bits, halve, jnp.zeros_like(limit, jnp.uint32))

    def weight(of: Bool[Array, "B V"]) -> Float32[Array, " B"]:
        return jnp.sum(weights, axis=-1, where=of)

    lowest = least(lambda key: weight(keys > key[:, None]) < limit, 32)[:, None]
    above, equal = keys > lowest, keys == lowest
    left = limit - weight(above)
    # The first of those with the lowest key that has as much before it, or none.
    end = least(lambda n: weight(equal & (ids <= n[:, None])) >= left, keys.shape[-1].bit_length())
    return above | (equal & (ids <= end[:, None]))


def _scaled(logits: Logits, sampler: Sampler) -> Logits:
    """Returns logits over the temperature, up to a number that all of a row may share."""
    cold = sampler.temperature < _COLD
    top = jnp.where(cold, logits.max(axis=-1, keepdims=True), 0)
    return (logits - top) / sampler.temperature


def _noise(logits: Logits, sampler: Sampler, positions: Rows) -> Logits:
    """Returns Gumbel noise."""

    def row(seed: Array | np.ndarray, position: Array) -> Float32[Array, " V"]:
        # Of a kind that is a row's own under vmap, whatever JAX's default is: of `rbg` it is not.
        key = jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), position)
        return jax.random.gumbel(key, logits.shape[-1:], jnp.float32)

    return jax.vmap(row)(sampler.seed, positions)
