"""The `copy` path: an earlier head's pattern on this head's own values.

Only what is copied is kept: the patterns of a layer's source heads, T² numbers each (of a window,
T·(c + w)), from their layer to the last that copies them. In decoding it is one row.
"""

import itertools
from collections.abc import Iterable, Sequence

import jax
import jax.numpy as jnp
from flax import struct

from sinkjax.attention.cache import Layout, view_weights
from sinkjax.attention.context import PartName
from sinkjax.attention.full import Pattern, apply_causal_pattern, causal_pattern
from sinkjax.attention.window import apply_window_pattern, window_pattern
from sinkjax.masks.paths import Full, Window

Source = tuple[PartName, int]
"""A head that is copied: its part, and its number among the part's heads."""


@struct.dataclass
class SlotWeights:
    """How the heads of a part attend in one decoding step.

    Attributes:
      weights: float32 [B, N, S].
      layout: of the slots.
    """

    weights: jax.Array
    layout: Layout = struct.field(pytree_node=False)


def keep_pattern(q: jax.Array, k: jax.Array, path: Full | Window, dtype: jnp.dtype) -> Pattern:
    """How heads attend, kept for later layers: q [B, T, N, H], k [B, T, K, H], rotated."""
    if isinstance(path, Window):
        return window_pattern(q, k, path, dtype)
    return causal_pattern(q, k, dtype)


def apply_pattern(pattern: Pattern, v: jax.Array, path: Full | Window) -> jax.Array:
    """A pattern that heads on this path left, on values [B, T, K, H] -> [B, T, N, H]."""
    if isinstance(path, Window):
        return apply_window_pattern(pattern, v, path)
    return apply_causal_pattern(pattern, v)


def copied_pattern(patterns: dict[PartName, Pattern], sources: Sequence[Source]) -> Pattern:
    """The patterns of source heads, in this order, as one pattern."""
    runs = zip(*(_heads(patterns[name], heads) for name, heads in _by_part(sources)), strict=True)
    return tuple(_join(run) for run in runs)


def copied_weights(
    patterns: dict[PartName, SlotWeights], sources: Sequence[Source], view: Layout, t: jax.Array
) -> jax.Array:
    """The decoding weights of source heads, in this order, on the slots of a view: [B, N, S]."""
    return _join(
        view_weights(_heads((kept.weights,), heads)[0], kept.layout, view, t)
        for kept, heads in ((patterns[name], heads) for name, heads in _by_part(sources))
    )


def _by_part(sources: Sequence[Source]) -> list[tuple[PartName, list[int]]]:
    """Runs of sources of one part."""
    parts = itertools.groupby(sources, key=lambda source: source[0])
    return [(name, [head for _, head in run]) for name, run in parts]


def _heads(arrays: Pattern, heads: list[int]) -> Pattern:
    """Some heads of arrays [B, N, ...]; without a copy where they are all of them, in order."""
    if heads == list(range(arrays[0].shape[1])):
        return arrays
    return tuple(array[:, jnp.array(heads)] for array in arrays)


def _join(arrays: Iterable[jax.Array]) -> jax.Array:
    """Heads of several arrays [B, N, ...], one after the other."""
    arrays = list(arrays)
    return arrays[0] if len(arrays) == 1 else jnp.concatenate(arrays, axis=1)
