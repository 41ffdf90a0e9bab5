"""What decoding keeps of earlier tokens.

A store is one array of keys or values, [B, K, S, H], with an axis of slots, one token a slot. The
axes B and K are left out where they are 1: XLA would drop them from the product alone, and the
reshape between would cost a copy of the whole store at every step. A donated store is updated in
place.

Which position lies in which slot is a layout. Wherever t is passed, it is the position of each
row's newest token.
"""

import dataclasses
from collections.abc import Hashable

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int32

from sinkjax.attention.blocks import PerKvHead, Position
from sinkjax.errors import InputError
from sinkjax.masks.paths import Full, Window, reach

Store = Float[Array, "*BK S H"]
Rows = Int32[Array, " B"]


@struct.dataclass
class LayerCache:
    """What one layer keeps.

    Attributes:
      keys: a store a block of groups, rotated; None where no head needs keys.
      values: a store a block.
      bias: what the `sink` heads add at every position but the first; None without any.
    """

    keys: tuple[Float[Array, "... _ H"] | None, ...]
    values: tuple[Float[Array, "... _ H"], ...]
    bias: Float[Array, "B D"] | None = None


@struct.dataclass
class Cache:
    """What a model keeps of the tokens so far: a pytree of static shape, made to be donated.

    Attributes:
      lengths: tokens of each row so far, which is the position of its next token.
      layers: the cache of each layer.
      max_length: tokens of a row that there is room for, static.
      kind: of the model that it is of, `Llama.cache_kind`, static.
    """

    lengths: Rows
    layers: tuple[LayerCache, ...]
    max_length: int = struct.field(pytree_node=False)
    kind: Hashable = struct.field(pytree_node=False)


@dataclasses.dataclass(frozen=True)
class Whole:
    """Every position in the slot of its own number."""

    size: int

    def positions(self, t: Rows) -> Int32[Array, "B S"]:
        """Returns the position in each slot; beyond t where the slot is empty."""
        slots = jnp.arange(self.size, dtype=jnp.int32)[None, :]
        return jnp.broadcast_to(slots, (t.shape[0], self.size))

    def slots(self, positions: Int32[Array, "B P"], t: Rows) -> Int32[Array, "B P"]:
        """Returns the slots of positions that the layout holds at time t."""
        return positions


@dataclasses.dataclass(frozen=True)
class Ring:
    """The first `sinks` positions, then the last ones in turn, each overwriting the oldest.

    Attributes:
      within: tokens after which a sink counts as empty; None for never.
    """

    sinks: int
    size: int
    within: int | None = None

    def positions(self, t: Rows) -> Int32[Array, "B S"]:
        slots, t = jnp.arange(self.size, dtype=jnp.int32)[None, :], t[:, None]
        newest = t - (t - slots) % (self.size - self.sinks)
        positions = jnp.where((slots < self.sinks) | (slots > t), slots, newest)
        return _without_old_sinks(positions, slots, self, t)

    def slots(self, positions: Int32[Array, "B P"], t: Rows) -> Int32[Array, "B P"]:
        turns = (positions - self.sinks) % (self.size - self.sinks)
        return jnp.where(positions < self.sinks, positions, self.sinks + turns)


@dataclasses.dataclass(frozen=True)
class Band:
    """The first `sinks` positions, then the last ones in order: a window cut from a whole store.

    Attributes:
      within: as of `Ring`.
    """

    sinks: int
    size: int
    within: int | None = None

    def start(self, t: Rows) -> Rows:
        """Returns the position after the sinks."""
        return jnp.maximum(t + 1 - (self.size - self.sinks), self.sinks)

    def positions(self, t: Rows) -> Int32[Array, "B S"]:
        slots = jnp.arange(self.size, dtype=jnp.int32)[None, :]
        later = slots - self.sinks + self.start(t)[:, None]
        positions = jnp.where(slots < self.sinks, slots, later)
        return _without_old_sinks(positions, slots, self, t[:, None])

    def slots(self, positions: Int32[Array, "B P"], t: Rows) -> Int32[Array, "B P"]:
        shifted = positions - self.start(t)[:, None] + self.sinks
        return jnp.where(positions < self.sinks, positions, shifted)


Layout = Whole | Ring | Band


def _without_old_sinks(
    positions: Int32[Array, "B S"],
    slots: Int32[Array, "1 S"],
    layout: Ring | Band,
    t: Int32[Array, "B 1"],
) -> Int32[Array, "B S"]:
    if layout.within is None:
        return positions
    return jnp.where((slots < layout.sinks) & (slots <= t - layout.within), t + 1, positions)


def layout_of(span: Full | Window, max_length: int) -> Whole | Ring:
    """Returns the layout of a store that holds what `full` heads or one window see."""
    span = reach(span, max_length)
    if isinstance(span, Window):
        return Ring(span.sinks, span.sinks + span.recent, span.within)
    return Whole(max_length)


def view_layout(path: Full | Window, store: Whole | Ring, max_length: int) -> Layout:
    """Returns the layout in which what a path sees costs least to take out of a store."""
    alone = layout_of(path, max_length)
    if isinstance(alone, Whole) or isinstance(store, Ring):
        return alone
    return Band(alone.sinks, alone.size, alone.within)


