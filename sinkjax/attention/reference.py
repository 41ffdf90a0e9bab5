"""The dense oracle: every attention pattern as explicit [B, N, T, S]. Right, not fast."""

import jax
import jax.numpy as jnp


def causal_pattern(q: jax.Array, k: jax.Array) -> jax.Array:
    """softmax over s <= t of q_t . k_s / sqrt(H).

    Args:
      q: float32 [B, T, N, H], rotated.
      k: float32 [B, S, K, H], rotated; S = T. Head n reads key/value head n // (N / K).

    Returns:
      float32 [B, N, T, S]; rows sum to 1, entries with s > t are 0.
    """
    length, num_heads, head_dim = q.shape[1:]
    k = jnp.repeat(k, num_heads // k.shape[2], axis=2)
    scores = jnp.einsum("btnh,bsnh->bnts", q, k, precision="highest") / head_dim**0.5
    scores = jnp.where(jnp.tri(length, dtype=bool), scores, -jnp.inf)
    return jax.nn.softmax(scores, axis=-1)


def apply_pattern(pattern: jax.Array, v: jax.Array) -> jax.Array:
    """Sums values under a pattern.

    Args:
      pattern: float32 [B, N, T, S].
      v: float32 [B, S, K, H].

    Returns:
      float32 [B, T, N, H], before `o_proj`.
    """
    v = jnp.repeat(v, pattern.shape[1] // v.shape[2], axis=2)
    return jnp.einsum("bnts,bsnh->btnh", pattern, v, precision="highest")
