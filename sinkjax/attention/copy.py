"""The `copy` path: an earlier head's pattern on this head's own values.

Only what is copied is kept: the patterns of a layer's source heads, T² numbers each (of a window,
T·(c + w)), from their layer to the last that copies them. In decoding it is one row.
"""

import itertools
from collections.abc import Sequence

import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, DTypeLike, Float, Float32

from sinkjax.attention.blocks import PerHead, PerKvHead, group_keys, pick_heads
from sinkjax.attention.cache import Layout, Rows, view_weights
from sinkjax.attention.context import PartName
from sinkjax.attention.full import Pattern, apply_stored_pattern, causal_pattern
from sinkjax.attention.window import Seen, apply_seen_pattern, seen_pattern
from sinkjax.masks.paths import Full, Window, reach

CopiedHead = tuple[PartName, int]
"""A head that is copied: its part, and its number among the part's heads."""


@struct.dataclass
class SlotWeights:
    """How the heads of a part attend to the slots of a layout in one decoding step."""

    weights: Float32[Array, "B _ S"]
    layout: Layout = struct.field(pytree_node=False)


def keep_pattern(
    q: PerHead, k: PerKvHead, path: Full | Window, dtype: DTypeLike, cap: float | None
) -> Pattern:
    """Returns how heads attend, to be kept for later layers."""
    path = reach(path, q.shape[1])
    if isinstance(path, Window):
        return seen_pattern(q, Seen.of_prompt(group_keys(k), path), path, 0, dtype, cap)
    return causal_pattern(q, k, dtype, cap)


def apply_pattern(pattern: Pattern, v: PerKvHead, path: Full | Window) -> PerHead:
    """Returns the outputs of a pattern that heads on this path left, on other values."""
    path = reach(path, v.shape[1])
    if isinstance(path, Window):
        return apply_seen_pattern(pattern, Seen.of_prompt(group_keys(v), path), path)
    return apply_stored_pattern(pattern, group_keys(v))


def copied_pattern(patterns: dict[PartName, Pattern], sources: Sequence[CopiedHead]) -> Pattern:
    """Returns the patterns of source heads, in this order, as one pattern."""
    parts = (
        [pick_heads(run, heads) for run in patterns[name]] for name, heads in _by_part(sources)
    )
    return tuple(jnp.concatenate(run, axis=1) for run in zip(*parts, strict=True))


def copied_weights(
    patterns: dict[PartName, SlotWeights], sources: Sequence[CopiedHead], view: Layout, t: Rows
) -> Float[Array, "B N S"]:
    """Returns the decoding weights of source heads, in this order, on the slots of a view."""
    weights = [
        view_weights(pick_heads(patterns[name].weights, heads), patterns[name].layout, view, t)
        for name, heads in _by_part(sources)
    ]
    return jnp.concatenate(weights, axis=1)


def _by_part(sources: Sequence[CopiedHead]) -> list[tuple[PartName, list[int]]]:
    """Returns runs of sources of one part."""
    parts = itertools.groupby(sources, key=lambda source: source[0])
    return [(name, [head for _, head in run]) for name, run in parts]
