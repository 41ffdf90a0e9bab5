"""`pallas`: a kernel of our own for NVIDIA GPUs, written in Pallas and compiled through Triton.

Softmax as it goes (Milakov and Gimelshein 2018; Dao et al. 2022): a block of queries walks over the
blocks of keys that its path leaves, and keeps the largest score so far, the sum of exp(score - top)
and the so weighted sum of values. cuDNN's attention has windows, but no sinks before them.
"""

import dataclasses
import functools
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jaxtyping import DTypeLike

from sinkjax.attention.blocks import PerHead, PerKvHead, capped, sees
from sinkjax.attention.kernels import Blocked, span
from sinkjax.masks.paths import Full, Window

BLOCK_Q, BLOCK_KV = 128, 64
"""Queries and keys a block. Never timed; at head size 128 all that is kept fits in registers."""

_HEAD_DIMS = (16, 32, 64, 128)
_HIDDEN = -1e30  # a score that weighs nothing; its difference to itself is a number


@dataclasses.dataclass(frozen=True)
class Pallas(Blocked):
    """A kernel of our own, through Triton, for NVIDIA GPUs."""

    name: ClassVar[str] = "pallas"
    platform: ClassVar[str] = "gpu"

    def blocks(self, path: Full | Window, length: int) -> tuple[int, int]:
        return BLOCK_Q, BLOCK_KV

    def problems(self, length: int, head_dim: int, dtype: DTypeLike) -> list[str]:
        problems = super().problems(length, head_dim, dtype)
        if head_dim not in _HEAD_DIMS:
            problems.append(
                f"heads of size {head_dim} ({self.name} takes {', '.join(map(str, _HEAD_DIMS))})"
            )
        return problems

    def _attend(
        self, q: PerHead, k: PerKvHead, v: PerKvHead, path: Full | Window, cap: float | None
    ) -> PerHead:
        batch, length, heads, head_dim = q.shape
        group = heads // k.shape[2]
        queries = pl.BlockSpec((None, BLOCK_Q, None, head_dim), lambda i, b, n: (b, i, n, 0))
        keys = pl.BlockSpec((None, length, None, head_dim), lambda i, b, n: (b, 0, n // group, 0))
        return pl.pallas_call(
            functools.partial(_attend_block, path=path, length=length, cap=cap),
            grid=(length // BLOCK_Q, batch, heads),
            in_specs=[queries, keys, keys],
            out_specs=queries,
            out_shape=jax.ShapeDtypeStruct(q.shape, v.dtype),
            compiler_params=triton.CompilerParams(
                num_warps=4 if head_dim <= 64 else 8, num_stages=2
            ),
            interpret=self.interpret,
            name=self.name,
        )(q, k, v)


def _attend_block(
    q_ref: Any,
    k_ref: Any,
    v_ref: Any,
    out_ref: Any,
    *,
    path: Full | Window,
    length: int,
    cap: float | None,
):
    """Computes one block of queries of one head on a path over T tokens.

    q_ref and out_ref are [BLOCK_Q, H], k_ref and v_ref [T, H], of which only visited blocks are
    read.
    """
    (sinks, recent), begin = span(path, length), pl.program_id(0) * BLOCK_Q
    q = q_ref[...]
    shape = BLOCK_Q, BLOCK_KV
    t = begin + jax.lax.broadcasted_iota(jnp.int32, shape, 0)
    # As `kernels.visited` has them, of a block that only the kernel knows.
    first = jax.lax.div(jnp.maximum(begin - recent + 1, 0), BLOCK_KV)
    stop = jax.lax.div(begin + BLOCK_Q + BLOCK_KV - 1, BLOCK_KV)
    apart = jnp.minimum(-(-sinks // BLOCK_KV), first)

    def add(step: jax.Array, carry: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        sums, top, total = carry
        start = jnp.where(step < apart, step, step - apart + first) * BLOCK_KV
        s = start + jax.lax.broadcasted_iota(jnp.int32, shape, 1)
        visible = sees(t, s, path)
        scores = capped(_dot(q, k_ref[pl.ds(start, BLOCK_KV), :].T), cap)
        scores = jnp.where(visible, scores, _HIDDEN)
        new_top = jnp.maximum(top, scores.max(axis=1))
        weights = jnp.exp(scores - new_top[:, None])
        # Of a row that has seen nothing yet all weigh 1: its first visible key takes that to 0.
        shrink = jnp.exp(top - new_top)
        values = v_ref[pl.ds(start, BLOCK_KV), :]
        sums = sums * shrink[:, None] + _dot(weights.astype(values.dtype), values)
        return sums, new_top, total * shrink + weights.sum(axis=1)

    nothing = (
        jnp.zeros(q.shape, jnp.float32),
        jnp.full(BLOCK_Q, _HIDDEN, jnp.float32),
        jnp.zeros(BLOCK_Q, jnp.float32),
    )
    sums, _, total = jax.lax.fori_loop(0, apart + stop - first, add, nothing)
    out_ref[...] = (sums / total[:, None]).astype(out_ref.dtype)


def _dot(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.dot(a, b, preferred_element_type=jnp.float32)
