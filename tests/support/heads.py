"""Random queries, keys and values, and their attention as the oracle computes it."""

import jax
import jax.numpy as jnp
import numpy as np

from sinkjax.testing import oracle


def random_heads(
    length: int, group: int, kv_heads: int = 2, head_dim: int = 8, dtype=jnp.float32
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """q [2, T, K * G, H], k and v [2, T, K, H]."""
    rng = np.random.default_rng(length)
    shapes = [(2, length, heads, head_dim) for heads in (kv_heads * group, kv_heads, kv_heads)]
    return tuple(jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes)


def attended(path, q: jax.Array, k: jax.Array, v: jax.Array, cap: float | None = None) -> jax.Array:
    """Outputs of heads that are all on one path, in a native window if it has one: [2, T, N, H]."""
    scores, native = oracle.attention_scores(q, k, cap), getattr(path, "within", None)
    patterns = [oracle.head_pattern(path, scores[:, n], {}, native) for n in range(q.shape[2])]
    return oracle.apply_pattern(jnp.stack(patterns, axis=1), v)
