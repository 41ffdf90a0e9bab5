"""Between the residual stream and heads: the products whose layout is a choice, in one place."""

import jax
import jax.numpy as jnp
from flax import nnx


def to_heads(x: jax.Array, weight: nnx.Param, bias: nnx.Param | None) -> jax.Array:
    """[B, T, D] by weight [D, heads, H] and bias [heads, H] -> [B, T, heads, H]."""
    return add_bias(jnp.einsum("btd,dnh->btnh", x, weight[...]), bias)


def from_heads(outputs: jax.Array, weight: nnx.Param, bias: nnx.Param | None) -> jax.Array:
    """Head outputs [B, T, heads, H] by weight [heads, H, D] and bias [D] -> [B, T, D]."""
    # An einsum contracts alphabetically, h before n: XLA would transpose o at every call.
    return add_bias(jnp.tensordot(outputs, weight[...], axes=2), bias)


def add_bias(x: jax.Array, bias: nnx.Param | None) -> jax.Array:
    """Adds a bias [...] to x [B, T, ...]; x itself where there is none."""
    return x if bias is None else x + bias[...][None, None]
