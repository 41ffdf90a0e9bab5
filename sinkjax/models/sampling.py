"""From logits to the next token: greedy, temperature, top-k, top-p.

The settings are arrays, so one executable serves them all; which of three ways it goes (greedy,
plain, filtered) is decided at run time, so that greedy decoding never pays for a sort of V logits.

A row's randomness is its seed and the position of the token that is drawn, and nothing else: not
the row's place in a batch, not what the other rows hold, not how many steps one call makes.
"""

import dataclasses
import operator
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32, Int32, UInt32

from sinkjax.errors import InputError, Problem

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
    for seed in seeds:
        if whole(seed) is None:
            problems.append(Problem("seed", seed, "a whole number is needed"))
    if heat == 0 and (top_k is not None or top_p is not None):
        problems.append(
            Problem(
                "temperature",
                temperature,
                "it takes the likeliest token: top_k and top_p would change nothing. Set a "
                "temperature, or leave them out",
            )
        )
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


def whole(value: Any) -> int | None:
    """Returns a whole number of any type; None for what is none, as True and 2.0 are."""
    if isinstance(value, bool | np.bool_):
        return None
    try:
        return operator.index(value)
    except TypeError:
        return None


def number(value: Any) -> float:
    """Returns a number of any type; NaN for what is none, as True and "1" are."""
    if isinstance(value, bool | np.bool_ | str | bytes):
        return np.nan
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return np.nan


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
    # By the logits themselves: a high temperature makes them all one.
    order = jnp.argsort(-logits, axis=-1, stable=True)
    ranked = jnp.take_along_axis(_scaled(logits, sampler), order, axis=-1)
    rank = jnp.arange(logits.shape[-1], dtype=jnp.int32)[None, :]
    ranked = jnp.where(rank < sampler.top_k, ranked, -jnp.inf)
    shares = jax.nn.softmax(ranked, axis=-1)
    before = jnp.cumsum(shares, axis=-1) - shares
    # One token always stays, whatever a device makes of a tiny share; rounding can leave a tail
    # above 1.
    stays = (before < sampler.top_p) | (sampler.top_p >= 1) | (rank == 0)
    ranked = jnp.where(stays, ranked, -jnp.inf)
    # Noise belongs to the token, not to its rank: a filter that removes nothing changes nothing.
    noise = jnp.take_along_axis(_noise(logits, sampler, positions), order, axis=-1)
    choice = jnp.argmax(ranked + noise, axis=-1, keepdims=True)
    return jnp.take_along_axis(order, choice, axis=-1)[:, 0].astype(jnp.int32)


def _scaled(logits: Logits, sampler: Sampler) -> Logits:
    """Returns logits over the temperature, up to a number that all of a row may share."""
    cold = sampler.temperature < _COLD
    top = jnp.where(cold, logits.max(axis=-1, keepdims=True), 0)
    return (logits - top) / sampler.temperature


def _noise(logits: Logits, sampler: Sampler, positions: Rows) -> Logits:
    """Returns Gumbel noise."""

    def row(seed: Array | np.ndarray, position: Array) -> Float32[Array, " V"]:
        key = jax.random.fold_in(jax.random.key(seed), position)
        return jax.random.gumbel(key, logits.shape[-1:], jnp.float32)

    return jax.vmap(row)(sampler.seed, positions)
