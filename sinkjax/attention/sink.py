"""The `sink` path: no attention, but what the head would add if all of it fell on the first token.

At the first position every head attends to itself, so that a sink head's output is v_0. At later
ones it is the fill: `first` v_0, `zero` 0, `mean` the calibrated mean m_n. Summed over the sink
heads of a layer and multiplied by o this is two vectors of size D a sequence,

  at first  Σ_n o_n v_0
  later     Σ_{n first} o_n v_0 + Σ_{n mean} o_n m_n

and as the heads of a group share v_0, the sum over n is taken of the o_n beforehand, once a group.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from sinkjax.attention.products import Products


def first_token_term(
    v0: Float[Array, "B K H"], o: Float[Array, "D K H"], products: Products
) -> Float[Array, "B D"]:
    """Returns Σ_k o_k v_0, with o_k the sum of o_n over the group's sink heads."""
    (term,) = products.project(v0[:, None], o, dtype=jnp.float32)
    return term[:, 0].astype(v0.dtype)


def add_biases(
    out: Float[Array, "B T D"], at_first: Float[Array, "B D"], later: Float[Array, "B D"]
) -> Float[Array, "B T D"]:
    """Adds one bias at the first position, the other at all later ones."""
    is_first = (jnp.arange(out.shape[1], dtype=jnp.int32) == 0)[None, :, None]
    return out + jnp.where(is_first, at_first[:, None], later[:, None])
