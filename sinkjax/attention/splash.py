"""`splash`: JAX's splash attention, a kernel for TPUs, under the masks of `full` and `window`.

One call computes the heads of one part. One call for a whole layer, a mask a head, would lose what
a window gains: with several masks in a call the grid is no longer narrowed to the blocks that are
left, masks are read from memory instead of computed, and the lists of blocks of all heads, which at
131,072 tokens take 200 kB a mask, do not fit the scalar memory.
"""

import dataclasses
from typing import Any, ClassVar

import jax
import numpy as np
from jax.experimental.pallas.ops.tpu import splash_attention

from sinkjax.attention.blocks import PerHead, PerKvHead, sees
from sinkjax.attention.kernels import Blocked, power_of_two, span
from sinkjax.masks.paths import Full, Window

MAX_BLOCK = 512
"""Queries and keys a block, at most. Never timed: the memory of a block's scores fits any TPU."""


@dataclasses.dataclass(frozen=True)
class Splash(Blocked):
    """JAX's splash attention, for TPUs."""

    name: ClassVar[str] = "splash"
    platform: ClassVar[str] = "tpu"

    def blocks(self, path: Full | Window, length: int) -> tuple[int, int]:
        """Returns no more than an eighth of T, and no more keys than a window's recent ones.

        What a block computes in vain grows with its size; so does what a grid's step is worth.
        """
        queries = power_of_two(min(MAX_BLOCK, length // 8), length)
        return queries, power_of_two(min(queries, span(path, length)[1]), length)

    def _attend(
        self, q: PerHead, k: PerKvHead, v: PerKvHead, path: Full | Window, cap: float | None
    ) -> PerHead:
        length, heads = q.shape[1:3]
        block_q, block_kv = self.blocks(path, length)
        kernel = splash_attention.make_splash_mha(
            splash_attention.MultiHeadMask([_PathMask(path, length)] * heads),
            block_sizes=splash_attention.BlockSizes(block_q=block_q, block_kv=block_kv),
            head_shards=1,
            q_seq_shards=1,
            attn_logits_soft_cap=cap,
            interpret=self.interpret,
        )
        outputs = jax.vmap(kernel)(*(x.swapaxes(1, 2) for x in (q, k, v)))
        return outputs.swapaxes(1, 2)


@dataclasses.dataclass(frozen=True)
class _Visible:
    """What `blocks.sees` says of a path, hashable, as splash attention wants it."""

    path: Full | Window

    def __call__(self, t: Any, s: Any) -> Any:
        return sees(t, s, self.path)


class _PathMask(splash_attention.Mask):
    """A path over T tokens as splash attention asks for it; no [T, T] array is ever made.

    It asks of each block whether any pair is visible, and whether all are; where all pairs of a
    block are the same, the answer is one element. The kernel computes the mask itself, by
    `mask_function`.
    """

    def __init__(self, path: Full | Window, length: int):
        self._key = path, length
        self.q_sequence = np.arange(length, dtype=np.int32)
        self.mask_function = _Visible(path)

    @property
    def shape(self) -> tuple[int, int]:
        length = self._key[1]
        return length, length

    def __getitem__(self, index: tuple[slice, slice]) -> np.ndarray:
        rows, columns = index
        path, length = self._key
        sinks, recent = span(path, length)
        within = (isinstance(path, Window) and path.within) or length
        any_first = columns.start < sinks and min(columns.stop, sinks) - 1 > rows.start - within
        any_recent = columns.stop - 1 > rows.start - recent
        if columns.start >= rows.stop or not (any_first or any_recent):
            return np.array([[False]])
        all_seen = columns.stop <= sinks or max(columns.start, sinks) > rows.stop - 1 - recent
        if columns.stop <= rows.start + 1 and columns.start > rows.stop - 1 - within and all_seen:
            return np.array([[True]])
        t, s = (np.arange(each.start, each.stop, dtype=np.int32) for each in index)
        return self.mask_function(t[:, None], s[None, :])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _PathMask) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)
