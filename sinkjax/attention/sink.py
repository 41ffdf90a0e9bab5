"""The `sink` path: no attention, but what the head would add if all of it fell on the first token.

At the first position every head attends to itself, so that a sink head's output is v_0. At later
ones it is the fill: `first` v_0, `zero` 0, `mean` the calibrated mean m_n. Summed over the sink
heads of a layer and multiplied by o this is two vectors of size D a sequence,

  at first  Σ_n o_n v_0
  later     Σ_{n first} o_n v_0 + Σ_{n mean} o_n m_n

and as the heads of a group share v_0, the sum over n is taken of the o_n beforehand, once a group.
"""

import jax
import jax.numpy as jnp

from sinkjax.attention.products import Products


def first_token_term(v0: jax.Array, o: jax.Array, products: Products) -> jax.Array:
    """Σ_k (Σ_n o_n) v_0: the groups' first values [B, K, H], their o sums [D, K, H] -> [B, D]."""
    (term,) = products.project(v0[:, None], o, dtype=jnp.float32)
    return term[:, 0].astype(v0.dtype)


def add_biases(out: jax.Array, at_first: jax.Array, later: jax.Array) -> jax.Array:
    """Adds one bias [B, D] at the first position of out [B, T, D], the other at all later ones."""
    is_first = (jnp.arange(out.shape[1]) == 0)[None, :, None]
    return out + jnp.where(is_first, at_first[:, None], later[:, None])