def store_axes(ndim: int, batch: int, rows: str, heads: str) -> tuple[str, ...]:
    """Returns the logical axes of a store of so many, of a batch along `rows` and `heads`."""
    lead = (rows, heads) if ndim == 4 else (heads if batch == 1 else rows,)
    return (*lead[: ndim - 2], "slots", "head_dim")


def new_store(x: PerKvHead, layout: Whole | Ring, lengths: Rows) -> Store:
    """Returns keys or values of a prompt, with tokens in each row, as a store."""
    length = x.shape[1]
    if length > layout.size:
        positions = jnp.minimum(layout.positions(lengths - 1), length - 1)
        x = jnp.take_along_axis(x, positions[:, :, None, None], axis=1, mode="clip")
    filled = x.transpose(0, 2, 1, 3)
    padding = [(0, 0), (0, 0), (0, layout.size - filled.shape[2]), (0, 0)]
    padded = jnp.pad(filled, padding)
    lead = tuple(size for size in padded.shape[:2] if size != 1)  # B may be a symbol (`jax.export`)
    return padded.reshape(*lead, *padded.shape[2:])


def write_store(store: Store, new: Float[Array, "B 1 K H"], layout: Whole | Ring, t: Rows) -> Store:
    """Returns the store with one key or value a row at position t."""
    slots = layout.slots(t[:, None], t)[:, 0]
    if t.shape[0] == 1:
        new = new.reshape(*store.shape[:-2], 1, store.shape[-1])
        return jax.lax.dynamic_update_slice_in_dim(store, new, slots[0], -2)
    # A row a batch: on a CPU as fast as an unrolled loop over the rows, which compiles four times
    # as long at 32 rows.
    new = new.reshape(t.shape[0], *store.shape[1:-2], 1, store.shape[-1])
    return jax.vmap(
        lambda row, entry, slot: jax.lax.dynamic_update_slice_in_dim(row, entry, slot, -2)
    )(store, new, slots)


def extend_store(
    store: Store, new: PerKvHead, layout: Whole | Ring, start: Position, lengths: Rows
) -> Store:
    """Returns the store with a piece of a prompt, at positions from `start` on in every row.

    `lengths` are the rows' tokens after the piece, at most `start` + T: what it holds beyond is
    padding, which a store keeps where no token is.
    """
    batch, length, kv_heads, _ = new.shape
    piece = new.transpose(0, 2, 1, 3)
    if isinstance(layout, Whole):
        # In the store's own shape: in another, XLA would copy all of it.
        piece = piece.reshape(*store.shape[:-2], length, store.shape[-1])
        return jax.lax.dynamic_update_slice_in_dim(store, piece, start, axis=-2)
    # Of the piece's own tokens some still see first ones that count as empty after it.
    positions = dataclasses.replace(layout, within=None).positions(lengths - 1)
    places = jnp.clip(positions - start, 0, length - 1)[:, None, :, None]
    taken = jnp.take_along_axis(piece, places, axis=2, mode="clip")
    is_new = (positions >= start) & (positions < lengths[:, None])
    old = by_group(store, batch, kv_heads)
    return jnp.where(is_new[:, None, :, None], taken, old).reshape(store.shape)


def by_group(store: Store, batch: int, kv_heads: int) -> Float[Array, "B K S H"]:
    """Returns a store with all of its axes."""
    return store.reshape(batch, kv_heads, *store.shape[-2:])


def view_store(store: Store, layout: Layout, view: Layout, t: Rows) -> Float[Array, "*BK P H"]:
    """Returns what another layout holds of a store."""
    if layout == view:
        return store
    if isinstance(view, Band):  # slices: on a CPU half the time of a gather
        positions = view.start(t)

        def cut(row: jax.Array, start: jax.Array) -> jax.Array:
            sinks = jax.lax.slice_in_dim(row, 0, view.sinks, axis=-2)
            recent = jax.lax.dynamic_slice_in_dim(row, start, view.size - view.sinks, -2)
            return jnp.concatenate([sinks, recent], axis=-2)
    else:
        positions = layout.slots(view.positions(t), t)

        def cut(row: jax.Array, start: jax.Array) -> jax.Array:
            return jnp.take(row, start, axis=-2, mode="clip")

    if t.shape[0] == 1:
        return cut(store, positions[0])
    return jax.vmap(cut)(store, positions)


def view_weights(
    weights: Float[Array, "B N S"], layout: Layout, view: Layout, t: Rows
) -> Float[Array, "B N P"]:
    """Returns weights on the slots of one layout as those on the slots of another."""
    if layout == view:
        return weights
    positions = view.positions(t)
    slots = layout.slots(positions, t)[:, None, :]
    taken = jnp.take_along_axis(weights, slots, axis=2, mode="clip")
    return jnp.where((positions <= t[:, None])[:, None, :], taken, jnp.zeros_like(taken))


def check_capacity(length: int, max_length: int) -> None:
    """Raises InputError where a prompt of `length` tokens has no room in `max_length`."""
    if length > max_length:
        raise InputError(
            f"max_length is {max_length}, but the prompt has {length} tokens with its padding; "
            f"give at least {length}, and room for the tokens to be generated"
        )
