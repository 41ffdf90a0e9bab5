"""Excerpts in batches of one shape, so that one program serves all of them."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

BATCH_TOKENS = 2048
"""Tokens that go through a model at once, unless the caller says otherwise."""


def batch_rows(excerpts: np.ndarray, tokens: int = BATCH_TOKENS) -> int:
    """How many excerpts, of [W, T], have this many tokens: at least 1, at most all."""
    count, length = excerpts.shape
    return min(count, max(1, tokens // length))


def batches(excerpts: np.ndarray, rows: int | None = None) -> Iterator[tuple[jax.Array, int]]:
    """Excerpts a batch after another.

    Args:
      excerpts: int [W, T].
      rows: of a batch; None for `batch_rows`.

    Yields:
      int32 [rows, T], and how many of these rows are new: the last batch is filled up with
      repetitions to the shape of the others.
    """
    rows = rows or batch_rows(excerpts)
    for start in range(0, len(excerpts), rows):
        chunk = excerpts[start : start + rows]
        filled = np.resize(chunk, (rows, excerpts.shape[1])).astype(np.int32)
        yield jnp.asarray(filled), len(chunk)
