"""What decoding keeps of earlier tokens, and the products that read it.

A store is one array of keys or values with an axis of slots, one token a slot: keys lie as
[B, K, H, S] and values as [B, K, S, H], each as the product that reads it runs fastest on a CPU
(keys as [S, H] took a third longer). The axes B and K are left out where they are 1: XLA would
drop them from the product alone, and the reshape between would cost a copy of the whole store at
every step. A donated store is updated in place.
"""

import jax
import jax.numpy as jnp
from flax import struct

from sinkjax.errors import InputError


@struct.dataclass
class LayerCache:
    """What one layer keeps.

    Attributes:
      keys: stores [B, K, H, S], rotated.
      values: stores [B, K, S, H].
    """

    keys: tuple[jax.Array, ...]
    values: tuple[jax.Array, ...]


@struct.dataclass
class Cache:
    """What a model keeps of the tokens so far: a pytree of static shape, made to be donated.

    Attributes:
      lengths: int32 [B], tokens of each row so far, which is the position of its next one.
      layers: one for each layer.
    """

    lengths: jax.Array
    layers: tuple[LayerCache, ...]


def store_keys(k: jax.Array, capacity: int) -> jax.Array:
    """Keys [B, T, K, H] of a prompt as a store of `capacity` slots, slot s for position s."""
    k = k.transpose(0, 2, 3, 1)
    return _drop_units(jnp.pad(k, ((0, 0), (0, 0), (0, 0), (0, capacity - k.shape[3]))))


def store_values(v: jax.Array, capacity: int) -> jax.Array:
    """Values [B, T, K, H] of a prompt as a store of `capacity` slots, slot s for position s."""
    v = v.transpose(0, 2, 1, 3)
    return _drop_units(jnp.pad(v, ((0, 0), (0, 0), (0, capacity - v.shape[2]), (0, 0))))


def write_keys(store: jax.Array, k: jax.Array, slots: jax.Array) -> jax.Array:
    """Puts one key a row, [B, 1, K, H], into each row's own slot, int32 [B]."""
    return _write(store, k[:, 0, :, :, None], slots, axis=-1)


def write_values(store: jax.Array, v: jax.Array, slots: jax.Array) -> jax.Array:
    """Puts one value a row, [B, 1, K, H], into each row's own slot, int32 [B]."""
    return _write(store, v[:, 0, :, None, :], slots, axis=-2)


def slot_scores(q: jax.Array, keys: jax.Array) -> jax.Array:
    """q . k of every slot: q [B, K, G, H] -> float32 [B, K, G, S]."""
    scores = jnp.einsum(
        "...gh,...hs->...gs",
        q.reshape(*keys.shape[:-2], *q.shape[-2:]),
        keys,
        preferred_element_type=jnp.float32,
    )
    return scores.reshape(*q.shape[:-1], keys.shape[-1])


def sum_slots(weights: jax.Array, values: jax.Array) -> jax.Array:
    """Σ_s weights_s v_s over all slots: [B, K, G, S] in v's dtype -> float32 [B, K, G, H]."""
    sums = jnp.einsum(
        "...gs,...sh->...gh",
        weights.reshape(*values.shape[:-2], *weights.shape[-2:]),
        values,
        preferred_element_type=jnp.float32,
    )
    return sums.reshape(*weights.shape[:-1], values.shape[-1])


def check_capacity(length: int, max_length: int) -> None:
    """Raises InputError where a prompt of `length` tokens has no room in `max_length`."""
    if length > max_length:
        raise InputError(
            f"max_length is {max_length}, but the prompt has {length} tokens with its padding; "
            f"give at least {length}, and room for the tokens to be generated"
        )


def _write(store: jax.Array, new: jax.Array, slots: jax.Array, axis: int) -> jax.Array:
    """`new`, [B, K, ...] with a unit axis of slots, into the slots [B] of a store."""
    batch = slots.shape[0]
    if batch == 1:
        return jax.lax.dynamic_update_slice_in_dim(
            store, new.reshape(*store.shape[:-2], *new.shape[-2:]), slots[0], axis
        )
    # A row a batch: on a CPU as fast as an unrolled loop over the rows, which compiles four times
    # as long at 32 rows.
    new = new.reshape(batch, *store.shape[1:-2], *new.shape[-2:])
    return jax.vmap(
        lambda row, entry, slot: jax.lax.dynamic_update_slice_in_dim(row, entry, slot, axis)
    )(store, new, slots)


def _drop_units(store: jax.Array) -> jax.Array:
    """A store [B, K, ., .] without those of the axes B and K that are 1."""
    lead = tuple(size for size in store.shape[:2] if size > 1)
    return store.reshape(*lead, *store.shape[2:])
