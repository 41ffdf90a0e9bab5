"""Attention of a piece of a prompt, whose earlier tokens a cache holds.

A prompt that is longer than any bucket comes in pieces: the first makes a cache, each further one
(`sinkjax.models.decoder.Llama.extend`) attends to the cache and to itself, and is written to it.
Every row's piece begins at the same position; a row that has ended before is left as it is.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float

from sinkjax.attention.blocks import PerHead, PerKvHead, Position, group_keys
from sinkjax.attention.cache import Ring, Rows, Store, Whole, by_group, extend_store
from sinkjax.attention.context import Context
from sinkjax.attention.full import Pattern, apply_stored_pattern, stored_pattern
from sinkjax.attention.products import Products
from sinkjax.attention.stream import Earlier, streamed_attention
from sinkjax.attention.window import (
    Seen,
    apply_seen_pattern,
    seen_attention,
    seen_pattern,
)
from sinkjax.masks.paths import Full, Window, reach


@dataclasses.dataclass(frozen=True)
class Extended:
    """Keys or values of a block of groups: those of earlier tokens, and a piece's own.

    Attributes:
      new: of the piece.
      old, store: the store before and after the piece.
      layout: of the store.
      max_length: tokens that the cache has room for.
      start: position of the piece's first token.
    """

    new: PerKvHead
    old: Store
    store: Store
    layout: Whole | Ring
    max_length: int
    start: Position

    @classmethod
    def of(
        cls, old: Store, new: PerKvHead, layout: Whole | Ring, lengths: Rows, context: Context
    ) -> "Extended":
        """Writes a piece to a store; lengths: of the rows, with the piece."""
        assert context.max_length is not None
        assert context.start is not None
        store = extend_store(old, new, layout, context.start, lengths)
        return cls(
            new, old, context.products.settle(store), layout, context.max_length, context.start
        )

    def whole(self) -> Float[Array, "B K S H"]:
        """Returns every position's, in the slot of its number."""
        return by_group(self.store, self.new.shape[0], self.new.shape[2])

    def seen(self, window: Window) -> Seen:
        """Returns what the piece's queries see under a window."""
        batch, _, kv_heads, _ = self.new.shape
        # Of a whole store the new one, which has the same: else the old one would be copied.
        old = self.store if isinstance(self.layout, Whole) else self.old
        old, store = (by_group(x, batch, kv_heads) for x in (old, self.store))
        before = self.start - window.recent + jnp.arange(window.recent, dtype=jnp.int32)
        before = jnp.maximum(before, 0)[None, :]
        slots = self.layout.slots(before, jnp.full((1,), self.start - 1))[0]
        earlier = jnp.take(old, slots, axis=2, mode="clip")
        rest = jnp.concatenate([earlier, group_keys(self.new)], axis=2)
        # Sinks lie in slots of their own numbers in either layout.
        return Seen(jax.lax.slice_in_dim(store, 0, window.sinks, axis=2), rest)


def attend_piece(
    q: PerHead,
    keys: Extended,
    values: Extended,
    path: Full | Window,
    products: Products,
    cap: float | None = None,
) -> PerHead:
    """Returns the outputs of heads on a path for a piece, in v's dtype."""
    path = reach(path, keys.max_length)
    if isinstance(path, Window):
        seen = keys.seen(path), values.seen(path)
        return seen_attention(q, *seen, path, keys.start, products, cap)
    earlier = Earlier(keys.store, values.store, keys.start)
    return streamed_attention(q, keys.new, values.new, products, earlier, cap)


def keep_piece_pattern(
    q: PerHead, keys: Extended, path: Full | Window, dtype: DTypeLike, cap: float | None
) -> Pattern:
    """Returns how heads attend in a piece, to be kept for later layers."""
    path = reach(path, keys.max_length)
    if isinstance(path, Window):
        return seen_pattern(q, keys.seen(path), path, keys.start, dtype, cap)
    return stored_pattern(q, keys.whole(), keys.start, dtype, cap)


def apply_piece_pattern(pattern: Pattern, values: Extended, path: Full | Window) -> PerHead:
    """Returns the outputs of a pattern that heads on this path left, on other values."""
    path = reach(path, values.max_length)
    if isinstance(path, Window):
        return apply_seen_pattern(pattern, values.seen(path), path)
    return apply_stored_pattern(pattern, values.whole())
